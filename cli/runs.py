"""`perennial runs` and `perennial report`: what was run, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import DataError, PerennialError
from ..server.events import read_events
from ..server.report import summarise, write_report


def find(run: str, home: Path) -> Path:
    """The folder of a run, given as a folder or as a name below `home`.

    Raises:
        DataError: there is none; the message lists the newest there are.
    """
    for folder in (Path(run), home / run):
        if (folder / "config.toml").is_file():
            return folder
    there = [folder.name for folder in folders(home)][-5:]
    raise DataError(
        f"{run!r} must be a run folder, or the name of one in {home}; it is neither. "
        f"There are: {', '.join(there) or 'none'}"
    )


def folders(home: Path) -> list[Path]:
    """Run folders below `home`, the oldest first."""
    found = [path.parent for path in home.glob("*/config.toml")]
    return sorted(found, key=lambda folder: (folder / "config.toml").stat().st_mtime)


def rebuild(run: str, home: Path) -> None:
    """Write the report of a run anew and print its matrix.

    Raises:
        DataError: there is no such run, or it has no events yet.
    """
    folder = find(run, home)
    if not (folder / "events.jsonl").exists():
        raise DataError(f"{folder} must hold events.jsonl; the run never began")
    from rich.console import Console

    from .tables import print_matrix

    console = Console()
    print_matrix(write_report(folder), console)
    console.print(f"report: {folder / 'report.html'}")


def show(home: Path) -> None:
    """Print a table of the runs below `home`."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    found = folders(home)
    if not found:
        console.print(f"no runs in {home}; start one with: perennial simulate FILE")
        return
    table = Table(
        Column("run", no_wrap=True, min_width=24),
        "state",
        "domains",
        "rounds",
        "accuracy",
        "forgetting",
        "adapter",
    )
    for folder in found:
        table.add_row(folder.name, *_row(folder))
    console.print(table)


def _row(folder: Path) -> list[str]:
    if not (folder / "events.jsonl").exists():
        return ["not begun", "", "", "", "", ""]
    try:
        report: dict[str, Any] = summarise(read_events(folder / "events.jsonl"))
    except PerennialError:  # one damaged run must not hide the others
        return ["damaged", "", "", "", "", ""]
    forgetting = report["forgetting"]
    return [
        "finished" if report["finished"] else "unfinished",
        str(len(report["domains"])),
        str(len(report["rounds"])),
        _percent(report["final_accuracy"]),
        _percent(forgetting[-1] if forgetting else None),
        str(report["adapter_hash"] or ""),
    ]


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"
