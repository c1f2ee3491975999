"""What a run promised and what was spent of it: the block `privacy` of report.json.

All of it is what clients said of their own ledgers. The bound on a guess is that of Kairouz, Oh and
Viswanath 2015 (arXiv:1311.0776), theorem 2.1, for a guesser who has even odds beforehand.
"""

from __future__ import annotations

import glob
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from ..core.private import EXAMPLE, USER
from .events import Event, number, plain
from .report_log import Log, integer, place, table
from .units import DASH, count

AUDIT = "audit.json"
"""What `perennial audit` leaves; shown where it lies in the folder of the run."""

UNITS = (EXAMPLE, USER)

_TERMS = ("delta", "clip", "noise_multiplier", "sample_rate", "replay_rate")
_REFUSALS = ("BudgetError", "PrivacyError")

Heard: TypeAlias = Sequence[tuple[tuple[int, ...], Event]]
"""Replies and statements, each with its place, in the order in which they were said."""

# Less than this share of what was said before is no rounding: the ledger is another one.
_LESS = 1e-6


def privacy(log: Log, start: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was promised and spent, unit by unit; None where nothing was promised.

    `epsilon` is the largest over clients, `left` the fewest domain updates that still fit one of
    them. `guess` bounds how often a guess whether one unit took part is right, 0..1.
    What no client said is None. `noise` is about the sums of a run that is private to users.

    Args:
        log: settled events by name.
        start: the event run_started; empty when unknown.

    Law: what a client said counts, whatever became of its update: its ledger was charged.
    """
    promised = table(start.get("privacy"))
    said = [] if start else [event for _, event in _heard(log)]
    units = [
        unit
        for unit in UNITS
        if unit in promised or any(_said(event, "epsilon", unit) is not None for event in said)
    ]
    if not units:
        return None
    return {
        "units": [_unit(log, unit, table(promised.get(unit))) for unit in units],
        "noise": _noise(log, table(promised.get(USER))) if USER in units else None,
    }


def guess_rate(epsilon: float, delta: float) -> float:
    """The largest share of right guesses whether one unit took part, 0.5..1.

    (e^epsilon + delta) / (1 + e^epsilon), for two cases that are equally likely beforehand.
    """
    shrunk = math.exp(-max(epsilon, 0.0))
    return min(1.0, (1.0 + delta * shrunk) / (1.0 + shrunk))


def read_audit(run_folder: Path, name: str = "") -> dict[str, Any] | None:
    """What an audit left in the folder of a run, or of a run's `name` beside it; None without one.

    Beside it the newest counts: folders of audits bear name and time.

    A file that is no audit gives `{"broken": why}`: it must not stop a run.
    """
    path = run_folder / AUDIT
    if not path.exists() and name:
        beside = sorted(run_folder.resolve().parent.glob(f"audit-{glob.escape(name)}-*/{AUDIT}"))
        path = max(beside, key=_written, default=path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        return {"broken": type(error).__name__}
    try:
        # Strict JSON alone: the report must hold it too.
        found = json.loads(text, parse_constant=lambda word: None)
    except (ValueError, RecursionError):
        return {"broken": "it is not JSON"}
    kinds = found.get("kinds") if isinstance(found, dict) else None
    if not isinstance(kinds, list) or not all(isinstance(kind, dict) for kind in kinds):
        return {"broken": "it does not list kinds of canaries"}
    clean: dict[str, Any] = plain(found)
    return clean


def _written(path: Path) -> float:
    return path.stat().st_mtime


def breaches(block: Mapping[str, Any] | None) -> list[str]:
    """Sentences on what breaks the promise, as the log has it; none where all is well."""
    if not block:
        return []
    found = [line for unit in block["units"] for line in _unit_breaches(unit)]
    return found + _noise_breaches(block["noise"])


def doubts(block: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what the log cannot tell of what was spent."""
    for unit in block["units"]:
        name, clients = noun(unit), unit["clients"]
        if clients and unit["epsilon"] is None:
            yield f"No client said what it spent for each {name}: epsilon is unknown."
            continue
        unheard = sum(client["unheard"] > 0 for client in clients)
        if unheard:
            yield (
                f"{unheard} of {count(len(clients), 'client')} did not answer when last asked: "
                f"for each {name} they may have spent more than they said."
            )


def epsilon(value: float | None) -> str:
    """An epsilon to three digits, never rounded down: `0.826`, `8`; a dash for None."""
    if value is None:
        return DASH
    if not 0.0 < value < 1e9:
        return f"{value:.3g}"
    step = 10.0 ** min(0, math.floor(math.log10(value)) - 2)
    # What floats lose in the division is no reason to go up.
    return f"{math.ceil(value / step - 1e-9) * step:,.10g}"


def fitting(left: int, unit: str) -> str:
    """`room for 2 more updates`; new records begin at 0, so it is said of the old ones."""
    whose = " on the same records" if unit == EXAMPLE else ""
    return f"room for {count(left, 'more update')}{whose}"


def noun(unit: Mapping[str, Any]) -> str:
    """What one unit is, in a word."""
    return "record" if unit["unit"] == EXAMPLE else "client"


def _unit_breaches(unit: Mapping[str, Any]) -> Iterator[str]:
    name = noun(unit)
    if unit["exceeded"]:
        yield (
            f"Epsilon for each {name} is {unit['epsilon']:.4g}, above its target of "
            f"{unit['target']:g}: the promise is broken, or a client said what is not so."
        )
    less = [str(client["node"]) for client in unit["clients"] if client["less"]]
    if less:
        yield (
            f"Said to have spent less for each {name}, or to have been charged less often, than "
            f"before, which a ledger never does: nodes {', '.join(less[:5])}. An older copy may "
            "have been put back: what was spent since is forgotten there. The largest that each "
            "said is counted."
        )


def _noise_breaches(noise: Mapping[str, Any] | None) -> list[str]:
    if not noise:
        return []
    found = []
    if noise["bare"]:
        found.append(f"The log does not say what noise was in {noise['bare']} opened sums.")
    if noise["short"]:
        found.append(
            f"{noise['short']} sums had fewer shares of noise than the ledgers count on: they "
            "say too small an epsilon."
        )
    return found


def _heard(log: Log) -> Heard:
    """Replies and statements with their places, in the order in which they were said."""
    ends = {event["domain"]: event["round"] for event in sorted(log["reply"], key=place)}
    replies = [(place(event), event) for event in log["reply"]]
    # A statement comes after the domain's last round, and is drawn with it.
    last = [((e["domain"], ends.get(e["domain"], 0), 1 << 30), e) for e in log["statement"]]
    return sorted([*replies, *last], key=lambda pair: pair[0])


def _said(event: Event, word: str, unit: str) -> float | None:
    value = number(table(event.get(word)).get(unit))
    return value if value is not None and value >= 0.0 else None


def _unit(log: Log, unit: str, terms: Mapping[str, Any]) -> dict[str, Any]:
    heard = _heard(log)
    by_node: defaultdict[int, list[Event]] = defaultdict(list)
    for _, event in heard:
        by_node[event["node"]].append(event)
    clients = [_client(node, unit, by_node[node]) for node in sorted(by_node)]
    target, delta = number(terms.get("epsilon")), number(terms.get("delta"))
    epsilon = _most([client["epsilon"] for client in clients])
    fits = [client["left"] for client in clients if client["left"] is not None]
    return {
        "unit": unit,
        "mechanism": str(terms["mechanism"]) if terms.get("mechanism") else None,
        "where": str(terms["where"]) if terms.get("where") else None,
        "target": target,
        **{name: number(terms.get(name)) for name in _TERMS},
        "shares": integer(terms.get("clients")) if terms.get("where") == "clients" else None,
        "updates": integer(terms.get("updates")),
        "epsilon": epsilon,
        "left": min(fits, default=None),
        "exceeded": _above(epsilon, target),
        "guess": {"spent": _guess(epsilon, delta), "target": _guess(target, delta)},
        "rounds": _growth(unit, heard),
        "domains": _ends(unit, log),
        "clients": clients,
    }


def _above(spent: float | None, target: float | None) -> bool:
    return spent is not None and target is not None and spent > target * (1.0 + 1e-9)


def _guess(epsilon: float | None, delta: float | None) -> float | None:
    return None if epsilon is None or delta is None else guess_rate(epsilon, delta)


def _client(node: int, unit: str, events: Sequence[Event]) -> dict[str, Any]:
    told = [
        (i, e) for i, event in enumerate(events) if (e := _said(event, "epsilon", unit)) is not None
    ]
    values = [value for _, value in told]
    last = told[-1][0] if told else -1
    return {
        "node": node,
        "epsilon": _most(values),
        "left": _latest(events, "left", unit),
        "releases": _latest(events, "releases", unit),
        "unheard": sum(event["event"] == "reply" for event in events[last + 1 :]),
        "refused": sum(str(event.get("cause", "")).endswith(_REFUSALS) for event in events),
        "less": any(after < before * (1.0 - _LESS) for before, after in pairwise(values))
        or _rewound(events, unit),
    }


def _rewound(events: Sequence[Event], unit: str) -> bool:
    """Whether a later round came with no more charges than an earlier one: a ledger put back."""
    counts: dict[tuple[Any, Any], float] = {}
    for event in events:
        charges = _said(event, "releases", unit)
        if event["event"] == "reply" and charges is not None:
            counts.setdefault((event["domain"], event["round"]), charges)
    said = [charges for _, charges in sorted(counts.items())]
    return any(after <= before for before, after in pairwise(said))


def _latest(events: Sequence[Event], word: str, unit: str) -> int | None:
    """The last number of a kind that a ledger said; None where none was, or it was not asked."""
    values = [value for event in events if (value := _said(event, word, unit)) is not None]
    return integer(values[-1]) if values else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _growth(unit: str, heard: Heard) -> list[dict[str, Any]]:
    """Per round what the worst client had said by its end."""
    worst: float | None = None
    found: dict[tuple[int, ...], float | None] = {}
    for at, event in heard:
        worst = _most([worst, _said(event, "epsilon", unit)])
        found[at[:2]] = worst
    return [{"domain": d, "round": r, "epsilon": value} for (d, r), value in found.items()]


def _ends(unit: str, log: Log) -> list[dict[str, Any]]:
    """Per domain that ended: largest epsilon, fewest updates left, most charges, who said it."""
    ends = []
    for domain in sorted({event["domain"] for event in log["statement"]}):
        said = [event for event in log["statement"] if event["domain"] == domain]
        left = [v for event in said if (v := _said(event, "left", unit)) is not None]
        ends.append(
            {
                "domain": domain,
                "epsilon": _most([_said(event, "epsilon", unit) for event in said]),
                "left": integer(min(left)) if left else None,
                "releases": integer(_most([_said(e, "releases", unit) for e in said])),
                "clients": len(said),
            }
        )
    return ends


def _noise(log: Log, terms: Mapping[str, Any]) -> dict[str, Any]:
    """The noise that really was in the sums, over their sensitivity."""
    events = sorted(log["noised"], key=place)
    entries = [
        {
            **{key: event[key] for key in ("domain", "round", "attempt")},
            "counted": integer(event.get("counted")),
            "sensitivity": number(event.get("sensitivity")),
            "multiplier": number(event.get("multiplier")) or 0.0,
        }
        for event in events
    ]
    said, wanted = {place(event) for event in events}, integer(terms.get("clients"))
    return {
        "sums": len(entries),
        "least": min((entry["multiplier"] for entry in entries), default=None),
        "fewest": min((entry["counted"] for entry in entries), default=None),
        "most": max((entry["counted"] for entry in entries), default=None),
        "sensitivity": _most([entry["sensitivity"] for entry in entries]),
        "bare": sum(place(event) not in said for event in log["round_finished"])
        + sum(not entry["multiplier"] for entry in entries),
        "short": sum(entry["counted"] < wanted for entry in entries),
        "rounds": entries,
    }
