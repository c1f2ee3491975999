"""The comparison of several runs as one HTML page that needs nothing from outside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from . import compare_charts
from .compare_charts import DARK, LIGHT
from .page_style import style_sheet
from .report_parts import columns_table, figure, fold
from .svg import escape
from .units import DASH, count, duration, percent, points, size

Comparison: TypeAlias = Mapping[str, Any]

_RULES = """
.legend { list-style: none; margin: -14px 0 30px; padding: 0; font-size: 15px; }
.legend li { margin: 2px 0; overflow-wrap: anywhere; }
.legend svg { display: inline-block; vertical-align: -3px; margin-right: 8px; }
.legend span { color: var(--soft); }
svg .ring { fill: var(--paper); stroke-width: 1.5; }
"""


def render(comparison: Comparison) -> str:
    """The page for a comparison as `compare.compare` gives it; every name in it is escaped."""
    notes = "".join(f"<li>{escape(line)}</li>" for line in comparison["notes"])
    runs = comparison["runs"]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{count(len(runs), 'run')} compared \N{MIDDLE DOT} Perennial</title>",
            f"<style>\n{style_sheet()}{_RULES}{_colours()}</style>\n</head>\n<body>\n<main>",
            f'<header>\n<p class="run">{count(len(runs), "run")} compared over '
            f"{count(len(comparison['domains']), 'domain')}</p>",
            f"<h1>{escape(verdict(comparison))}</h1>",
            f'<ul class="legend">{"".join(_legend(comparison))}</ul>',
            f'<ul class="notes">{notes}</ul>' if notes else "",
            "</header>",
            *_figures(comparison),
            "<footer>Sizes are decimal (1 MB = 1,000,000 bytes); a point is one percentage point. "
            "Bytes and time are those of whole runs.</footer>",
            "</main>\n</body>\n</html>\n",
        ]
    )


def verdict(comparison: Comparison) -> str:
    """What the comparison comes to in one sentence."""
    known = [run for run in comparison["runs"] if run["final_accuracy"] is not None]
    if len(known) < 2:
        return "Fewer than two of these runs were measured."
    known.sort(key=lambda run: -run["final_accuracy"])
    best, *others = known
    after = count(len(comparison["domains"]), "domain")
    rest = (
        f"{others[0]['run']} {percent(others[0]['final_accuracy'])}"
        if len(others) == 1
        else f"the others {percent(others[-1]['final_accuracy'])} to "
        f"{percent(others[0]['final_accuracy'])}"
    )
    said = f"After {after} {best['run']} answers {percent(best['final_accuracy'])}, {rest}."
    return said.replace(" %", "\N{NO-BREAK SPACE}%")


def _legend(comparison: Comparison) -> Iterator[str]:
    for i, run in enumerate(comparison["runs"]):
        methods = ", ".join(word.replace("_", " ") for word in run["methods"]) or "naive"
        yield (
            f"<li>{compare_charts.swatch(i)}{escape(run['run'])} <span>{escape(methods)}</span>"
            "</li>"
        )


def _figures(comparison: Comparison) -> Iterator[str]:
    names, runs = comparison["domains"], comparison["runs"]
    if len(names) > 1:
        yield figure(
            "Average accuracy after each domain",
            "Over the domains learnt so far, each counting alike. A flat line means that new "
            "domains come without loss.",
            lambda width: compare_charts.averages(names, runs, width),
        )
    yield figure(
        "What is left of each domain",
        "A filled dot is the accuracy on a domain\N{RIGHT SINGLE QUOTATION MARK}s test records at "
        "the end, a hollow one the best it ever was; the line between them was forgotten.",
        lambda width: compare_charts.kept(names, runs, width),
        fold("The same as a table", _domains(comparison)),
    )
    yield figure("Figures of each run", "", after=_table(comparison))
    if comparison["differences"]:
        yield figure(
            "Settings that differ",
            "All other settings are the same in these runs.",
            after=_differences(comparison),
        )


def _table(comparison: Comparison) -> str:
    runs = comparison["runs"]
    rows = (
        (name, *(say(run[key]) for run in runs))
        for name, key, say in _ROWS
        if any(run[key] is not None for run in runs)
    )
    heads = ("figure", *(run["run"] for run in runs))
    return columns_table("Figures of each run", heads, rows, "dense")


def _size(num_bytes: float | None) -> str:
    return DASH if num_bytes is None else size(num_bytes)


def _duration(seconds: float | None) -> str:
    return DASH if seconds is None else duration(seconds)


_ROWS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("Average accuracy", "final_accuracy", percent),
    ("Weighted by requests", "weighted_accuracy", percent),
    ("Learning accuracy", "learning_accuracy", percent),
    ("Forgetting", "final_forgetting", points),
    ("Backward transfer", "backward_transfer", points),
    ("Forward transfer", "forward_transfer", points),
    ("Adapter\N{RIGHT SINGLE QUOTATION MARK}s own head", "own_head_accuracy", percent),
    ("Worst client", "worst_client_accuracy", percent),
    ("Bytes up", "bytes_up", _size),
    ("Bytes down", "bytes_down", _size),
    ("Time", "seconds", _duration),
)


def _domains(comparison: Comparison) -> str:
    runs = comparison["runs"]
    rows = (
        (name, *(_kept(run["domain_accuracy"][j], run["domain_best"][j]) for run in runs))
        for j, name in enumerate(comparison["domains"])
    )
    return columns_table("Each domain", ("domain", *(run["run"] for run in runs)), rows)


def _kept(now: float | None, best: float | None) -> str:
    if now is None or best is None:
        return DASH
    return f"{percent(now)}, forgetting {points(best - now)}"


def _differences(comparison: Comparison) -> str:
    heads = ("setting", *(run["run"] for run in comparison["runs"]))
    rows = (
        (key, *(DASH if value is None else json.dumps(value, ensure_ascii=False) for value in each))
        for key, each in comparison["differences"].items()
    )
    return columns_table("Settings that differ", heads, rows, "words")


def _colours() -> str:
    dark = "\n".join(_rules(DARK))
    light = "\n".join(_rules(LIGHT))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _rules(colours: tuple[str, ...]) -> Iterator[str]:
    for i, shade in enumerate(colours):
        yield (
            f"svg .line.r{i}, svg .ring.r{i} {{ stroke: {shade}; }} "
            f"svg .dot.r{i}, svg .bar.r{i}, svg .ink-r{i} {{ fill: {shade}; }}"
        )
