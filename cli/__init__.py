"""The `perennial` command."""
