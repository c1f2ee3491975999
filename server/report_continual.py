"""What the continual layer keeps and what it costs: the block `continual` of report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .events import Event, number
from .report_events import HEAD
from .report_log import Log, integer, table
from .units import count, percent, points, size

OFF, CHAIN = "none", "chain"
"""Names of the plug-ins that remember nothing, and that join others."""

FEW_LEFT = 1
"""From this capacity left on, in domains, the user is told what to do."""

_CAPACITIES = ("domains_left", "capacity_left")

_LATER = ("analytic_head", "elastic_mask")
"""Methods whose sums get, at a later end, what a client could not give at an earlier one."""


def continual(log: Log, start: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the methods in force kept after each domain; None where none is and nothing was summed.

    `facts` of a domain are the methods' own plain values, named `method.fact`. Bytes and seconds
    are those of the sum at the domain's end, over all clients that answered. `warnings` are plain
    sentences.

    Args:
        log: settled events by name.
        start: the event run_started; empty when unknown.
    """
    methods = methods_in_force(start)
    # A chain puts each method's name before its facts; a method alone does not.
    alone = f"{methods[0]}." if len(methods) == 1 else ""
    ordered = sorted(log["learnt"], key=lambda event: event["domain"])
    ends = [_end(event, alone) for event in ordered]
    for end in ends:
        methods += [method_of(name) for name in end["facts"] if method_of(name)]
    methods = list(dict.fromkeys(methods))
    if not methods and not any(end["values"] for end in ends):
        return None
    private = bool(table(start.get("privacy")))
    without = (_without(event, start, methods, private) for event in ordered)
    return {
        "methods": methods,
        "domains": ends,
        "warnings": [
            *(line for line in without if line),
            *(warnings(ends[-1]["facts"]) if ends else ()),
        ],
    }


def methods_in_force(start: Mapping[str, Any]) -> list[str]:
    """The names of a run's continual methods, in their order.

    Args:
        start: the event run_started; its `methods` count where it tells them, else its config.
    """
    told = start.get("methods")
    if isinstance(told, list | tuple):
        return [str(name) for name in told if name not in (OFF, CHAIN)]
    return list(_methods_of(table(table(start.get("config")).get("continual"))))


def ends_cost(log: Log) -> dict[str, float]:
    """Bytes and seconds of all sums at the ends of domains."""
    return {
        "bytes_up": sum(integer(event.get("bytes_up")) for event in log["learnt"]),
        "bytes_down": sum(integer(event.get("bytes_down")) for event in log["learnt"]),
        "seconds": sum(number(event.get("seconds")) or 0.0 for event in log["learnt"]),
    }


def method_of(fact: str) -> str:
    """The method that a fact is told by; empty for one without a method's name before it."""
    return fact.partition(".")[0] if "." in fact else ""


def said(name: str, value: Any) -> str:
    """A fact's value for people, by its name: bytes as a size, shares in percent.

    Other whole numbers stand whole, the rest with four digits.
    """
    found = number(value)
    if found is None:
        return str(value)
    words = name.rpartition(".")[2].replace("_", " ").split()
    if "bytes" in words:
        return size(found)
    if words[-1] in ("share", "rate"):
        return percent(found)
    return f"{found:,.0f}" if found == int(found) and abs(found) < 1e15 else f"{found:.4g}"


