"""The result of an audit as one HTML page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server.drill_charts import drill_picture
from ..server.page_style import style_sheet
from ..server.report_parts import after, figure, rows_table
from ..server.svg import escape

KINDS = {"gradient": "gradient canaries", "wrong_label": "wrong-label canaries"}
"""Kinds of canaries in words."""


def verdict(result: Mapping[str, Any]) -> str:
    """What came of an audit, as it stands in `audit.json`, in a plain sentence."""
    bounds = [kind["lower_bound"] for kind in result["kinds"]]
    worst = max(bounds)
    if result["claimed"] is None:
        return (
            "Nothing is promised for single records, and one training gave away an epsilon of "
            f"{worst:.2f} or more of each. A promise for clients ([user_privacy]) is not audited."
        )
    if result["pass"]:
        return (
            f"The claim stands: of a claimed epsilon of {result['claimed']:g}, the audit could "
            f"prove {worst:.2f}."
        )
    return (
        f"The claim does not hold: one training that claims an epsilon of {result['claimed']:g} "
        f"gave away {worst:.2f} or more."
    )


def page(result: Mapping[str, Any]) -> str:
    """The page for a result as it stands in `audit.json`; all of its text is escaped."""
    name = escape(result["run"])
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name} \N{MIDDLE DOT} Perennial privacy audit</title>",
        f"<style>\n{style_sheet()}</style>\n</head>\n<body>\n<main>",
        f'<header>\n<p class="run"><b>{name}</b> \N{MIDDLE DOT} privacy audit '
        f"\N{MIDDLE DOT} {_state(result)}</p>",
        f"<h1>{escape(verdict(result))}</h1>\n</header>",
        _bounds(result),
        _drill(result),
        f"<footer>{escape(result['when'])}, {result['seconds']:.0f} s"
        f"{', quick: fewer canaries, a weaker test' if result['quick'] else ''}</footer>",
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _state(result: Mapping[str, Any]) -> str:
    if result["claimed"] is None:
        return '<span class="state open">nothing promised</span>'
    style, words = ("state", "passed") if result["pass"] else ("state open", "FAILED")
    return f'<span class="{style}">{words}</span>'


def _bounds(result: Mapping[str, Any]) -> str:
    rows = [
        (
            KINDS.get(kind["kind"], kind["kind"]),
            f"{kind['right']} of {kind['guesses']} guesses right, {kind['canaries']} canaries: "
            f"epsilon at least <b>{kind['lower_bound']:.2f}</b>",
        )
        for kind in result["kinds"]
    ]
    claim = "" if result["claimed"] is None else f" claiming epsilon {result['claimed']:g}"
    caption = (
        f"Canaries were put into one training{claim} or left out by secret coins; whoever sees "
        "every released step guesses the coins. More right guesses than a private training allows "
        f"refute the claim, with a confidence of {result['confidence']:.0%}."
    )
    note = (
        "A pass is no proof: an audit finds what it looks for, and its bound lies well below the "
        "truth. Steinke, Nasr, Jagielski 2023, arXiv:2305.08846."
    )
    table = rows_table("Lower bounds", (), rows)
    return figure("What one training gives away", caption, after=table + after(note))


def _drill(result: Mapping[str, Any]) -> str:
    drill = result.get("drill") or {}
    if not drill:
        return ""
    caption = (
        "Updates were trained here and now by the client's own code and then attacked, bare and "
        "under each protection. The attacker knows the model and what the server sent."
    )
    return figure(
        "Attack drill", caption, lambda width: drill_picture(drill, width), _example(drill)
    )


def _example(drill: Mapping[str, Any]) -> str:
    inversion = drill.get("inversion") or {}
    if not inversion.get("example"):
        return ""
    rows = [("what it says", escape(inversion["example"]))]
    rows += [(row["name"], escape(row["example"])) for row in inversion["readings"]]
    table = rows_table("One record, and what was read of it", (), rows)
    return after("One of these records, and what was read of it:") + table
