"""The sections of the report page on privacy: what is promised, what is spent, what is outside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..core.private import EXAMPLE
from . import privacy_charts
from .chart_frame import thinning
from .report_audit_page import audit_figure
from .report_outside import outside
from .report_parts import after, columns_table, figure, fold, rows_table
from .report_privacy import breaches, doubts, epsilon, noun
from .svg import escape
from .units import DASH, count, digits

Unit: TypeAlias = Mapping[str, Any]

# From here on a guesser who knows the bound alone learns next to nothing from it.
_WEAK = 0.95

_WORDS = {
    EXAMPLE: "one record, wherever and however often it is used: trained on or replayed",
}
_USER_WORDS = "all that one client holds"

_HOLDERS = {
    "server": "the server, and the key holder where there is one",
    "clients": "nobody",
}
_ADDERS = {
    "server": "the server, to the opened sum",
    "clients": "every client, its share inside its sealed update",
}


def privacy_figures(report: Mapping[str, Any]) -> Iterator[str]:
    """The sections, as markup; one sentence where nothing is promised."""
    block = report["privacy"]
    if not block:
        yield figure("Privacy", nothing_promised(report))
    else:
        names = [domain["name"] for domain in report["domains"]]
        for unit in block["units"]:
            yield _promise(unit, block["noise"])
            yield _spent(unit, names)
        yield _outside(report)
    if block or report["audit"]:
        yield audit_figure(report["audit"])


def nothing_promised(report: Mapping[str, Any]) -> str:
    """What a run without a promise must say of itself."""
    return (
        "This run promises no privacy for single records, nor for clients: its model may tell "
        "whether a record was trained on, and quote it. [privacy] and [user_privacy] promise."
    )


def folds(value: float | None) -> str:
    """How far odds move under epsilon, as `22-fold` or, at least as much, `10^12-fold`."""
    if value is None:
        return DASH
    if value > math.log(1e9):
        return f"10^{math.ceil(value / math.log(10)):.4g}-fold"
    return f"{digits(math.exp(value))}-fold"


def odds(rate: float | None) -> str:
    """A rate of right guesses, with as many digits as tell it from certainty."""
    if rate is None:
        return DASH
    shown = (f"{100.0 * rate:.{places}f} %" for places in range(1, 7))
    return next((text for text in shown if not text.startswith("100")), "100 %")


def _promise(unit: Unit, noise: Unit | None) -> str:
    name = noun(unit)
    return figure(
        f"What is promised for each {name}",
        _meaning(unit),
        after=rows_table(f"The promise for each {name}", (), _facts(unit, noise)),
    )


def _meaning(unit: Unit) -> str:
    delta, rate = unit["delta"], unit["guess"]["spent"]
    if unit["epsilon"] is None or delta is None:
        return "The log does not hold both what was promised and what was spent."
    weak = (
        " Taken alone that bound is weak: what attacks really reach, an audit shows."
        if rate >= _WEAK
        else ""
    )
    return (
        f"Whatever somebody believed of whether one {noun(unit)} took part, all that this run "
        f"gave away changes those odds at most {folds(unit['epsilon'])} (e to the power of "
        f"epsilon), except with a chance of delta, {delta:g}. Who has even odds and guesses is "
        f"right at most {odds(rate)} of the time; 50 % is chance.{weak}"
    )


def _facts(unit: Unit, noise: Unit | None) -> Iterator[tuple[str, str]]:
    """Names, and values as markup."""
    target, clients = unit["target"], [c for c in unit["clients"] if c["epsilon"] is not None]
    yield "Unit", escape(_WORDS.get(unit["unit"], _USER_WORDS))
    yield "Mechanism", escape(unit["mechanism"] or DASH)
    yield "Delta", escape(_chance(unit["delta"]))
    state = "state open" if unit["exceeded"] else "state"
    spent = f'<span class="{state}">{escape(epsilon(unit["epsilon"]))}</span>'
    yield "Epsilon spent", f"{spent}, the largest of {count(len(clients), 'client')}"
    yield "Epsilon, the target", escape(DASH if target is None else f"{target:g}")
    yield "More updates that fit", _fit(unit)
    yield (
        "At the target",
        escape(
            f"odds change at most {folds(target)}, a guess is right at most "
            f"{odds(unit['guess']['target'])} of the time"
        ),
    )
    yield from _settings(unit)
    if unit["where"]:
        yield "Noise is added by", escape(_ADDERS.get(unit["where"], unit["where"]))
        yield "Sums without noise are seen by", escape(_HOLDERS.get(unit["where"], DASH))
    if unit["unit"] != EXAMPLE and noise:
        yield "Noise really in the sums", escape(_noise(noise, unit["shares"]))


def _chance(delta: float | None) -> str:
    if not delta:
        return DASH if delta is None else "0"
    return f"{delta:g}, once in {1.0 / delta:,.0f}"


def _fit(unit: Unit) -> str:
    if unit["left"] is None:
        return f"{DASH}, said at the end of a domain"
    words = f"{unit['left']:,}, for the client with the fewest"
    if unit["unit"] != EXAMPLE:
        return words
    return f"{words}, on the same records; new records begin with the whole budget"


def _settings(unit: Unit) -> Iterator[tuple[str, str]]:
    clip, noise = unit["clip"], unit["noise_multiplier"]
    what = "gradient" if unit["unit"] == EXAMPLE else "update"
    if clip is not None:
        yield "Clip", f"{digits(clip)}, the largest L2 norm of one {noun(unit)}'s {what}"
    if noise is not None:
        yield "Noise multiplier", f"{noise:.4g} times the clip"
    if unit["sample_rate"] is not None:
        again = unit["replay_rate"] or unit["sample_rate"]
        rates = f"{unit['sample_rate']:.4g} of new records in a step, {again:.4g} of replayed ones"
        yield "Sample rate", rates
    if unit["updates"]:
        yield "Updates planned", f"{unit['updates']:,}"


def _noise(noise: Unit, shares: int | None) -> str:
    if not noise["sums"]:
        return "no sum was opened yet"
    few, many = noise["fewest"], noise["most"]
    clients = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    counted = f"; at least {shares:,} are counted on" if shares else ""
    return (
        f"at least {noise['least']:.4g} times the sensitivity, in {count(noise['sums'], 'sum')} "
        f"of {clients} clients{counted}"
    )


def _spent(unit: Unit, names: Sequence[str]) -> str:
    rounds, name = unit["rounds"], noun(unit)
    told = [*breaches({"units": [unit], "noise": None}), *doubts({"units": [unit]})]
    notes = "".join(f"<li>{escape(line)}</li>" for line in told)
    ledgers = (
        "Each client keeps its ledger on its own disk, in ledger.jsonl, and charges it before its "
        "records are used; these numbers are what clients said, and the server cannot check them."
    )
    most = ", for those of its records that paid most" if unit["unit"] == EXAMPLE else ""
    step = thinning(rounds)
    thin = f" Up to {step} neighbouring rounds are drawn as their mean." if step > 1 else ""
    return figure(
        f"What was spent for each {name}",
        f"The line is the client that spent most{most}, over the whole life of its model: earlier "
        f"runs count too. What would cross the target, a client refuses.{thin}",
        (lambda width: privacy_charts.growth(unit, names, width)) if rounds else None,
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + after(ledgers)
        + fold("Client by client", _by_client(unit))
        + fold("Domain by domain", _by_domain(unit, names)),
    )


def _by_client(unit: Unit) -> str:
    heads = ("client", "epsilon", "updates left", "charges", "said nothing since", "refused")
    rows = (
        (
            f"node {client['node']}",
            epsilon(client["epsilon"]),
            _whole(client["left"]),
            _whole(client["releases"]),
            count(client["unheard"], "time") if client["unheard"] else "",
            count(client["refused"], "time") if client["refused"] else "",
        )
        for client in sorted(unit["clients"], key=lambda c: (-(c["epsilon"] or 0.0), c["node"]))
    )
    return columns_table("What each client said", heads, rows)


def _by_domain(unit: Unit, names: Sequence[str]) -> str:
    heads = ("domain", "epsilon by its end", "updates left", "charges", "clients")
    rows = (
        (
            f"{end['domain'] + 1} {names[end['domain']]}",
            epsilon(end["epsilon"]),
            _whole(end["left"]),
            f"{end['releases']:,}",
            f"{end['clients']:,}",
        )
        for end in unit["domains"]
    )
    return columns_table("What was said at the end of each domain", heads, rows)


def _whole(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _outside(report: Mapping[str, Any]) -> str:
    rows = ((limit.what, escape(limit.why)) for limit in outside(report))
    return figure(
        "What is outside the guarantee",
        "Epsilon bounds what the numbers that were given away tell of one unit, and nothing else.",
        after=rows_table("What is outside the guarantee", ("What", "Why"), rows),
    )