def steady(ends: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts that were the same after every domain; empty for fewer than two domains."""
    if len(ends) < 2:
        return {}
    first = ends[0]["facts"]
    return {
        name: value
        for name, value in first.items()
        if all(name in end["facts"] and end["facts"][name] == value for end in ends)
    }


def _end(event: Event, alone: str) -> dict[str, Any]:
    clients = integer(event.get("clients"))
    facts = {
        name if method_of(name) else f"{alone}{name}": value
        for name, value in table(event.get("facts")).items()
    }
    sent = integer(event.get("bytes_up"))
    return {
        "domain": event["domain"],
        "values": integer(event.get("values")),
        "clients": clients,
        "bytes_up": sent,
        "bytes_per_client": sent / clients if clients else None,
        "seconds": number(event.get("seconds")),
        "facts": {name: value for name, value in facts.items() if _is_plain(value)},
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _methods_of(options: Mapping[str, Any]) -> Iterator[str]:
    """The names of the methods that a config's table `continual` names, in its order."""
    name = str(options.get("name") or OFF)
    if name not in (OFF, CHAIN):
        yield name
        return
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _methods_of({"name": key, **value})
        elif isinstance(value, list | tuple):
            for part in value:
                yield from _methods_of(part if isinstance(part, Mapping) else {"name": part})


def warnings(facts: Mapping[str, Any]) -> Iterator[str]:
    """What the user should know of the facts that a domain ended with, in plain sentences."""
    for name, value in facts.items():
        left = number(value)
        if name.rpartition(".")[2] not in _CAPACITIES or left is None or left > FEW_LEFT:
            continue
        method = (method_of(name) or "the continual method").replace("_", " ")
        room = "no room for another domain" if left < 1 else "room for one more domain only"
        yield (
            f"{method[0].upper()}{method[1:]} has {room}. Give it more capacity in a new run, or "
            "another method that needs none."
        )


def absent(end: Mapping[str, Any], methods: Sequence[str], *, private: bool) -> str:
    """How many clients a domain ended without and what that means; empty where it means nothing.

    Args:
        end: the event learnt.
        methods: in force.
        private: whether something is promised to those whose records these are.
    """
    causes = {str(cause): integer(times) for cause, times in table(end.get("rejected")).items()}
    missing, values = (
        integer(end.get("missing")) or sum(causes.values()),
        integer(end.get("values")),
    )
    if not missing or not (values or methods):
        return ""
    why = ", ".join(f"{times} {cause}" for cause, times in causes.items())
    # The last attempt alone says why: where others were asked again, it does not say it of all.
    why = f" ({why})" if sum(causes.values()) == missing else ""
    whole = count(missing + integer(end.get("clients")), "client")
    words = [f"ended without {missing} of {whole}{why}."]
    if any(": " in cause for cause in causes):  # an error of its own, whose text stays there
        words.append("Their logs, in a simulation the run's log.txt, say what to do.")
    if values:
        lacks = _sums(methods, private)
        words.append(f"Nothing of those clients' records of this domain is in {lacks}.")
        if "analytic_head" in methods and not private:
            words.append(
                "Sums that are taken anew (encoder = 'refresh' or 'both') lack their earlier "
                "records, too."
            )
    if "replay" in methods:
        words.append("A client that was away for it keeps no replay of this domain.")
    return " ".join(words)


def _sums(methods: Sequence[str], private: bool) -> str:
    """What lacks the records of clients that were missing, and until when."""
    if private or not any(name in methods for name in _LATER):
        return "what was summed, then or later"
    later = "the statistics until they answer at a later domain's end"
    return f"{later}, nor ever in what ewc holds on to" if "ewc" in methods else later


def _without(end: Event, start: Mapping[str, Any], methods: Sequence[str], private: bool) -> str:
    """`absent` with the domain's name before it."""
    words, at = absent(end, methods, private=private), end["domain"]
    domains = start.get("domains")
    if isinstance(domains, list) and at < len(domains):
        return words and f"Domain {at + 1} ({table(domains[at]).get('name')}) {words}"
    return words and f"Domain {at + 1} {words}"


def head_words(methods: Sequence[str]) -> str:
    """Who of these methods answers in the place of the adapter's own head, in words."""
    return "the analytic head" if "analytic_head" in methods else "the continual method"


def answered(report: Mapping[str, Any]) -> str:
    """Who answered, and what the adapter's own head would have; empty where it answers itself."""
    by = report["answered_by"][: report["learnt"]]
    rows = [i + 1 for i, who in enumerate(by) if who == HEAD]
    if not rows:
        return ""
    block = report["continual"]
    when = "" if len(rows) == len(by) else f" after domain {listed(rows)}"
    words = f"Answered by {head_words(block['methods'] if block else [])}{when}"
    own = report["own_head"]
    if not own or own["final_accuracy"] is None:
        return f"{words}."
    i = own["learnt"] - 1
    lost = own["forgetting"][i]
    fell = f", forgetting {points(lost)}" if i and lost is not None else ""
    return (
        f"{words}; the adapter\N{RIGHT SINGLE QUOTATION MARK}s own head: "
        f"{percent(own['final_accuracy'])}{fell}."
    )


def listed(words: Sequence[object]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last
