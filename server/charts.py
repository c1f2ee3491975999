"""Charts of what a run learnt and kept: each a picture of a given width in px, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from . import svg
from .units import DASH, count, percent, points

Cell: TypeAlias = float | None
"""A rate 0..1, or None where nothing was measured."""

LEVELS = 21
"""Steps of the heat map's colours: 0, 5, ..., 100 %."""

MOST_NUMBERS = 24
"""Domains up to which the heat map's cells hold numbers."""

# One hue from pale to deep (on dark pages from deep to pale), after ColorBrewer's "Blues".
_LIGHT = ("#f3f7fb", "#d3e3f3", "#9cc6e3", "#549ccb", "#2171b5", "#08306b")
_DARK = ("#1b2733", "#173f63", "#1f669f", "#4896c8", "#93c4e6", "#e6f2fb")


def heat_colours(dark: bool) -> list[tuple[str, str]]:
    """Fill and text colour of each level; their contrast is at least 4.5 (WCAG AA)."""
    stops = _DARK if dark else _LIGHT
    fills = [_blend(stops, level / (LEVELS - 1)) for level in range(LEVELS)]
    # Where black and white are equally legible (0.179), both still have a contrast of 4.58.
    return [(fill, "#000000" if luminance(fill) > 0.179 else "#ffffff") for fill in fills]


def luminance(colour: str) -> float:
    """Relative luminance 0..1 of `#rrggbb` as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def heat_map(
    names: Sequence[str], matrix: Sequence[Sequence[Cell]], average: Sequence[Cell], width: float
) -> str:
    """The accuracy matrix [T, T] with its rows' means [T].

    Up to `MOST_NUMBERS` domains the cells hold numbers, and the picture may come out wider than
    `width`: the page lets it scroll.
    """
    labels = [f"{i + 1} {name}" for i, name in enumerate(names)]
    left = min(0.3 * width, max(map(svg.text_width, labels)) + 14)
    numbers = len(names) <= MOST_NUMBERS
    right = 56.0 if numbers else 4.0
    cell = min(92.0, (width - left - right) / len(names))
    cell = max(27.0, cell) if numbers else cell
    high = max(26.0, min(40.0, 0.62 * cell)) if numbers else cell
    edge, top = left + cell * len(names), 44.0
    parts = _heat_heads(names, labels, left, cell, high)
    for i, row in enumerate(matrix):
        y = top + high * i
        for j in range(i + 1):
            parts.append(
                heat_cell(
                    row[j],
                    (left + cell * j, y, cell, high),
                    i == j,
                    numbers,
                    f"{names[j]} after {names[i]}",
                )
            )
        if numbers:
            mean = DASH if average[i] is None else cell_number(average[i] or 0.0, 40.0)
            parts.append(svg.write(edge + right - 8, y + high / 2 + 4, mean, "strong", "end"))
    if numbers:
        parts.append(svg.write(edge + right - 8, 34, "mean", "soft", "end"))
    bottom = top + high * len(names)
    parts += ramp(left, bottom + 14)
    label = f"Accuracy matrix of {count(len(names), 'domain')}"
    return svg.picture(max(edge + right, left + 220), bottom + 44, label, *parts)


def _heat_heads(
    names: Sequence[str], labels: Sequence[str], left: float, cell: float, high: float
) -> list[str]:
    """Names along both edges; numbers alone, and every few, where there is no room."""
    parts = [
        svg.write(left, 14, "accuracy on \N{RIGHTWARDS ARROW}", "soft"),
        svg.write(left - 10, 34, "after \N{DOWNWARDS ARROW}", "soft", "end"),
    ]
    step_down, step_right = math.ceil(13 / high), math.ceil(20 / cell)
    for i, name in enumerate(names):
        if i % step_down == 0:
            shown = svg.shorten(labels[i], left - 12)
            parts.append(_named(left - 10, 44 + high * (i + 0.5) + 4, shown, name, "", "end"))
        if i % step_right == 0:
            shown = svg.shorten(name, cell - 6) if cell >= 48 else str(i + 1)
            parts.append(_named(left + cell * (i + 0.5), 34, shown, name, "soft", "middle"))
    return parts


def heat_cell(
    value: Cell, place: tuple[float, float, float, float], new: bool, numbers: bool, what: str
) -> str:
    """One cell of a heat map.

    Args:
        value: rate that its colour says.
        place: x, y, width and height in px.
        new: whether it has a rim, for a domain that was just learnt.
        numbers: whether it holds its value in percent.
        what: for the pointer.
    """
    x, y, cell, high = place
    gap = 1.0 if numbers else 0.25
    level = "none" if value is None else f"h{round(min(1.0, max(0.0, value)) * (LEVELS - 1))}"
    box = svg.element(
        "rect",
        x=x + gap,
        y=y + gap,
        width=cell - 2 * gap,
        height=high - 2 * gap,
        class_=f"{level} new" if new and numbers else level,
    )
    shown = DASH if value is None else cell_number(value, cell)
    middle = x + cell / 2, y + high / 2 + 4
    ink = "soft" if value is None else f"ink-{level}"
    words = svg.write(*middle, shown, ink, "middle") if numbers else ""
    if value is None and not numbers and cell >= 6:
        # Without a number nothing else tells it from a rate of 0.
        words = svg.rule(x + 0.3 * cell, y + high / 2, x + 0.7 * cell, y + high / 2, "axis")
    return svg.element("g", svg.title(f"{what}: {percent(value)}"), box, words)


def cell_number(value: float, cell: float) -> str:
    """A rate in percent, with a decimal where `cell` px have room for it."""
    return f"{100 * value:.1f}" if cell >= 38 else f"{100 * value:.0f}"


def ramp(x: float, y: float) -> list[str]:
    """The key to a heat map's colours."""
    boxes = [
        svg.element("rect", x=x + 32 + 6.0 * i, y=y, width=6.3, height=10, class_=f"h{i}")
        for i in range(LEVELS)
    ]
    ends = (x, "0 %"), (x + 40 + 6.0 * LEVELS, "100 %")
    return [*boxes, *(svg.write(at, y + 9, text, "soft") for at, text in ends)]


