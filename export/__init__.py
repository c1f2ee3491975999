"""From an adapter to what a user runs: one target a file."""
