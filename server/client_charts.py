"""Charts of single clients: how well each one's own test records are answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import svg
from .bar_charts import short
from .charts import MOST_NUMBERS, cell_number, heat_cell, ramp
from .units import DASH, count

MOST_ROWS = 24
"""Clients that are drawn; the worst, where there are more."""

_TOP, _HIGH = 26.0, 26.0


def ranked(clients: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The clients by their average accuracy, the worst first and those without one last."""
    return sorted(
        clients,
        key=lambda c: (c["average_accuracy"] is None, c["average_accuracy"] or 0.0, c["node"]),
    )


def fares(clients: Sequence[Mapping[str, Any]], names: Sequence[str], width: float) -> str:
    """Accuracy of clients (rows) on domains (columns) at the end, each row's mean beside it.

    Up to `MOST_NUMBERS` domains the cells hold numbers, and the picture may come out wider than
    `width`: the page lets it scroll.

    Args:
        clients: entries of the report's `over_clients`, in order; the first `MOST_ROWS` are drawn.
        names: of the domains.
        width: in px.
    """
    shown = clients[:MOST_ROWS]
    labels = [f"node {short(client['node'])}" for client in shown]
    left = min(0.34 * width, max(map(svg.text_width, labels)) + 14)
    numbers = len(names) <= MOST_NUMBERS
    cell = min(92.0, (width - left - 56.0) / len(names))
    cell = max(27.0, cell) if numbers else cell
    edge = left + cell * len(names)
    parts = [svg.write(edge + 48, 14, "mean", "soft", "end"), *_heads(names, left, cell)]
    for i, (client, label) in enumerate(zip(shown, labels, strict=True)):
        y = _TOP + _HIGH * i
        name = svg.write(left - 10, y + 17, svg.shorten(label, left - 12), "", "end")
        told = f"node {client['node']}: {count(client['answers'], 'test record')}"
        parts.append(svg.element("g", svg.title(told), name))
        for j, value in enumerate(client["domains"]):
            place = (left + cell * j, y, cell, _HIGH)
            hint = f"node {client['node']}, {names[j]}"
            parts.append(heat_cell(value, place, False, numbers, hint))
        mean = client["average_accuracy"]
        words = DASH if mean is None else cell_number(mean, 40.0)
        parts.append(svg.write(edge + 48, y + 17, words, "strong", "end"))
    bottom = _TOP + _HIGH * len(shown)
    parts += ramp(left, bottom + 14)
    label = f"Accuracy of {count(len(shown), 'client')} on {count(len(names), 'domain')}"
    return svg.picture(max(edge + 56, left + 220), bottom + 44, label, *parts)


def _heads(names: Sequence[str], left: float, cell: float) -> list[str]:
    """Names above the columns; numbers alone, and every few, where there is no room."""
    step = math.ceil(20 / cell)
    parts = []
    for i, name in enumerate(names):
        words = svg.shorten(name, cell - 6) if cell >= 48 else str(i + 1)
        if i % step == 0 and words:
            text = svg.write(left + cell * (i + 0.5), 14, words, "soft", "middle")
            parts.append(svg.element("g", svg.title(name), text))
    return parts
