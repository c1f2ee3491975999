"""The settled events of a run, with what the end of a domain and the continual layer said.

Beside what `events.settle` knows there are three more:

- `evaluated` with `by` = "head": how the domain's end answers, where a continual method answers in
  the place of the model's own head. It stands beside the model's evaluation of the same round.
- `learnt`: what the sums at a domain's end gave, once a domain.
- `baseline`: accuracies before anything was learnt.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.errors import RunError
from .events import Event, settle

MODEL, HEAD = "model", "head"
"""Who answered in an evaluation: the model's own head, or a method's."""


def answered_by(event: Event) -> str:
    """Who answered in an `evaluated`: `HEAD` or, where the log is older, `MODEL`."""
    return HEAD if event.get("by") == HEAD else MODEL


def settled(events: Iterable[Event]) -> list[Event]:
    """The events that hold, in order, as `events.settle` has it for those that it knows.

    A resume at (domain d, round r) voids a head's evaluations as it does the model's: those of
    more than r rounds in domain d, and of later domains; and what was learnt at the end of d and
    of later ones. Of repeats the last stays.

    Law: `settled(settled(events))` equals `settled(events)`.

    Raises:
        RunError: an event without the integers that say where it belongs.
    """
    found = list(events)
    kept: dict[tuple[Any, ...], tuple[int, Event]] = {}
    for at, event in enumerate(found):
        if event["event"] == "run_resumed":
            kept = {key: old for key, old in kept.items() if not _void(key, event)}
        elif (key := _key(event)) is not None:
            kept[key] = at, event
    order = {id(event): at for at, event in enumerate(found)}
    rest = settle(event for event in found if _key(event) is None)
    both = [*((order[id(event)], event) for event in rest), *kept.values()]
    return [event for _, event in sorted(both, key=lambda pair: pair[0])]


def _key(event: Event) -> tuple[Any, ...] | None:
    """What a repeat of this event has in common with it; None for events that `settle` knows."""
    name = event["event"]
    if name == "baseline":
        return (name,)
    if name == "learnt":
        return name, _integer(event, "domain")
    if name == "evaluated" and answered_by(event) == HEAD:
        return name, _integer(event, "domain"), _integer(event, "round")
    return None


def _void(key: tuple[Any, ...], resumed: Event) -> bool:
    name, *place = key
    domain = _integer(resumed, "domain")
    if not place or place[0] != domain:
        return bool(place and place[0] > domain)
    return bool(name == "learnt" or place[1] > _integer(resumed, "round"))


def _integer(event: Event, field: str) -> int:
    value = event.get(field)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise RunError(
        f"the event {event['event']!r} must have an integer {field!r}, 0 or more; got {value!r}"
    )
