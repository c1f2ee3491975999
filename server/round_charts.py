"""Charts over the rounds of a run: loss, accuracy, traffic and time, domain by domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from . import svg
from .charts import dot, level
from .units import BYTES, duration, percent, size

MOST_POINTS = 240
"""Points of one chart; longer runs are drawn as means of neighbouring rounds."""

KEYS = ("loss", "accuracy", "bytes_up", "bytes_down", "seconds")

LEFT, RIGHT = 58.0, 10.0
TOP, PANEL, GAP, BOTTOM = 48.0, 132.0, 42.0, 38.0


@dataclass(frozen=True, slots=True)
class Point:
    """Neighbouring rounds of one domain, as one point.

    Attributes:
        domain: index of the domain.
        first: number of its first round over the whole run, from 1.
        last: number of its last round.
        values: mean per key of `KEYS`; None where no round has the value.
    """

    domain: int
    first: int
    last: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Frame:
    """What the panels of a picture share: points, domains' names, width in px."""

    points: Sequence[Point]
    names: Sequence[str]
    width: float

    @property
    def slot(self) -> float:
        """Width of one round in px."""
        return (self.width - LEFT - RIGHT) / max(1, self.points[-1].last)

    def x(self, rounds: float) -> float:
        """Where the right edge of a round lies; `x(0)` is the left edge of the first."""
        return LEFT + self.slot * rounds

    def middle(self, point: Point) -> float:
        """Where the middle of a point lies."""
        return self.x((point.first - 1 + point.last) / 2)

    def what(self, point: Point) -> str:
        """The point's domain and rounds in words."""
        rounds = f"round {point.first}"
        if point.last > point.first:
            rounds = f"rounds {point.first} to {point.last}, mean"
        return f"{self.names[point.domain]}, {rounds}"


def learning(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], width: float) -> str:
    """Training loss above, accuracy below, on one axis of rounds."""
    frame = Frame(gather(rounds), names, width)
    second = TOP + PANEL + GAP
    parts = [
        *_bands(frame, 2),
        *_line(frame, "loss", TOP, "training loss", "two", lambda v: f"{v:.4g}"),
        *_line(frame, "accuracy", second, "mean accuracy", "one", lambda v: f"{100 * v:.4g} %"),
        *_round_axis(frame, second + PANEL),
    ]
    label = "Training loss and mean accuracy per round"
    return svg.picture(width, second + PANEL + BOTTOM, label, *parts)


def costs(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], width: float) -> str:
    """Bytes up and down above (up rises, down hangs), seconds below, on one axis of rounds."""
    frame = Frame(gather(rounds), names, width)
    second = TOP + PANEL + GAP
    parts = [
        *_bands(frame, 2),
        *_traffic(frame, TOP),
        *_time(frame, second),
        *_round_axis(frame, second + PANEL),
    ]
    label = "Bytes sent and seconds taken per round"
    return svg.picture(width, second + PANEL + BOTTOM, label, *parts)


def thinning(rounds: Sequence[Mapping[str, Any]]) -> int:
    """How many rounds one point stands for."""
    return max(1, math.ceil(len(rounds) / MOST_POINTS))


