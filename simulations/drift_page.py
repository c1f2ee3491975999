"""What `perennial drift` found, as one HTML page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..server import svg
from ..server.charts import dot, level
from ..server.page_style import style_sheet
from ..server.report_parts import after, columns_table, figure, fold
from ..server.svg import escape
from ..server.units import count, percent

_LEFT, _RIGHT, _TOP, _HEIGHT, _BOTTOM = 52.0, 12.0, 46.0, 220.0, 44.0
_MOST_DOTS = 120  # windows up to which each is a dot that can be pointed at


def verdict(result: Mapping[str, Any]) -> str:
    """What came of it, in a plain sentence."""
    alarms, windows = result["alarms"], len(result["windows"])
    old = _listed(result["reference"]["domains"])
    name, all_of = result["new"]["name"], count(windows, "window")
    allowed = f"{100 * result['false_alarms']:g} %"
    if result["drift"]:
        return (
            f"Drift: {alarms} of {all_of} of {name} look unlike {old}, more than {allowed} of "
            "false alarms would explain."
        )
    if alarms:
        return (
            f"No drift: {alarms} of {all_of} of {name} alarmed, as {allowed} of false alarms "
            "would explain."
        )
    return f"No drift: none of {all_of} of {name} looks unlike {old}."


def page(result: Mapping[str, Any]) -> str:
    """The page for a result as `simulations.drift.run_drift` gives it; all text is escaped."""
    name = escape(result["run"])
    style, words = ("state open", "drift") if result["drift"] else ("state", "no drift")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name} \N{MIDDLE DOT} Perennial drift</title>",
        f"<style>\n{style_sheet()}</style>\n</head>\n<body>\n<main>",
        f'<header>\n<p class="run"><b>{name}</b> \N{MIDDLE DOT} drift of '
        f'{escape(result["new"]["name"])} \N{MIDDLE DOT} <span class="{style}">{words}</span></p>',
        f"<h1>{escape(verdict(result))}</h1>\n</header>",
        _windows(result),
        _strangest(result),
        f"<footer>{escape(result['when'])}, {result['seconds']:.0f} s</footer>",
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _windows(result: Mapping[str, Any]) -> str:
    reference, new = result["reference"], result["new"]
    how = "in the order of the data" if new["in_order"] else "drawn at random"
    caption = (
        f"Each dot is a window of {result['windows'][0]['records']} new records, {how}, "
        f"held against {count(reference['records'], 'record')} of "
        f"{_listed(reference['domains'])}. A window beyond the threshold is an alarm where one of "
        "two other distances, KL and MMD, confirms it."
    )
    heads = ("window", "records", "nearest", "KL", "MMD", "out of scope", "")
    rows = [
        (
            str(number),
            f"{window['records']:,}",
            f"{window['nearest']:.3f}",
            f"{window['kl']:.2f}",
            f"{window['mmd']:.4f}",
            percent(window["out_of_scope"]),
            "alarm" if window["alarm"] else "",
        )
        for number, window in enumerate(result["windows"], start=1)
    ]
    over = result["thresholds"]
    limits = ("threshold", "", f"{over['nearest']:.3f}", f"{over['kl']:.2f}")
    rows.insert(0, (*limits, f"{over['mmd']:.4f}", "", ""))
    note = (
        "Thresholds come from windows drawn from the reference itself, some of them over a part "
        f"of its labels: {100 * result['false_alarms']:g} % of windows without drift exceed one."
    )
    table = fold("All windows in numbers", columns_table("Windows", heads, rows))
    return figure(
        "How far the new records lie from what was known",
        caption,
        lambda width: chart(result["windows"], over["nearest"], width),
        after(note) + table,
    )


def chart(windows: Sequence[Mapping[str, Any]], threshold: float, width: float) -> str:
    """Mean distance to the nearest known record, window by window, and the threshold."""
    values = [window["nearest"] for window in windows]
    marks = svg.ticks(min([threshold, *values]), max([threshold, *values]), 4)
    right, bottom = width - _RIGHT, _TOP + _HEIGHT
    span = (marks[-1] - marks[0]) or 1.0
    slot = (right - _LEFT) / len(windows)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (marks[-1] - value) / span

    parts = [
        svg.write(_LEFT, 14, "mean distance to the nearest known record", "strong"),
        svg.write(_LEFT, 30, f"dotted: the threshold, {threshold:.3f}", "soft"),
    ]
    parts += [level(_LEFT, right, y(mark), f"{mark:g}") for mark in marks]
    parts.append(svg.rule(_LEFT, y(threshold), right, y(threshold), "edge"))
    radius = 4.0 if len(windows) <= _MOST_DOTS else 2.0
    for number, window in enumerate(windows, start=1):
        state = "alarm" if window["alarm"] else "no alarm"
        hint = (
            f"window {number} of {count(window['records'], 'record')}: "
            f"{window['nearest']:.3f}, KL {window['kl']:.2f}, MMD {window['mmd']:.4f}; {state}"
        )
        style = "two" if window["alarm"] else "one"
        x = _LEFT + slot * (number - 0.5)
        parts.append(dot(x, y(window["nearest"]), style, hint, radius))
    parts += _numbers(len(windows), slot, bottom, right)
    said = f"Distance of {count(len(windows), 'window')} to the reference"
    return svg.picture(width, bottom + _BOTTOM, said, *parts)


def _numbers(windows: int, slot: float, bottom: float, right: float) -> list[str]:
    """Numbers of windows below the axis, as many as there is room for."""
    marks = svg.ticks(1, windows, max(2, int((right - _LEFT) / 70)))
    numbers = sorted({1, *(int(mark) for mark in marks if mark == int(mark) and mark > 1)})
    parts = [svg.write(right, bottom + 36, "window", "soft", "end")]
    for number in numbers:
        if number == 1 or (number <= windows and slot * (number - 1) >= 24):
            x = _LEFT + slot * (number - 0.5)
            parts.append(svg.write(x, bottom + 18, f"{number:,}", "soft", "middle"))
    return parts


def _strangest(result: Mapping[str, Any]) -> str:
    scope = result["scope"]
    if not scope:
        return ""
    new = result["new"]["records"]
    caption = (
        f"{scope['outside']:,} of {new:,} new records, {percent(scope['outside'] / new)}, lie "
        "farther from every known class than 95 % of the validation records do."
    )
    rows = [(entry["text"], f"{entry['score']:.3f}") for entry in scope["strangest"]]
    heads = ("the strangest", "1 - cosine to the nearest class")
    table = columns_table("Strangest records", heads, rows)
    return figure("Single requests that fit no class", caption, after=table)


def _listed(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"the {len(names)} known domains"
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
