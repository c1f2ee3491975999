"""`python -m perennial` is the `perennial` command."""

from .cli.main import run

if __name__ == "__main__":
    run()
