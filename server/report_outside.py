"""What a run's promise of privacy does not cover, in plain words, from its actual settings.

For an epsilon is a bound on one thing only: what the released numbers tell of one unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..core.private import EXAMPLE, USER
from .events import number
from .report_log import integer, table
from .units import count


class Limit(NamedTuple):
    """Something that the guarantee does not cover.

    Attributes:
        what: in a few words.
        why: in a sentence or two.
    """

    what: str
    why: str


def outside(report: Mapping[str, Any]) -> list[Limit]:
    """What is outside the guarantee of a run that promises one, in order of weight.

    Args:
        report: as `report.summarise` gives it, its `privacy` not None.
    """
    units = {unit["unit"]: unit for unit in report["privacy"]["units"]}
    found = [*_of_units(units)]
    if USER in units:
        found += _of_users(units[USER], report)
    return [*found, *_of_answers(units), *_of_names(report), *_of_all(report)]


def _of_units(units: Mapping[str, Any]) -> Iterator[Limit]:
    if EXAMPLE in units:
        more = "[user_privacy] would bound all that a client holds"
        if USER in units:
            more = "the promise for each client bounds all of them together"
        yield Limit(
            "Several records of one person",
            "Epsilon is for one record. For somebody behind k records it is about k times as "
            f"large, at a larger delta; {more}.",
        )
    else:
        yield Limit(
            "A client\N{RIGHT SINGLE QUOTATION MARK}s own update",
            "Noise is in the sums alone. [privacy] would put it into training itself, and so bound "
            "what a single update tells of each record to whoever gets to see it.",
        )
    if USER in units:
        yield Limit(
            "One person at two clients",
            "A user is a client: whoever has records at several of them counts as several.",
        )


def _of_users(user: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[Limit]:
    sums = table(report["sums"])
    if user["where"] == "clients":
        all_ = user["shares"] or "n"
        yield Limit(
            "Clients that collude with the server, or are made up by it",
            "Each knows its own share of the noise and can take it off: k of "
            f"{all_} shares that are known leave noise of sqrt(({all_} - k) / {all_}) times the "
            "deviation that the ledgers count on.",
        )
    if sums.get("masks"):
        yield _late(sums, user)
    if user["where"] == "clients":
        return
    if sums.get("hidden"):
        yield Limit(
            "The server and the key holder",
            "The noise is added after a sum is opened: both see it without. Single updates are as "
            'hidden as the table below says. [user_privacy] name = "distributed" leaves nobody '
            "with such a sum.",
        )
    else:
        yield Limit(
            "The server",
            "It sees every client\N{RIGHT SINGLE QUOTATION MARK}s update, cut to the clip and "
            "without noise, and adds the noise to their sum: the promise is against all others. A "
            "[secure_sum] other than plain hides single updates from it.",
        )


def _late(sums: Mapping[str, Any], user: Mapping[str, Any]) -> Limit:
    noise = "with no noise but its own share" if user["where"] == "clients" else "without noise"
    if sums.get("scheme"):
        why = "Once the masks of a client that dropped out are revealed, server and key holder "
        why += "together could open its update, should it still arrive,"
    else:
        why = "Where a client is lost the others are asked again; should its words still arrive, "
        why += "the difference of the two sums tells the server its update,"
    return Limit("An update that comes late", f"{why} {noise}.")


def _of_answers(units: Mapping[str, Any]) -> Iterator[Limit]:
    yield Limit(
        "Who answers, and when",
        "That a client takes part, when it answers, and how large its messages are can be seen by "
        "the server and on the network; how long an answer takes tells about how many records "
        "there are. What each ledger says is in the clear: it depends on what was asked of a "
        "client, not on what its records are.",
    )
    if EXAMPLE not in units:
        return
    yield Limit(
        "That a round failed",
        "A client whose training fails (a number that is not finite, say) answers with the kind of "
        "its error: that it failed may depend on one record, and no epsilon is for it.",
    )
    rate = units[EXAMPLE]["sample_rate"]
    at = "" if rate is None else f" of {rate:g}"
    yield Limit(
        "That a client has enough records",
        f"Weights are alike and the sample rate{at} is fixed, so that no number of records is "
        "told; but a client with fewer than the settings need refuses, and a refusal can be seen.",
    )


def _of_names(report: Mapping[str, Any]) -> Iterator[Limit]:
    domains = report["domains"]
    labels = sum(len(domain["labels"]) for domain in domains)
    named = f"{count(labels, 'label')} and " if labels else ""
    yield Limit(
        "Names of labels and domains" if labels else "Names of domains",
        f"The names of {named}{count(len(domains), 'domain')} are read from the data and stand as "
        "they are in the log, in this report and with the adapter; so does the order in which "
        "domains came.",
    )
    asked = table(table(report["config"]).get("evaluate")).get("where")
    if asked != "clients":
        yield Limit(
            "The server\N{RIGHT SINGLE QUOTATION MARK}s test records",
            "Accuracy is measured on them and told as it is, in no ledger. They must be no records "
            "of the people whom the promise is for.",
        )


def _of_all(report: Mapping[str, Any]) -> Iterator[Limit]:
    chosen = ", ".join(_chosen(report["config"]))
    example = f" (here {chosen})" if chosen else ""
    yield Limit(
        "Settings chosen by looking at the records",
        f"Whoever tried several settings{example} on the same records learnt from each try. It is "
        "paid for where the tries were private runs with the same client folders.",
    )
    model = table(report["config"]).get("model")
    name = table(model).get("base") or table(report["model"]).get("name")
    base = f"The base model {name!r}" if name else "The base model"
    yield Limit(
        "The frozen base",
        f"{base} was trained by others before: if it saw these records then, nothing here hides "
        "them.",
    )
    yield Limit(
        "The client\N{RIGHT SINGLE QUOTATION MARK}s own device",
        "Records and ledger lie on it in the clear. A device that is broken into, or whose "
        "software is not this one, gives away what it holds, and may say of its ledger what it "
        "likes.",
    )


def _chosen(config: Mapping[str, Any]) -> Iterator[str]:
    train, rounds = table(config.get("train")), table(config.get("round")).get("rounds")
    rate = number(train.get("lr"))
    if rate is not None:
        yield f"lr {rate:g}"
    if train.get("optimizer"):
        yield str(train["optimizer"])
    if number(rounds):
        yield f"{count(integer(rounds), 'round')} a domain"
