"""Charts over the rounds of a run: loss, accuracy, traffic and time, domain by domain."""

from __future__ import annotations

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
    Point,
    bands,
    gather,
    heading,
    headings,
    line_panel,
    round_axis,
    scale,
)
from .charts import level
from .units import BYTES, duration, percent, size

KEYS = ("loss", "accuracy", "bytes_up", "bytes_down", "seconds")

_LOSS = Line("loss", "training loss", "two", lambda value: f"{value:.4g}")
_ACCURACY = Line("accuracy", "mean accuracy", "one", percent)


def learning(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], width: float) -> str:
    """Training loss above, where it was told, accuracy below, on one axis of rounds."""
    frame = Frame(gather(rounds, KEYS), names, width)
    told = bool(_LOSS.known(frame.points))
    last = TOP + PANEL + GAP if told else TOP
    parts = [
        *bands(frame, 2 if told else 1),
        *(line_panel(frame, _LOSS, TOP, lambda v: f"{v:.4g}") if told else ()),
        *line_panel(frame, _ACCURACY, last, lambda v: f"{100 * v:.4g} %"),
        *round_axis(frame, last + PANEL),
    ]
    label = f"{'Training loss and mean' if told else 'Mean'} accuracy per round"
    return svg.picture(width, last + PANEL + BOTTOM, label, *parts)


def costs(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], width: float) -> str:
    """Bytes up and down above (up rises, down hangs), seconds below, on one axis of rounds."""
    frame = Frame(gather(rounds, KEYS), names, width)
    second = TOP + PANEL + GAP
    parts = [
        *bands(frame, 2),
        *_traffic(frame, TOP),
        *_time(frame, second),
        *round_axis(frame, second + PANEL),
    ]
    label = "Bytes sent and seconds taken per round"
    return svg.picture(width, second + PANEL + BOTTOM, label, *parts)


def _traffic(frame: Frame, top: float) -> list[str]:
    ups = [point.values["bytes_up"] or 0.0 for point in frame.points]
    downs = [point.values["bytes_down"] or 0.0 for point in frame.points]
    name, unit = next((u for u in BYTES if max(*ups, *downs, 1.0) >= u[1]), BYTES[-1])
    marks = svg.ticks(-max(downs) / unit, max([*ups, 0.0 if any(downs) else unit]) / unit, 4)
    y = scale(marks, top)
    right = frame.width - RIGHT
    parts = [level(LEFT, right, y(mark), f"{abs(mark):g} {name}") for mark in marks]
    for point, up, down in zip(frame.points, ups, downs, strict=True):
        hint = f"{frame.what(point)}: {size(up)} up, {size(down)} down"
        bars = _bar(frame, point, y(up / unit), y(0), "one")
        bars += _bar(frame, point, y(0), y(-down / unit), "two")
        parts.append(svg.element("g", svg.title(hint), bars))
    words = headings(top, "bytes up \N{UPWARDS ARROW}", "down \N{DOWNWARDS ARROW}")
    return [*parts, svg.rule(LEFT, y(0), right, y(0), "axis"), words]


def _time(frame: Frame, top: float) -> list[str]:
    values = [point.values["seconds"] or 0.0 for point in frame.points]
    most = max(values) or 1.0
    name, unit = ("h", 3600.0) if most >= 7200 else ("min", 60.0) if most >= 120 else ("s", 1.0)
    marks = svg.ticks(0.0, most / unit, 4)
    y = scale(marks, top)
    right = frame.width - RIGHT
    parts = [level(LEFT, right, y(mark), f"{mark:g} {name}") for mark in marks]
    for point, value in zip(frame.points, values, strict=True):
        bar = _bar(frame, point, y(value / unit), y(0), "three")
        hint = f"{frame.what(point)}: {duration(value)}"
        parts.append(svg.element("g", svg.title(hint), bar))
    return [*parts, svg.rule(LEFT, y(0), right, y(0), "axis"), heading(top, "time per round")]


def _bar(frame: Frame, point: Point, top: float, bottom: float, style: str) -> str:
    wide = frame.slot * (point.last - point.first + 1)
    # Gaps between hairs only shimmer.
    bar = min(36.0, 0.78 * wide) if wide >= 5 else wide
    left = frame.middle(point) - bar / 2
    high = max(0.0, bottom - top)
    return svg.element("rect", x=left, y=top, width=bar, height=high, class_=f"bar {style}")
