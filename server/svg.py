"""Words of SVG: escaped text, elements, axes; what the report's charts are made of.

No namespace is written: the pictures stand inside an HTML page, where it is implied.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Sequence

FONT = 12.0
"""Size of the charts' text in px; the page's style sheet gives classes their sizes."""

_UNSAYABLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(value: object) -> str:
    """`value` as text for HTML and XML, attributes included; what XML cannot say becomes U+FFFD."""
    return html.escape(_UNSAYABLE.sub("\ufffd", str(value)))


def element(tag: str, *children: str, **attributes: object) -> str:
    """`<tag>` around markup that is already escaped; `stroke_width` is written `stroke-width`."""
    pairs = "".join(
        f' {name.strip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return f"<{tag}{pairs}>{inside}</{tag}>" if inside else f"<{tag}{pairs}/>"


def picture(width: float, height: float, label: str, *children: str) -> str:
    """A whole picture `width` x `height` in px, read out as `label`."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def title(text: object) -> str:
    """What a pointer that rests on the parent shows."""
    return element("title", escape(text))


def write(x: float, y: float, text: object, style: str = "", anchor: str = "start") -> str:
    """Text with its baseline at `y`."""
    return element("text", escape(text), x=x, y=y, class_=style or None, text_anchor=anchor)


def rule(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def path(points: Sequence[tuple[float, float | None]], style: str) -> str:
    """A line through `points` (x, y), interrupted where y is None."""
    words, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{_value(x)} {_value(y)}")
        pen = "L"
    return element("path", d=" ".join(words), class_=style) if words else ""


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers in equal steps of 1, 2 or 5 times a power of ten that cover low..high."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def text_width(text: str, font: float = FONT) -> float:
    """About how wide `text` is in px in a system font."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    # DejaVu Sans, the widest of the usual fallbacks, has about 0.61 em a letter.
    return font * (0.61 * (len(text) - wide) + 1.02 * wide)


def shorten(text: str, room: float, font: float = FONT) -> str:
    """`text`, cut to `room` px with an ellipsis; empty where not even two letters fit."""
    text = " ".join(text.split())
    if text_width(text, font) <= room:
        return text
    while text and text_width(text + "\N{HORIZONTAL ELLIPSIS}", font) > room:
        text = text[:-1]
    return f"{text.rstrip()}\N{HORIZONTAL ELLIPSIS}" if len(text) > 1 else ""


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(value)
