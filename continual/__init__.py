"""What remembers: one continual-learning method a file."""