def gather(rounds: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The rounds in order as at most about `MOST_POINTS` points, none across two domains."""
    step, numbered = thinning(rounds), list(enumerate(rounds, start=1))
    points = []
    for domain, group in groupby(numbered, key=lambda pair: int(pair[1]["domain"])):
        members = list(group)
        for start in range(0, len(members), step):
            part = members[start : start + step]
            means = {key: _mean([entry.get(key) for _, entry in part]) for key in KEYS}
            points.append(Point(domain, part[0][0], part[-1][0], means))
    return points


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _bands(frame: Frame, panels: int) -> list[str]:
    """The domains as bands: a line where one begins, its name above."""
    bottom = TOP + PANEL * panels + GAP * (panels - 1)
    parts, free = [], 0.0
    for domain, group in groupby(frame.points, key=lambda point: point.domain):
        members = list(group)
        left, right = frame.x(members[0].first - 1), frame.x(members[-1].last)
        name = frame.names[domain]
        shown = svg.shorten(name, right - left - 8) or str(domain + 1)
        end = left + 5 + svg.text_width(shown)
        # Where not even a number fits, the next few domains go without.
        named = left >= free and end <= frame.width
        if named:
            text = svg.write(left + 5, 14, shown, "soft")
            parts.append(svg.element("g", svg.title(name), text))
            free = end + 3
        if named or right - left >= 10:
            parts.append(svg.rule(left, 4, left, bottom, "edge"))
    return parts


def _line(
    frame: Frame, key: str, top: float, what: str, style: str, words: Callable[[float], str]
) -> list[str]:
    known = [v for point in frame.points if (v := point.values[key]) is not None]
    if not known:
        return [_heading(top, what), _absent(frame, top, f"no {what} in the log")]
    marks = svg.ticks(min([0.0, *known]), max([0.0, *known]) or 1.0)
    y = _scale(marks, top)
    parts = [level(LEFT, frame.width - RIGHT, y(mark), words(mark)) for mark in marks]
    dots = len(known) <= 60
    for _, group in groupby(frame.points, key=lambda point: point.domain):
        found = [(p, v) for p in group if (v := p.values[key]) is not None]
        parts.append(svg.path([(frame.middle(p), y(v)) for p, v in found], f"line {style}"))
        for p, value in found:
            hint = f"{frame.what(p)}: {what} {_exact(key, value)}"
            # A domain of one value has no line to see.
            if dots or len(found) == 1:
                parts.append(dot(frame.middle(p), y(value), style, hint))
            else:
                parts.append(_touch(frame, p, top, hint))
    return [*parts, _heading(top, what, f"ink-{style}")]


def _traffic(frame: Frame, top: float) -> list[str]:
    ups = [point.values["bytes_up"] or 0.0 for point in frame.points]
    downs = [point.values["bytes_down"] or 0.0 for point in frame.points]
    name, unit = next((u for u in BYTES if max(*ups, *downs, 1.0) >= u[1]), BYTES[-1])
    marks = svg.ticks(-max(downs) / unit, max([*ups, 0.0 if any(downs) else unit]) / unit, 4)
    y = _scale(marks, top)
    right = frame.width - RIGHT
    parts = [level(LEFT, right, y(mark), f"{abs(mark):g} {name}") for mark in marks]
    for point, up, down in zip(frame.points, ups, downs, strict=True):
        hint = f"{frame.what(point)}: {size(up)} up, {size(down)} down"
        bars = _bar(frame, point, y(up / unit), y(0), "one")
        bars += _bar(frame, point, y(0), y(-down / unit), "two")
        parts.append(svg.element("g", svg.title(hint), bars))
    words = svg.element(
        "text",
        svg.element("tspan", "bytes up \N{UPWARDS ARROW}", class_="ink-one"),
        svg.element("tspan", "down \N{DOWNWARDS ARROW}", dx=8, class_="ink-two"),
        x=LEFT + 5,
        y=top - 10,
        class_="strong",
    )
    return [*parts, svg.rule(LEFT, y(0), right, y(0), "axis"), words]


def _time(frame: Frame, top: float) -> list[str]:
    values = [point.values["seconds"] or 0.0 for point in frame.points]
    most = max(values) or 1.0
    name, unit = ("h", 3600.0) if most >= 7200 else ("min", 60.0) if most >= 120 else ("s", 1.0)
    marks = svg.ticks(0.0, most / unit, 4)
    y = _scale(marks, top)
    right = frame.width - RIGHT
    parts = [level(LEFT, right, y(mark), f"{mark:g} {name}") for mark in marks]
    for point, value in zip(frame.points, values, strict=True):
        bar = _bar(frame, point, y(value / unit), y(0), "three")
        hint = f"{frame.what(point)}: {duration(value)}"
        parts.append(svg.element("g", svg.title(hint), bar))
    return [*parts, svg.rule(LEFT, y(0), right, y(0), "axis"), _heading(top, "time per round")]


def _round_axis(frame: Frame, y: float) -> list[str]:
    last, right = frame.points[-1].last, frame.width - RIGHT
    marks = svg.ticks(1, last, max(2, int((right - LEFT) / 70)))
    numbers = {1, *(int(mark) for mark in marks if mark == int(mark) and 1 <= mark <= last)}
    parts = [svg.write(right, y + 33, "round", "soft", "end")]
    for number in sorted(numbers):
        # Beside the 1 there must be room for the next.
        if number == 1 or frame.slot * (number - 1) >= 24:
            words = f"{number:,}"
            x = min(frame.x(number - 0.5), frame.width - svg.text_width(words) / 2)
            parts.append(svg.write(x, y + 17, words, "soft", "middle"))
    return parts


def _scale(marks: Sequence[float], top: float) -> Callable[[float], float]:
    low, high = marks[0], marks[-1]
    return lambda value: top + PANEL * (high - value) / (high - low)


def _bar(frame: Frame, point: Point, top: float, bottom: float, style: str) -> str:
    wide = frame.slot * (point.last - point.first + 1)
    # Gaps between hairs only shimmer.
    bar = min(36.0, 0.78 * wide) if wide >= 5 else wide
    left = frame.middle(point) - bar / 2
    high = max(0.0, bottom - top)
    return svg.element("rect", x=left, y=top, width=bar, height=high, class_=f"bar {style}")


def _touch(frame: Frame, point: Point, top: float, hint: str) -> str:
    left, right = frame.x(point.first - 1), frame.x(point.last)
    return svg.element(
        "rect", svg.title(hint), x=left, y=top, width=right - left, height=PANEL, class_="touch"
    )


def _heading(top: float, text: str, style: str = "") -> str:
    return svg.write(LEFT + 5, top - 10, text, f"strong {style}".strip())


def _absent(frame: Frame, top: float, text: str) -> str:
    return svg.write((LEFT + frame.width - RIGHT) / 2, top + PANEL / 2, text, "soft", "middle")


def _exact(key: str, value: float) -> str:
    return percent(value) if key == "accuracy" else f"{value:.4g}"
