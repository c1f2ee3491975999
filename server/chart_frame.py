"""What the charts over the rounds of a run share: one axis of rounds, domain by domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from . import svg
from .charts import dot, level

MOST_POINTS = 240
"""Points of one chart; longer runs are drawn as means of neighbouring rounds."""

LEFT, RIGHT = 58.0, 10.0
TOP, PANEL, GAP, BOTTOM = 48.0, 132.0, 42.0, 38.0

_MOST_DOTS = 60


@dataclass(frozen=True, slots=True)
class Point:
    """Neighbouring rounds of one domain, as one point.

    Attributes:
        domain: index of the domain.
        first: number of its first round over the whole run, from 1.
        last: number of its last round.
        values: mean per key; None where no round has the value.
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


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel.

    Attributes:
        key: of the points' values.
        what: its name in words.
        style: class of its colour, `one` or `two`.
        exact: a value in words.
    """

    key: str
    what: str
    style: str
    exact: Callable[[float], str]

    def known(self, points: Sequence[Point]) -> list[float]:
        """Its values, where there are any."""
        return [value for point in points if (value := point.values[self.key]) is not None]


def thinning(rounds: Sequence[Mapping[str, Any]]) -> int:
    """How many rounds one point stands for."""
    return max(1, math.ceil(len(rounds) / MOST_POINTS))


def gather(rounds: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Point]:
    """The rounds in order as at most about `MOST_POINTS` points, none across two domains."""
    step, numbered = thinning(rounds), list(enumerate(rounds, start=1))
    points = []
    for domain, group in groupby(numbered, key=lambda pair: int(pair[1]["domain"])):
        members = list(group)
        for start in range(0, len(members), step):
            part = members[start : start + step]
            means = {key: _mean([entry.get(key) for _, entry in part]) for key in keys}
            points.append(Point(domain, part[0][0], part[-1][0], means))
    return points


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def bands(frame: Frame, panels: int) -> list[str]:
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


def line_panel(
    frame: Frame, line: Line, top: float, words: Callable[[float], str], most: float = 1.0
) -> list[str]:
    """A panel with one line from zero up; `most` is the height where all values are zero."""
    known = line.known(frame.points)
    if not known:
        return [heading(top, line.what), absent(frame, top, f"no {line.what} in the log")]
    marks = svg.ticks(min([0.0, *known]), max([0.0, *known]) or most)
    y = scale(marks, top)
    parts = [level(LEFT, frame.width - RIGHT, y(mark), words(mark)) for mark in marks]
    return [*parts, *trace(frame, line, top, y), heading(top, line.what, f"ink-{line.style}")]


def trace(frame: Frame, line: Line, top: float, y: Callable[[float], float]) -> list[str]:
    """The line itself, interrupted between domains, with hints for the pointer."""
    parts, few = [], len(line.known(frame.points)) <= _MOST_DOTS
    for _, group in groupby(frame.points, key=lambda point: point.domain):
        found = [(p, v) for p in group if (v := p.values[line.key]) is not None]
        parts.append(svg.path([(frame.middle(p), y(v)) for p, v in found], f"line {line.style}"))
        for p, value in found:
            hint = f"{frame.what(p)}: {line.what} {line.exact(value)}"
            # A domain of one value has no line to see.
            if few or len(found) == 1:
                parts.append(dot(frame.middle(p), y(value), line.style, hint))
            else:
                parts.append(_touch(frame, p, top, hint))
    return parts


def round_axis(frame: Frame, y: float) -> list[str]:
    """Numbers of rounds below the panels."""
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


def scale(marks: Sequence[float], top: float) -> Callable[[float], float]:
    """Where a value lies in the panel at `top` whose lowest and highest are those of `marks`."""
    low, high = marks[0], marks[-1]
    return lambda value: top + PANEL * (high - value) / (high - low)


def heading(top: float, text: str, style: str = "") -> str:
    """The name of a panel."""
    return svg.write(LEFT + 5, top - 10, text, f"strong {style}".strip())


def headings(top: float, first: str, second: str) -> str:
    """The names of the two things that a panel shows, each in its colour."""
    return svg.element(
        "text",
        svg.element("tspan", svg.escape(first), class_="ink-one"),
        svg.element("tspan", svg.escape(second), dx=8, class_="ink-two"),
        x=LEFT + 5,
        y=top - 10,
        class_="strong",
    )


def absent(frame: Frame, top: float, text: str) -> str:
    """What stands in a panel that has nothing to show."""
    return svg.write((LEFT + frame.width - RIGHT) / 2, top + PANEL / 2, text, "soft", "middle")


def _touch(frame: Frame, point: Point, top: float, hint: str) -> str:
    left, right = frame.x(point.first - 1), frame.x(point.last)
    return svg.element(
        "rect", svg.title(hint), x=left, y=top, width=right - left, height=PANEL, class_="touch"
    )
