"""`perennial compare`: several runs side by side, in the terminal and as one page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.files import write_atomically
from ..server.compare import compare
from ..server.compare_page import render, verdict
from ..server.events import read_events
from ..server.report import summarise
from ..server.units import count, duration, points, size
from .runs import find, folders

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FULL, SHORTER, SHORTEST = range(3)
"""Forms of a table, for terminals of different widths."""

# What a run's name is followed by in the name of its folder: see `folders.fresh`.
_TIME = r"-\d{8}-\d{6}(-\d+)?"


def show(
    runs: Sequence[str], home: Path, *, page: Path | None = None, as_json: bool = False
) -> None:
    """Compare runs: print tables or JSON, and write the page if one is asked for.

    Args:
        runs: each a run's folder, the name of one in `home`, or a `[run] name`, whose newest run
            is meant.
        home: where runs are kept.
        page: the HTML file to write.
        as_json: print the comparison as JSON instead of tables.

    Raises:
        DataError: no such run, one that never began, fewer than two, nothing to compare, or the
            page cannot be written.
        RunError: a run's events are broken.
    """
    if len(runs) < 2:
        raise DataError(f"perennial compare needs at least two runs; got {len(runs)}")
    places = [locate(run, home) for run in runs]
    found = compare(
        [(label, read(place)) for label, place in zip(_labels(places), places, strict=True)]
    )
    if page is not None:
        _write(page, render(found))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
        return
    from rich.console import Console

    print_comparison(found, Console(highlight=False))
    if page is not None:
        sys.stdout.write(f"page: {page}\n")


def _labels(places: Sequence[Path]) -> list[str]:
    """What to call runs: without the time in their folders' names where that tells them apart."""
    names = [place.resolve().name for place in places]
    short = [re.sub(f"{_TIME}$", "", name) for name in names]
    return short if all(short) and len(set(short)) == len(short) else names


def locate(run: str, home: Path) -> Path:
    """The folder of a run: given itself, by its name, or the newest of a `[run] name`.

    Raises:
        DataError: there is none; the message lists the newest there are.
    """
    if not (Path(run) / "config.toml").is_file() and not (home / run / "config.toml").is_file():
        named = [p for p in folders(home) if re.fullmatch(re.escape(run) + _TIME, p.name)]
        if named:
            return named[-1]
    return find(run, home)


def read(folder: Path) -> dict[str, Any]:
    """A run's report.json; rebuilt from its events, and not written, where it is not there.

    Raises:
        DataError: the run never began.
        RunError: its events are broken.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = None
    if isinstance(report, dict) and "accuracy_matrix" in report:
        return report
    events = folder / "events.jsonl"
    if not events.exists():
        raise DataError(f"{folder} must hold events.jsonl; the run never began")
    return summarise(read_events(events))


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print the runs' figures, then each domain's accuracy at the end; fewer where it is narrow.

    Args:
        comparison: as `compare.compare` gives it.
        console: where to.
    """
    # Tables measure themselves against the width that they are given: here, any.
    anywhere = console.options.update(max_width=10_000)
    for make in (_figures, _domains):
        forms = [make(comparison, form) for form in (FULL, SHORTER, SHORTEST)]
        fits = [console.measure(f, options=anywhere).maximum <= console.width for f in forms]
        console.print(next((f for f, fit in zip(forms, fits, strict=True) if fit), forms[-1]))
        console.print()
    for line in (verdict(comparison), *(f"note: {note}" for note in comparison["notes"])):
        console.print(line, markup=False, highlight=False)


def _figures(comparison: Mapping[str, Any], form: int) -> Table:
    """A row for each run, with fewer figures in the shorter forms."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"after {count(len(comparison['domains']), 'domain')}",
        box=None,
        title_justify="left",
        header_style="dim",
    )
    table.add_column("run", overflow="fold")
    columns = _COLUMNS[: (len(_COLUMNS), 5, 2)[form]]
    for head, _, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for i, run in enumerate(comparison["runs"]):
        cells = ("" if run[key] is None else say(run[key]) for _, key, say in columns)
        table.add_row(Text(f"{i + 1} {run['run']}"), *cells)
    return table


def _domains(comparison: Mapping[str, Any], form: int) -> Table:
    """A row for each domain, a column for each run: by name, by number, with accuracy alone."""
    from rich.table import Table
    from rich.text import Text

    runs = comparison["runs"]
    title = "accuracy at the end, percent"
    title += "" if form == SHORTEST else " (points forgotten)"
    table = Table(title=title, box=None, title_justify="left", header_style="dim")
    table.add_column("domain", max_width=24, no_wrap=True)
    for i, run in enumerate(runs):
        name = f"{i + 1} {run['run']}" if form == FULL else str(i + 1)
        table.add_column(Text(name), justify="right", no_wrap=True)
    for j, domain in enumerate(comparison["domains"]):
        pairs = ((run["domain_accuracy"][j], run["domain_best"][j]) for run in runs)
        table.add_row(Text(domain), *(_kept(now, best, form) for now, best in pairs))
    return table


def _kept(now: float | None, best: float | None, form: int) -> str:
    if now is None:
        return ""
    if form == SHORTEST or best is None:
        return _percent(now)
    return f"{_percent(now)} ({100 * (best - now):.1f})"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _points(difference: float) -> str:
    return points(difference).removesuffix(" points")


# Heading, key of a run's entry and how its values are said; what matters most first.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("accuracy", "final_accuracy", _percent),
    ("forgetting", "final_forgetting", _points),
    ("learnt", "learning_accuracy", _percent),
    ("up", "bytes_up", size),
    ("time", "seconds", duration),
    ("backward", "backward_transfer", _points),
    ("forward", "forward_transfer", _points),
    ("worst client", "worst_client_accuracy", _percent),
)


def _write(page: Path, text: str) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, text)
    except OSError as error:
        raise DataError(f"--page {page} must be a file that can be written: {error}") from error
