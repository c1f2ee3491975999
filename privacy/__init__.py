"""What hides data: one way to sum or to privatise a file."""
