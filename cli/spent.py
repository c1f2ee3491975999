"""What a display says of the privacy that a run promises and spends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.private import EXAMPLE, USER
from ..server.events import Event, number
from ..server.report_log import table
from ..server.report_privacy import UNITS, breaches, doubts, epsilon, fitting, noun

_NOUNS = {EXAMPLE: "record", USER: "client"}


@dataclass(slots=True)
class Spent:
    """The largest epsilon that a client said, kept up to date by `see`.

    Attributes:
        targets: unit -> promised epsilon; empty where nothing is promised.
        worst: unit -> the largest epsilon of any client so far.
        left: unit -> the fewest domain updates that still fit a client, by the last domain's end.
        rounds: (domain, rounds done in it) -> what `short` said then.
    """

    targets: dict[str, float | None] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    rounds: dict[tuple[int, int], str] = field(default_factory=dict)

    def see(self, event: Event) -> None:
        """Take one more event into account."""
        kind = event["event"]
        if kind == "run_started":
            promised = table(event.get("privacy"))
            self.targets = {
                unit: number(table(promised[unit]).get("epsilon"))
                for unit in UNITS
                if unit in promised
            }
        elif kind in ("reply", "statement"):
            self._hear(event)
        elif kind == "domain_started":
            self.left = {}
        elif kind == "round_finished" and self.targets:
            place = _int(event, "domain"), _int(event, "round") + 1
            self.rounds[place] = self.short()

    def short(self) -> str:
        """Epsilon spent per unit, such as `0.82`, or `0.82 / 1.4` where two are promised."""
        return " / ".join(epsilon(self.worst.get(unit)) for unit in self.targets)

    def words(self) -> str:
        """Epsilon spent of its target, per unit; empty where nothing is promised."""
        return "; ".join(
            f"epsilon {epsilon(self.worst.get(unit))} of {epsilon(target)} per {_NOUNS[unit]}"
            + (f", {fitting(self.left[unit], unit)}" if unit in self.left else "")
            for unit, target in self.targets.items()
        )

    def _hear(self, event: Event) -> None:
        for unit, value in table(event.get("epsilon")).items():
            spent = number(value)
            if unit in self.targets and spent is not None:
                self.worst[unit] = max(spent, self.worst.get(unit, 0.0))
        for unit, value in table(event.get("left")).items():
            fits = number(value)
            if unit in self.targets and fits is not None and fits >= 0.0:
                self.left[unit] = min(int(fits), self.left.get(unit, int(fits)))


def privacy_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What a report says of privacy, for a terminal; no line where nothing is promised."""
    block = report["privacy"]
    if not block:
        return
    for unit in block["units"]:
        left = unit["left"]
        fit = "" if left is None else f"; {fitting(left, unit['unit'])}"
        delta = "" if unit["delta"] is None else f" at delta {unit['delta']:g}"
        spent = f"epsilon {epsilon(unit['epsilon'])} of {epsilon(unit['target'])}"
        yield f"privacy: {spent} for each {noun(unit)}{delta}, by the worst client{fit}"
    yield from (f"warning: {line}" for line in breaches(block))
    yield from (f"note: {line}" for line in doubts(block))


def _int(event: Event, key: str) -> int:
    return int(number(event.get(key)) or 0)
