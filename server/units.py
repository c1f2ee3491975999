"""Sizes, times and rates in words for people."""

from __future__ import annotations

DASH = "\N{EM DASH}"
"""Stands where a value is not known."""

BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
"""Names and sizes of the decimal units, largest first."""


def size(num_bytes: float) -> str:
    """Bytes in decimal units with about three digits, such as `1.25 MB`."""
    # 0.9995: 999.7 kB would read 1,000 kB, so it goes to the next unit up.
    name, unit = next((pair for pair in BYTES if abs(num_bytes) >= pair[1] * 0.9995), BYTES[-1])
    return f"{num_bytes:.0f} B" if unit == 1.0 else f"{digits(num_bytes / unit)} {name}"


def duration(seconds: float) -> str:
    """Seconds as `8.3 s`, `4 min 20 s` or `3 h 05 min`."""
    if seconds < 59.95:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(rate: float | None) -> str:
    """A rate 0..1 as `61.3 %`; a dash for None."""
    return DASH if rate is None else f"{100 * rate:.1f} %"


def points(difference: float | None) -> str:
    """A difference of rates in percentage points, such as `-3.2 points`; a dash for None."""
    if difference is None:
        return DASH
    shown = round(100 * difference, 1) + 0.0  # -0.0 becomes 0.0
    return f"{shown:.1f} points".replace("-", "\N{MINUS SIGN}")


def digits(value: float) -> str:
    """`value` with about three digits and no needless zeros, never as a power of ten."""
    shown = abs(value)
    places = 0 if shown >= 99.95 else 1 if shown >= 9.995 else 2
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(number: int, noun: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
