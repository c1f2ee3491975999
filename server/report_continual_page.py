"""The section of the report page on what the continual layer keeps and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from .report_continual import listed, said, steady
from .report_parts import after, columns_table, figure, rows_table
from .svg import escape
from .units import DASH, duration, size

Block: TypeAlias = Mapping[str, Any]

_MOST_LETTERS = 16
"""Of a value that stands in a column of its domain."""


def continual_figures(report: Mapping[str, Any]) -> Iterator[str]:
    """The section, as markup; none where nothing is remembered."""
    block = report["continual"]
    if not block:
        return
    names = [domain["name"] for domain in report["domains"]]
    notes = "".join(f"<li>{escape(line)}</li>" for line in block["warnings"])
    ends = block["domains"]
    yield figure(
        "What the continual layer keeps",
        f"{_methods(block['methods'])}{_summed(ends)}",
        after=(f'<ul class="notes">{notes}</ul>' if notes else "")
        + _costs(ends, names)
        + _facts(ends)
        + _long(ends)
        + _steady(ends)
        + after("" if ends else "No domain has ended yet."),
    )


def _methods(methods: Sequence[str]) -> str:
    words = [_plain(name) for name in methods]
    return f"In force: {listed(words)}. " if words else ""


def _summed(ends: Sequence[Block]) -> str:
    if any(end["values"] for end in ends):
        return (
            "When a domain ends each client gives one vector, and the server keeps what their sum "
            "over the clients says."
        )
    return "Nothing is summed over the clients when a domain ends." if ends else ""


def _costs(ends: Sequence[Block], names: Sequence[str]) -> str:
    """A row for each domain: what was summed at its end, and what that cost."""
    rows = (
        (
            f"{end['domain'] + 1} {names[end['domain']]}",
            f"{end['values']:,}",
            f"{end['clients']:,}",
            DASH if end["bytes_per_client"] is None else size(end["bytes_per_client"]),
            size(end["bytes_up"]),
            DASH if end["seconds"] is None else duration(end["seconds"]),
        )
        for end in ends
        if end["values"]
    )
    heads = ("domain", "values summed", "clients", "up for each client", "up", "time")
    return columns_table("What the end of each domain cost", heads, rows)


def _facts(ends: Sequence[Block]) -> str:
    """A row for each fact that is not the same after every domain, a column for each domain."""
    same = steady(ends)
    told = dict.fromkeys(name for end in ends for name in end["facts"])
    rows = (
        (
            _fact(name),
            *(said(name, end["facts"][name]) if name in end["facts"] else DASH for end in ends),
        )
        for name in told
        if name not in same and not _is_long(name, ends)
    )
    table = columns_table(
        "What the methods say after each domain",
        ("fact", *(str(end["domain"] + 1) for end in ends)),
        rows,
        "dense",
    )
    return f"<h3>After each domain</h3>{table}" if table else ""


def _steady(ends: Sequence[Block]) -> str:
    facts = steady(ends)
    if not facts:
        return ""
    rows = ((_fact(name), escape(said(name, value))) for name, value in facts.items())
    return "<h3>The same after every domain</h3>" + rows_table("Facts that stay", (), rows)


def _long(ends: Sequence[Block]) -> str:
    """Facts of many words, as they stand after the last domain."""
    same = steady(ends)
    rows = [
        (_fact(name), escape(said(name, value)))
        for name, value in (ends[-1]["facts"] if ends else {}).items()
        if name not in same and _is_long(name, ends)
    ]
    if not rows:
        return ""
    return "<h3>After the last domain</h3>" + rows_table("Facts in words", (), rows)


def _is_long(name: str, ends: Sequence[Block]) -> bool:
    values = (end["facts"][name] for end in ends if name in end["facts"])
    return any(len(said(name, value)) > _MOST_LETTERS for value in values)


def _fact(name: str) -> str:
    return _plain(name).replace(".", ": ")


def _plain(name: str) -> str:
    return name.replace("_", " ")
