"""A fleet in service: what it takes, row by row.

    python benchmarks/service.py [--rows load] [--quick] [--json]

Each row is a function of a module of its own; without `--rows` all are measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from service_load import load
from service_warm import rollback, warm
from table import Row, run

ROWS: Mapping[str, Callable[[bool], Sequence[Row]]] = {
    "warm": warm,
    "rollback": rollback,
    "load": load,
}


def measure(names: Sequence[str]) -> Callable[[bool], list[Row]]:
    """What measures the named rows, in order."""
    return lambda quick: [row for name in names for row in ROWS[name](quick)]


def chosen(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The rows that are asked for, and the other words of the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rows", default=",".join(ROWS), help="names, comma between")
    options, rest = parser.parse_known_args(words)
    names = options.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    return names, rest


if __name__ == "__main__":
    rows, sys.argv[1:] = chosen(sys.argv[1:])
    run("A fleet in service", measure(rows))
