"""The accuracy matrix and the key figures of a report, printed to a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..server.report_continual import answered
from ..server.report_sums import saturation
from ..server.units import count, duration, percent, points, size
from .spent import privacy_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NAME, _HEAD, _GAP = 24, 12, 2
"""Most letters of a row's name and of a column's, and the gap between columns."""


def print_matrix(report: Mapping[str, Any], console: Console) -> None:
    """Print a report's accuracy matrix, then its key figures, as `summarise` gives them.

    Rows are the moments after each domain, columns the domains asked, in percent; the last
    column is each row's mean, the last row each column's. Where the terminal is too narrow,
    one line per domain stands instead: its accuracy when learnt, at best and now.
    """
    names = [domain["name"] for domain in report["domains"]][: report["learnt"]]
    if names:
        full = [f"{i + 1} {name}" for i, name in enumerate(names)]
        short = [str(i + 1) for i in range(len(names))]
        fits = [heads for heads in (full, short) if _wide(full, heads) <= console.width]
        console.print(
            _matrix(report, full, fits[0]) if fits else _list(report, full, console.width)
        )
    for line in _lines(report):
        console.print(line, markup=False, highlight=False)
    for line in [*_updates(report), *privacy_lines(report)]:
        # For scripts to find: one line whatever the width.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _wide(names: Sequence[str], heads: Sequence[str]) -> int:
    """Columns of the terminal that the matrix takes; a number takes 5."""
    first = min(_NAME, max(map(len, names)))
    cells = sum(max(5, min(_HEAD, len(head))) + _GAP for head in heads)
    return first + cells + len("average") + 2 * _GAP


def _matrix(report: Mapping[str, Any], names: Sequence[str], heads: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    learnt, matrix = len(names), report["accuracy_matrix"]
    table = Table(title="accuracy, percent", box=None, title_justify="left", header_style="dim")
    table.add_column("after", max_width=_NAME, no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify="right", max_width=_HEAD, no_wrap=True)
    table.add_column("average", justify="right")
    for i, name in enumerate(names):
        cells = [_cell(value) for value in matrix[i][: i + 1]] + [""] * (learnt - i - 1)
        average = Text(_cell(report["average_accuracy"][i]), "bold")
        table.add_row(Text(name), *cells, average)
    columns = [_mean([matrix[i][j] for i in range(j, learnt)]) for j in range(learnt)]
    corner = _mean(report["average_accuracy"][:learnt])
    table.add_row("average", *map(_cell, columns), _cell(corner), style="bold")
    return table


def _list(report: Mapping[str, Any], names: Sequence[str], width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    learnt, matrix = len(names), report["accuracy_matrix"]
    table = Table(title="accuracy, percent", box=None, title_justify="left", header_style="dim")
    # Three numbers of 6 letters; what is left of the line is the name's.
    room = max(4, min(32, width - 3 * (6 + _GAP) - _GAP))
    table.add_column("domain", max_width=room, no_wrap=True)
    for heading in ("learnt", "best", "now"):
        table.add_column(heading, justify="right", min_width=6)
    for j, name in enumerate(names):
        column = [matrix[i][j] for i in range(j, learnt)]
        best = max((value for value in column if value is not None), default=None)
        cells = map(_cell, (column[0], best, column[-1]))
        table.add_row(Text(name), *cells)
    return table


def _lines(report: Mapping[str, Any]) -> list[str]:
    totals, learnt = report["totals"], report["learnt"]
    last = report["forgetting"][learnt - 1] if learnt > 1 else None
    up, down = size(totals["bytes_up"]), size(totals["bytes_down"])
    if ends := totals["bytes_up_at_ends"]:
        up = f"{up} up ({size(ends)} of it at ends of domains)"
    else:
        up = f"{up} up"
    back, forward = report["backward_transfer"], report["forward_transfer"]
    ahead = "" if forward is None else f", forward {points(forward)}"
    weighted = report["weighted_accuracy"]
    of_all = "" if weighted is None else f", {percent(weighted)} of all requests"
    warned = report["continual"]["warnings"] if report["continual"] else []
    return [
        *([f"note: {who}"] if (who := answered(report)) else []),
        f"average accuracy  {percent(report['final_accuracy'])}{of_all}",
        f"learning accuracy {percent(report['learning_accuracy'])}",
        f"forgetting        {points(last)}",
        f"transfer          backward {points(back)}{ahead}",
        *_clients(report["over_clients"]),
        f"bytes             {up}, {down} down",
        f"time              {duration(totals['seconds'])}, {count(totals['rounds'], 'round')}",
        *(f"note: {line}" for line in report["missing"]),
        *(f"warning: {line}" for line in warned),
    ]


def _clients(over: Mapping[str, Any] | None) -> Iterator[str]:
    """The mean, the spread and the worst of the clients' own accuracies, where they tell them."""
    if over is None or over["average_accuracy"]["worst_node"] is None:
        return
    found, lost = over["average_accuracy"], over["forgetting"]
    yield (
        f"clients           mean {percent(found['mean'])}, weighted {percent(found['weighted'])}, "
        f"spread {points(found['spread'])}"
    )
    fell = "" if lost is None else f"; forgetting up to {points(lost['worst'])}"
    yield f"worst client      {percent(found['worst'])}, node {found['worst_node']}{fell}"


def _updates(report: Mapping[str, Any]) -> Iterator[str]:
    """How updates were hidden, and what to do where too many values were cut."""
    block = report["sums"]
    if not block or not block["words"]:
        return
    key = f"; key {block['keys'][-1][:16]}" if block["keys"] else ""
    yield f"updates: {block['words']}{key}"
    if hint := saturation(report):
        yield f"hint: {hint}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