def over_domains(
    names: Sequence[str],
    average: Sequence[Cell],
    forgetting: Sequence[Cell],
    width: float,
    own: Sequence[Cell] = (),
) -> str:
    """Average accuracy and forgetting [T] after each domain: lines on one scale of percent.

    Args:
        names: of the domains.
        average: accuracy.
        forgetting: since each domain's best.
        width: in px.
        own: average accuracy of the adapter's own head, where another one answers.
    """
    height, left, right, top, bottom = 300.0, 52.0, 92.0, 14.0, 40.0
    known = [value for value in (*average, *forgetting, *own) if value is not None]
    marks = svg.ticks(min([0.0, *known]), max([0.0, *known]) or 1.0)
    x = spread(len(names), left + 16, width - right - 8)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = [level(left, width - right, y(mark), f"{100 * mark:.0f} %") for mark in marks]
    parts += domain_names(names, x, height - bottom + 20)
    ends: list[tuple[float, str, str, str]] = []
    radius = 3.5 if len(names) <= MOST_NUMBERS else 2.0
    lines: tuple[tuple[Sequence[Cell], str, str, Callable[[float | None], str]], ...] = (
        (own, "three", "own head", percent),
        (average, "one", "average", percent),
        (forgetting, "two", "forgetting", points),
    )
    for values, style, word, say in lines:
        line = [(x(i), None if value is None else y(value)) for i, value in enumerate(values)]
        parts.append(svg.path(line, f"line {style}"))
        parts += [
            dot(x(i), y(value), style, f"{word} after {names[i]}: {say(value)}", radius)
            for i, value in enumerate(values)
            if value is not None
        ]
        last = [(x(i), value) for i, value in enumerate(values) if value is not None][-1:]
        ends += [(y(value), say(value), word, style) for _, value in last]
    parts += end_labels(ends, width - right + 14, height - bottom + 2)
    label = "Average accuracy and forgetting after each domain"
    return svg.picture(width, height, label, *parts)


def spread(num: int, low: float, high: float) -> Callable[[int], float]:
    """Where the i-th of `num` points stands between `low` and `high`; one stands in the middle."""
    step = (high - low) / (num - 1) if num > 1 else 0.0
    first = low if num > 1 else (low + high) / 2
    return lambda i: first + step * i


def level(left: float, right: float, y: float, text: str) -> str:
    """A hairline at a tick of the vertical axis, its value to the left."""
    return svg.rule(left, y, right, y) + svg.write(left - 8, y + 4, text, "soft", "end")


def dot(x: float, y: float, style: str, hint: str, radius: float = 3.5) -> str:
    """A point of a line that says what it is when pointed at; below 3 px without a rim."""
    kind = "dot" if radius >= 3 else "dot bare"
    return svg.element("circle", svg.title(hint), cx=x, cy=y, r=radius, class_=f"{kind} {style}")


def domain_names(names: Sequence[str], x: Callable[[int], float], y: float) -> list[str]:
    """The domains below a chart, or their numbers, every few, where there is no room."""
    room = x(1) - x(0) if len(names) > 1 else 160.0
    words = room >= 52
    step = 1 if words else math.ceil(22 / room)
    return [
        _named(
            x(i), y, svg.shorten(name, room - 8) if words else str(i + 1), name, "soft", "middle"
        )
        for i, name in enumerate(names)
        if i % step == 0
    ]


def end_labels(ends: list[tuple[float, str, str, str]], x: float, lowest: float) -> list[str]:
    """Value and name at the end of each line, pushed apart where they would overlap.

    Args:
        ends: y of each line's end, value, name and class of its colour.
        x: where the labels begin.
        lowest: y that no label goes below.
    """
    ordered, places = sorted(ends), list[float]()
    for y, *_ in ordered:
        places.append(max(y, places[-1] + 34 if places else -math.inf))
    free = lowest - 15
    for i in reversed(range(len(places))):
        places[i] = min(places[i], free)
        free = places[i] - 34
    parts = []
    for at, (_, value, word, style) in zip(places, ordered, strict=True):
        parts.append(svg.write(x, at + 1, value, f"strong ink-{style}"))
        parts.append(svg.write(x, at + 15, word, f"ink-{style}"))
    return parts


def _named(x: float, y: float, shown: str, name: str, style: str, anchor: str) -> str:
    return svg.element("g", svg.title(name), svg.write(x, y, shown, style, anchor)) if shown else ""


def _blend(stops: Sequence[str], rate: float) -> str:
    at = rate * (len(stops) - 1)
    i = min(int(at), len(stops) - 2)
    pairs = ((int(stops[i][k : k + 2], 16), int(stops[i + 1][k : k + 2], 16)) for k in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * (at - i)):02x}" for a, b in pairs)
