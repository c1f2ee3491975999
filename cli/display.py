"""What a run looks like in the terminal: live, as plain lines, as JSON lines, or not at all."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..core.errors import PerennialError
from ..server.events import Event, read_events
from ..server.report_events import HEAD
from ..server.units import DASH, duration, percent
from .follow import Progress, Tail
from .lines import last_sum, mean_of, part_of, plain_lines, round_cells
from .spent import Spent
from .tables import print_matrix

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Mode: TypeAlias = Literal["live", "plain", "quiet", "json"]

POLL_S = 0.2
"""Seconds between two looks at the log."""

MOST_LINES = 10
"""Domains up to which each has a line of its own in the live view."""


class Display:
    """Shows a run while it is written to an event log: opens a thread, closes it.

    The log may be written by another thread or process and need not exist yet. On exit what is
    left of the log is shown and, in live and plain mode, the accuracy matrix is printed.
    """

    def __init__(self, path: Path, *, mode: Mode, skip_old: bool = False) -> None:
        """Prepare to follow `path`.

        Args:
            path: the run's events.jsonl.
            mode: `live` for a terminal, `plain` one line per round, evaluation and domain,
                `json` the events as lines, `quiet` nothing.
            skip_old: whether `plain` and `json` leave out what the file holds already at the
                start, as a resumed run wants.
        """
        self._path = path
        self._mode = mode
        self._skip_old = skip_old
        self._tail = Tail(path)
        self._progress = Progress()
        self._spent = Spent()
        self._sum: Event | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._mode == "quiet":
            return self
        if self._skip_old:
            for event in self._tail.new():
                self._see(event)
        if self._mode == "live":
            self._live = _live()
            self._live.start()
        self._thread = threading.Thread(target=self._follow, name="display", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._show_new()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._mode != "json":
            try:
                self._print_end()
            except BrokenPipeError:
                _look_away()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_S):
            self._show_new()

    def _show_new(self) -> None:
        try:
            self._show_events()
        except BrokenPipeError:
            _look_away()

    def _show_events(self) -> None:
        for event in self._tail.new():
            self._see(event)
            if self._mode == "json":
                print(json.dumps(event, separators=(",", ":")), flush=True)
            elif self._mode == "plain":
                for line in plain_lines(event, self._progress, self._sum, self._spent):
                    print(line, flush=True)
        if self._live is not None:
            page = _page(self._progress, self._sum, self._spent)
            self._live.update(page, refresh=True)

    def _see(self, event: Event) -> None:
        self._progress.see(event)
        self._spent.see(event)
        if event["event"] == "sum_opened":
            self._sum = event

    def _print_end(self) -> None:
        # Imported here: the report's modules are of no use to the other commands.
        from ..server.report import summarise

        if not self._path.exists():
            return
        try:
            report = summarise(read_events(self._path))
        except PerennialError as error:
            print(f"no summary: {error}", flush=True)
            return
        print_matrix(report, _console())


def _look_away() -> None:
    """Print to nowhere from now on: whoever read the output left, and the run goes on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _live() -> Live:
    from rich.live import Live

    # Only the following thread draws: what it shows is never half changed.
    return Live(console=_console(), auto_refresh=False)


def _page(
    progress: Progress, opened: Event | None = None, spent: Spent | None = None
) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(_title(progress), style="bold"), _bars(progress)]
    if progress.table:
        parts += [Text(""), _rounds(progress, spent)]
    if spent and (promise := spent.words()):
        parts.append(Text(promise, style="dim"))
    if words := last_sum(opened, spent):
        parts.append(Text(f"last sum: {words}", style="dim"))
    if progress.scores:
        by = progress.head if progress.by == HEAD else ""
        parts += [Text(""), *_scores(progress.scores, by)]
    if len(progress.ends) > 1:
        parts.append(Text(f"at the ends of domains: {_ends(progress)}", style="dim"))
    return Group(*parts)


def _ends(progress: Progress) -> str:
    """Mean accuracy at the end of each domain, the adapter's own heads marked beside others."""
    mixed = any(by == HEAD for _, by in progress.ends.values())
    return "  ".join(
        f"{domain + 1} {percent(mean)}{' (own head)' if mixed and by != HEAD else ''}"
        for domain, (mean, by) in sorted(progress.ends.items())
    )


def _title(progress: Progress) -> str:
    if not progress.run:
        return "waiting for the run to start"
    domain = f"domain {part_of(progress.domain + 1, len(progress.domains))}"
    done = f"{part_of(progress.round, progress.rounds)} rounds done"
    return f"{progress.run}  {domain} {progress.name(progress.domain)}  {done}"


def _bars(progress: Progress) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    left = progress.remaining_s()
    if progress.finished:
        words = "finished"
    else:
        words = "" if left is None else f"about {duration(left)} left"
    grid = Table.grid(padding=(0, 2))
    rows = (
        ("rounds", progress.done, progress.total, words),
        ("clients", progress.replied, progress.asked, "have replied in this round"),
    )
    for name, part, whole, note in rows:
        most = max(1, whole)
        bar = ProgressBar(most, min(part, most), width=32, complete_style="blue")
        grid.add_row(name, bar, part_of(part, whole), note)
    return grid


def _scores(scores: dict[str, float], by: str) -> Iterator[RenderableType]:
    """The mean and who answered, then a line per domain; beyond `MOST_LINES` one paragraph."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = (f"  by {by}" if by else "", "dim")
    yield Text.assemble(("accuracy  ", "dim"), (percent(mean_of(scores)), "bold"), head)
    if len(scores) > MOST_LINES:
        yield Text("   ".join(f"{name} {percent(score)}" for name, score in scores.items()))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(max_width=24, no_wrap=True)
    for name, score in scores.items():
        bar = ProgressBar(total=1.0, completed=score, width=24, complete_style="blue")
        grid.add_row(Text(name), bar, percent(score))
    yield grid


def _rounds(progress: Progress, spent: Spent | None) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("domain", max_width=24, no_wrap=True)
    private = spent is not None and bool(spent.targets)
    # No client of a private run tells its loss.
    for name in (
        "round",
        "epsilon" if private else "loss",
        "accuracy",
        "up",
        "down",
        "time",
        "rejected",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for event in progress.table:
        loss, up, down, seconds, refused = round_cells(event)
        place = int(event.get("domain", 0)), int(event.get("round", 0)) + 1
        if spent and private:
            loss = spent.rounds.get(place, DASH)
        score = percent(progress.means.get(place))
        bad = Text(refused, "red" if refused != "0" else "")
        domain = Text(progress.name(place[0]))
        table.add_row(domain, str(place[1]), loss, score, up, down, seconds, bad)
    return table
