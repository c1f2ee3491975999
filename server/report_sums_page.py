"""The sections of the report page on how updates were hidden, and who could see what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..core.private import USER
from . import sum_charts
from .report_parts import after, figure, rows_table
from .report_secrecy import View, sealed, undefended, views
from .report_sums import saturation, share
from .svg import escape
from .units import DASH, count, digits, duration, size

Block: TypeAlias = Mapping[str, Any]

_KEYHOLDERS = {
    "in_process": "inside the server\N{RIGHT SINGLE QUOTATION MARK}s own process",
    "service": "a service apart from the server",
}
_MODELS = {
    "symmetric": "every client holds the secret key too (symmetric)",
    "public": "clients hold the public key alone (public)",
}


def sums_figures(report: Mapping[str, Any]) -> Iterator[str]:
    """The sections, as markup; none where the log does not say how updates travelled."""
    block = report["sums"]
    if not block:
        return
    units = [unit["unit"] for unit in (report["privacy"] or {"units": []})["units"]]
    # Sums that are private to users do not tell how well the values fitted.
    told = USER not in units
    words = block["words"] or "the log does not say how updates were hidden"
    facts = (
        rows_table("How updates were hidden", (), _facts(block, told)) if block["hidden"] else ""
    )
    yield figure("How updates were hidden", f"{words[0].upper()}{words[1:]}.", after=facts)
    if block["rounds"] and told:
        yield _fitting(report, block["rounds"])
    yield _who(block, report["config"], units)


def brief(seconds: float | None) -> str:
    """Seconds in words, in milliseconds where they are few; a dash for None."""
    if seconds is None:
        return DASH
    return f"{digits(1000 * seconds)} ms" if seconds < 0.995 else duration(seconds)


def _facts(block: Block, told: bool) -> Iterator[tuple[str, str]]:
    """Names, and values as markup."""
    totals = block["totals"]
    if block["scheme"]:
        known = " ".join(f"<code>{escape(key)}</code>" for key in block["keys"])
        yield "Key" if len(block["keys"]) == 1 else "Keys", known or DASH
        model, holder = block["key_model"] or DASH, block["keyholder"] or DASH
        yield "Who has the key", escape(_MODELS.get(model, model))
        yield "Key holder", escape(_KEYHOLDERS.get(holder, holder))
    else:
        yield "Key", "none"
    given_up = f", {count(totals['given_up'], 'round')} given up" if totals["given_up"] else ""
    yield "Sums opened", f"{totals['rounds']:,}{given_up}"
    if totals["rounds"]:
        yield from _costs(totals, told)


def _costs(totals: Block, told: bool) -> Iterator[tuple[str, str]]:
    each, ratio = totals["bytes_per_value"], totals["ratio_to_float32"]
    if each:
        yield "Bytes per value", f"{digits(each)}, {digits(ratio)} times the 4 of float32"
    yield "Bytes up", size(totals["bytes_up"])
    if totals["seal_seconds"] is not None:  # in private runs no client tells
        yield "Sealing", f"{brief(totals['seal_seconds'])} per client and round"
    yield "Adding", f"{brief(totals['add_seconds'])} in all"
    yield "Opening", f"{brief(totals['open_seconds'])} in all"
    cut, values = totals["saturated"], totals["values"]
    rate = share(totals["saturated_rate"])
    yield "Values cut", escape(f"{cut:,} of {values:,}, {rate}" if told else "not told")
    reveals = f"; {count(totals['revealed'], 'reveal')} of masks" if totals["revealed"] else ""
    yield "Dropped out of sums", f"{count(totals['dropped'], 'client')}{reveals}"


def _fitting(report: Mapping[str, Any], rounds: list[dict[str, Any]]) -> str:
    names = [domain["name"] for domain in report["domains"]]
    hint = saturation(report)
    return figure(
        "How well the values fitted",
        "Values are sent as shares of a scale that is agreed before each round from the largest "
        "value seen before, times its client\N{RIGHT SINGLE QUOTATION MARK}s weight; what is above "
        "the scale, or above [secure_sum] clip, is cut. Few or none should be.",
        lambda width: sum_charts.fitting(rounds, names, width),
        after(f"{hint[0].upper()}{hint[1:]}." if hint else ""),
    )


def _who(block: Block, config: Mapping[str, Any], units: Sequence[str]) -> str:
    found = views(block, units)
    if not found:
        told = "The log does not say enough of the settings to tell."
        return figure("Who could see what", told)
    heads = ("Who", "What it could see of one client\N{RIGHT SINGLE QUOTATION MARK}s update")
    rows = rows_table("Who could see what", heads, ((view.who, _cell(view)) for view in found))
    notes = after(sealed(block, config, units)) + after(undefended(block, config))
    caption = (
        "As the settings of this run have it, for parties that follow the protocol and put "
        "together what they have."
    )
    return figure("Who could see what", caption, after=rows + notes)


def _cell(view: View) -> str:
    mark = "state open" if view.is_open else "state"
    return f'<span class="{mark}">{escape(view.sees)}</span>. {escape(view.why)}'
