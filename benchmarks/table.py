"""What every benchmark prints: rows with a figure, a unit, a bar and whether it holds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    Attributes:
        row: what was measured.
        figure: the median.
        unit: of the figure.
        bar: the largest figure that will do; None for a peer, which is there to compare with.
        at_least: the bar is the smallest figure that will do.
    """

    row: str
    figure: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the figure keeps the bar; None without one."""
        if self.bar is None:
            return None
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar

    def pack(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("row", "figure", "unit", "bar", "holds")
        return {name: getattr(self, name) for name in names}


def run(title: str, measure: Callable[[bool], Sequence[Row]]) -> None:
    """Parse `--quick` and `--json`, measure, print; exit 1 when a bar does not hold."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="under a minute; a rough figure")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of Markdown")
    options = parser.parse_args()
    rows = measure(options.quick)
    if options.json:
        print(json.dumps([row.pack() for row in rows], indent=1))
    else:
        print(markdown(title, rows))
    sys.exit(any(row.holds is False for row in rows))


def markdown(title: str, rows: Sequence[Row]) -> str:
    head = f"### {title}\n\n{os.cpu_count()} cores, {platform.machine()}, Python "
    lines = [
        head + platform.python_version(),
        "",
        "| row | figure | bar | holds |",
        "|---|---|---|---|",
    ]
    for row in rows:
        sign = ">=" if row.at_least else "<="
        bar = "" if row.bar is None else f"{sign} {row.bar:g} {row.unit}"
        holds = {None: "", True: "yes", False: "**no**"}[row.holds]
        lines.append(f"| {row.row} | {row.figure:.3g} {row.unit} | {bar} | {holds} |")
    return "\n".join(lines)


def progress(text: str) -> None:
    """Say on stderr what is being measured."""
    print(f"... {text}", file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
