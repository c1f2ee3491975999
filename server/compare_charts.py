"""Charts of several runs side by side, each run in its own colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import svg
from .charts import MOST_NUMBERS, domain_names, dot, end_labels, level, spread
from .units import percent, points

LIGHT = ("#1f6cb0", "#b8500f", "#1a7a4c", "#8b3fa0", "#b3261e", "#5b6876", "#7d6400", "#0c7782")
DARK = ("#6cb2ea", "#f0a05a", "#5fd09a", "#cf9be0", "#ff8a80", "#9aa8b6", "#d9c04a", "#5cc9d6")
"""Colours of the runs on light and dark pages; a ninth run has the first one's again."""

_ROW, _GROUP = 15.0, 12.0


def colour(run: int) -> str:
    """The class of the `run`-th run's colour."""
    return f"r{run % len(LIGHT)}"


def averages(names: Sequence[str], runs: Sequence[Mapping[str, Any]], width: float) -> str:
    """Average accuracy of each run [T] after each domain, on one scale of percent.

    Args:
        names: of the domains in common.
        runs: entries of a comparison.
        width: in px.
    """
    left, top, bottom = 52.0, 14.0, 40.0
    height = max(320.0, 34.0 * len(runs) + 60.0)
    words = [percent(1.0), *(run["run"] for run in runs)]
    right = min(0.3 * width, max(map(svg.text_width, words)) + 24)
    known = [v for run in runs for v in run["average_accuracy"] if v is not None]
    marks = svg.ticks(min([0.0, *known]), max([0.0, *known]) or 1.0)
    x = spread(len(names), left + 16, width - right - 8)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = [level(left, width - right, y(mark), f"{100 * mark:.0f} %") for mark in marks]
    parts += domain_names(names, x, height - bottom + 20)
    ends: list[tuple[float, str, str, str]] = []
    radius = 3.5 if len(names) <= MOST_NUMBERS else 2.0
    for i, run in enumerate(runs):
        values, style = run["average_accuracy"], colour(i)
        line = [(x(j), None if value is None else y(value)) for j, value in enumerate(values)]
        parts.append(svg.path(line, f"line {style}"))
        parts += [
            dot(x(j), y(value), style, f"{run['run']} after {names[j]}: {percent(value)}", radius)
            for j, value in enumerate(values)
            if value is not None
        ]
        last = [value for value in values if value is not None][-1:]
        word = svg.shorten(run["run"], right - 16)
        ends += [(y(value), percent(value), word, style) for value in last]
    parts += end_labels(ends, width - right + 14, height - bottom + 2)
    return svg.picture(width, height, "Average accuracy of each run after each domain", *parts)


def kept(names: Sequence[str], runs: Sequence[Mapping[str, Any]], width: float) -> str:
    """For each domain and run: accuracy at the end, filled, and at its best, hollow.

    The line between the two is what was forgotten.

    Args:
        names: of the domains in common.
        runs: entries of a comparison.
        width: in px.
    """
    left = min(0.3 * width, max(map(svg.text_width, names)) + 14)
    right, top = 56.0, 24.0
    group = _ROW * len(runs) + _GROUP
    bottom = top + group * len(names)

    def x(value: float) -> float:
        return left + 8 + (width - left - right - 8) * min(1.0, max(0.0, value))

    parts = []
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(svg.rule(x(mark), top, x(mark), bottom))
        parts.append(svg.write(x(mark), 14, f"{100 * mark:.0f} %", "soft", "middle"))
    for j, name in enumerate(names):
        y = top + group * j
        words = svg.write(left - 6, y + group / 2 + 4, svg.shorten(name, left - 10), "", "end")
        parts.append(svg.element("g", svg.title(name), words))
        parts.append(svg.rule(left, y + group, width - right, y + group))
        for i, run in enumerate(runs):
            at = y + _GROUP / 2 + _ROW * (i + 0.5)
            now, best = run["domain_accuracy"][j], run["domain_best"][j]
            if now is not None and best is not None:
                what = f"{run['run']}, {name}"
                parts.append(_pair((x(now), x(best), at), colour(i), what, now, best))
                parts.append(svg.write(width - 4, at + 4, percent(now), f"ink-{colour(i)}", "end"))
    label = "Accuracy of each run on each domain, at the end and at best"
    return svg.picture(width, bottom + 4, label, *parts)


def swatch(run: int) -> str:
    """A small picture of a run's colour."""
    box = svg.element("rect", x=0, y=2, width=12, height=12, rx=2, class_=f"bar {colour(run)}")
    return svg.element("svg", box, viewBox="0 0 12 16", width=12, height=16, aria_hidden="true")


def _pair(place: tuple[float, float, float], style: str, what: str, now: float, best: float) -> str:
    x, top, y = place
    hint = f"{what}: {percent(now)}, at best {percent(best)}, forgetting {points(best - now)}"
    hollow = svg.element("circle", cx=top, cy=y, r=3.5, class_=f"ring {style}")
    line = svg.rule(x, y, top, y, f"line {style}") if abs(top - x) > 1 else ""
    return svg.element("g", svg.title(hint), line, hollow, dot(x, y, style, hint, 4.0))
