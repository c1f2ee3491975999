"""How epsilon grew over the rounds of a run, against its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import svg
from .chart_frame import (
    BOTTOM,
    LEFT,
    PANEL,
    RIGHT,
    TOP,
    Frame,
    Line,
    absent,
    bands,
    gather,
    heading,
    headings,
    round_axis,
    scale,
    trace,
)
from .charts import level

_EPSILON = Line("epsilon", "epsilon spent", "one", lambda value: f"{value:.4g}")


def growth(unit: Mapping[str, Any], names: Sequence[str], width: float) -> str:
    """Epsilon of the client that spent most, round by round, and the line it may not cross.

    Args:
        unit: of the report's `privacy`, with at least one round.
        names: of the domains.
        width: in px.
    """
    frame = Frame(gather(unit["rounds"], ["epsilon"]), names, width)
    parts = [*bands(frame, 1), *_panel(frame, unit["target"]), *round_axis(frame, TOP + PANEL)]
    label = "Epsilon spent by the client that spent most, per round"
    return svg.picture(width, TOP + PANEL + BOTTOM, label, *parts)


def _panel(frame: Frame, target: float | None) -> list[str]:
    known = _EPSILON.known(frame.points)
    what = "epsilon spent"
    if not known:
        return [heading(TOP, what), absent(frame, TOP, "no client said what it spent")]
    right = frame.width - RIGHT
    marks = svg.ticks(0.0, max([*known, target or 0.0]) or 1.0)
    y = scale(marks, TOP)
    parts = [level(LEFT, right, y(mark), f"{mark:.4g}") for mark in marks]
    if target is not None:
        line = svg.rule(LEFT, y(target), right, y(target), "line two")
        parts.append(svg.element("g", svg.title(f"target: epsilon {target:g}"), line))
    parts += trace(frame, _EPSILON, TOP, y)
    if target is None:
        return [*parts, heading(TOP, what, "ink-one")]
    return [*parts, headings(TOP, what, f"target {target:g}")]
