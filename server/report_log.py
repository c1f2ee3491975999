"""What a report reads out of the settled events of a run: by name, what failed, what it cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from .events import Event, number

Log: TypeAlias = defaultdict[str, list[Event]]
"""Name -> the events of that name, in order."""

Place: TypeAlias = tuple[int, int, int]
"""Domain, round and attempt."""

Costs: TypeAlias = dict[tuple[int, int], dict[str, float]]
"""(domain, round) -> bytes_up, bytes_down and seconds."""

NOTHING: Mapping[str, float] = {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0}
"""The cost of a round none of whose attempts failed."""


def by_name(events: Sequence[Event]) -> Log:
    """The events by name."""
    log: Log = defaultdict(list)
    for event in events:
        log[event["event"]].append(event)
    return log


def place(event: Event) -> Place:
    """Where an event of one attempt belongs."""
    return event["domain"], event["round"], event["attempt"]


def is_given_up(event: Event) -> bool:
    """Whether a `round_failed` says that the round was left as it was, for good."""
    return str(event.get("reason", "")).startswith("given up")


def failed(log: Log) -> dict[Place, Event]:
    """Attempts that gave nothing, each with its round_failed; of a round given up, all of them."""
    found = {place(event): event for event in log["round_failed"]}
    over = {at[:2]: event for at, event in found.items() if is_given_up(event)}
    for event in [*log["round_started"], *log["reply"]]:
        at = place(event)
        if at[:2] in over:
            found.setdefault(at, over[at[:2]])
    return found


def lost(log: Log) -> Costs:
    """(domain, round) -> bytes and seconds that its failed attempts cost."""
    causes = failed(log)
    starts = {place(event): float(event["time"]) for event in log["round_started"]}
    costs: Costs = {at[:2]: dict(NOTHING) for at in causes}
    for event in [*log["round_started"], *log["reply"]]:
        at = place(event)
        if at not in causes:
            continue
        cost = costs[at[:2]]
        cost["bytes_up"] += integer(event.get("bytes_up"))
        cost["bytes_down"] += integer(event.get("bytes_down"))
        if event["event"] == "round_started":
            # A round that was given up names one of its attempts: the others end at the next.
            end = min(causes[at]["time"], starts.get((*at[:2], at[2] + 1), math.inf))
            cost["seconds"] += max(0.0, end - event["time"])
    return costs


def integer(value: Any) -> int:
    """`value` as a whole number; 0 for what is none."""
    return int(number(value) or 0)


def table(value: Any) -> Mapping[str, Any]:
    """`value` where it is a table, else an empty one."""
    return value if isinstance(value, Mapping) else {}
