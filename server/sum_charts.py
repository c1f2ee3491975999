"""Charts of hidden sums over the rounds of a run: values that were cut, the scale and the peak."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import svg
from .chart_frame import (
    BOTTOM,
    GAP,
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
    line_panel,
    round_axis,
    scale,
    trace,
)
from .charts import level
from .units import digits

_CUT = Line("saturated_rate", "values cut", "two", lambda v: f"{digits(100 * v)} %")
_PEAK = Line("peak", "largest value", "one", lambda v: f"{v:.4g}")
_SCALE = Line("scale", "scale", "two", lambda v: f"{v:.4g}")

# Height of the upper panel where no value was ever cut.
_LEAST_RATE = 0.01


def fitting(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], width: float) -> str:
    """Share of the values that were cut above; scale and largest value below, logarithmic.

    Args:
        rounds: entries of the report's `sums`, at least one, by domain.
        names: of the domains.
        width: in px.
    """
    keys = [line.key for line in (_CUT, _PEAK, _SCALE)]
    frame = Frame(gather(rounds, keys), names, width)
    second = TOP + PANEL + GAP
    parts = [
        *bands(frame, 2),
        *line_panel(frame, _CUT, TOP, lambda v: f"{100 * v:.4g} %", _LEAST_RATE),
        *_sizes(frame, second),
        *round_axis(frame, second + PANEL),
    ]
    label = "Share of values cut, and scale and largest value, per round"
    return svg.picture(width, second + PANEL + BOTTOM, label, *parts)


def _sizes(frame: Frame, top: float) -> list[str]:
    known = [v for line in (_PEAK, _SCALE) for v in line.known(frame.points) if v > 0.0]
    if not known:
        return [heading(top, "scale"), absent(frame, top, "no scale in the log")]
    marks = _decades(min(known), max(known))
    place = scale(marks, top)

    def y(value: float) -> float:
        return place(math.log10(value)) if value > 0.0 else top + PANEL

    right = frame.width - RIGHT
    parts = [level(LEFT, right, place(mark), f"{10.0**mark:.4g}") for mark in marks]
    for line in (_SCALE, _PEAK):
        parts += trace(frame, line, top, y)
    return [*parts, headings(top, _PEAK.what, _SCALE.what)]


def _decades(low: float, high: float) -> list[float]:
    """Exponents of ten in equal steps that cover low..high, at least two and at most six."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 5))
    count = max(1, math.ceil((last - first) / step))
    return [float(first + step * i) for i in range(count + 1)]
