"""The picture of an attack drill: what an attacker gets from an update, bare and protected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import svg
from .page_style import style_sheet
from .units import percent

_ROW, _HEAD, _LINE, _GAP = 25.0, 30.0, 17.0, 30.0
_STYLES = {"bare": "bad", "sum": "two", "dp": "one", "dp_1": "one", "sealed": "three"}


class Panel(NamedTuple):
    """One question of the drill: its bars, what guessing gives and a plain sentence below."""

    heading: str
    rows: Sequence[tuple[str, str, float, str]]
    guess: float
    below: str


def panels(drill: Mapping[str, Any]) -> list[Panel]:
    """The questions of a drill as it stands in `audit.json`, each with its sentence."""
    found = [_membership(drill["membership"])] if drill.get("membership") else []
    inversion = drill.get("inversion") or {}
    readings = inversion.get("readings") or []
    if any(reading["tokens"] is not None for reading in readings):
        found.append(_words(inversion))
    if readings:
        found.append(_texts(inversion))
    return found


def drill_picture(drill: Mapping[str, Any], width: float) -> str:
    """All questions as bars, one below the other; empty where nothing was tried.

    Args:
        drill: as it stands in `audit.json`.
        width: in px.
    """
    parts: list[str] = []
    top = 0.0
    for panel in panels(drill):
        lines = [*_wrapped(panel.heading, width)]
        for line in lines:
            parts.append(svg.write(0.0, top + 14, line, "strong"))
            top += _LINE
        top += 8
        parts += _bars(panel, top, width)
        top += _ROW * len(panel.rows) + 6
        for line in _wrapped(panel.below, width):
            parts.append(svg.write(0.0, top + 14, line, "soft"))
            top += _LINE
        top += _GAP
    if not parts:
        return ""
    return svg.picture(width, top - _GAP + 6, "What an attacker gets from an update", *parts)


def standalone(drill: Mapping[str, Any], width: float) -> str:
    """The picture as a file of its own, light or dark as the reader's screen; empty for none."""
    picture = drill_picture(drill, width)
    own = "svg { background: var(--paper); font-family: system-ui, sans-serif; }"
    style = f"<style>{style_sheet()}{own}</style>"
    opened = picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return opened.replace(">", f">{style}", 1) + "\n" if picture else ""


def _membership(rows: Sequence[Mapping[str, Any]]) -> Panel:
    said = {row["key"]: row for row in rows}
    bare = said["bare"]
    below = (
        f"Shown one record that the client used and one that nobody used, an attacker with the "
        f"bare update is right in {percent(bare['area'])} of the cases; 50 % is guessing. "
        f"Where at most 1 % of the others may be accused, he finds {percent(bare['found'])} of "
        f"the client's records{_with(said, 'found')}. Tried on {bare['members']} records."
    )
    return Panel("Was this record used?", _rows(rows, "area"), 0.5, below)


def _words(inversion: Mapping[str, Any]) -> Panel:
    readings = inversion["readings"]
    said = {row["key"]: row for row in readings}
    below = (
        f"From one step on one record, with LoRA's A and B trained in all layers, he reads "
        f"{percent(said['bare']['tokens'])} of the record's tokens"
        f"{_with(said, 'tokens')}. Tried on {inversion['records']} records."
        f"{_frozen(inversion)}"
    )
    return Panel("What did the record say?", _rows(readings, "tokens"), 0.0, below)


def _texts(inversion: Mapping[str, Any]) -> Panel:
    readings, many = inversion["readings"], inversion["candidates"]
    said = {row["key"]: row for row in readings}
    below = (
        f"From one step on one record, with the layers that this config adapts, the attacker "
        f"picks the right one of {many} texts that he knows in {percent(said['bare']['named'])} "
        f"of the cases{_with(said, 'named')}; guessing is right in {percent(1 / many)}."
        f"{_frozen(inversion)}"
    )
    return Panel("Which of the known texts was it?", _rows(readings, "named"), 1 / many, below)


def _frozen(inversion: Mapping[str, Any]) -> str:
    return " This config keeps A still, which takes the ground from this attack." * bool(
        inversion["frozen"]
    )


def _with(said: Mapping[str, Mapping[str, Any]], value: str) -> str:
    parts = []
    for key, words in (("dp", "the configured noise"), ("dp_1", "noise for epsilon 1")):
        if key in said and said[key][value] is not None:
            parts.append(f"{percent(said[key][value])} with {words}")
    return f" ({', '.join(parts)})" if parts else ""


def _rows(rows: Sequence[Mapping[str, Any]], value: str) -> list[tuple[str, str, float, str]]:
    return [
        (row["name"], _STYLES.get(row["key"], "one"), row[value], percent(row[value]))
        for row in rows
        if row[value] is not None
    ]


def _bars(panel: Panel, top: float, width: float) -> list[str]:
    tail = svg.text_width("100.0 %") + 14
    names = max(svg.text_width(name) for name, *_ in panel.rows) + 14
    left = min(0.48 * width, names)
    room = width - left - tail
    parts = []
    for i, (name, style, value, words) in enumerate(panel.rows):
        y, long = top + _ROW * i, max(1.0, room * min(1.0, value))
        label = svg.write(left - 10, y + 15, svg.shorten(name, left - 12), "", "end")
        box = svg.element(
            "rect", x=left, y=y + 2, width=long, height=17, rx=2, class_=f"bar {style}"
        )
        number = svg.write(left + long + 8, y + 15, words)
        parts.append(svg.element("g", svg.title(f"{name}: {words}"), label, box, number))
    if panel.guess:
        x, bottom = left + room * panel.guess, top + _ROW * len(panel.rows)
        parts.append(svg.rule(x, top - 2, x, bottom, "edge"))
        if panel.guess > 0.1:  # below, the label would stand in the heading
            parts.append(svg.write(x + 4, top - 5, "guessing", "soft"))
    return parts


def _wrapped(text: str, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and svg.text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
