"""Whether a domain update may go into service: what it cost the old domains, and what it brought.

A model that learnt something new may have lost something old, and one that was fed garbage learns
it: both show in scores on records that were kept apart. What fails is named, with its figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.config import Update
from .events import number
from .report_log import table
from .report_privacy import breaches, epsilon, noun
from .units import percent, points


@dataclass(frozen=True, slots=True)
class Check:
    """One condition.

    Attributes:
        what: what was looked at.
        words: figure and bar for people.
        holds: whether it may pass.
    """

    what: str
    words: str
    holds: bool

    def pack(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def gate(
    report: Mapping[str, Any], before: Mapping[str, Any] | None, limits: Update
) -> list[Check]:
    """What a new model must keep, each condition with its figure.

    Args:
        report: of the run that learnt the new domains, as `report.summarise` gives it.
        before: the same of the release in service; None for the very first.
        limits: `[update]` of the config.
    """
    found, old = accuracy(report), accuracy(before) if before else {}
    lost = _given_up(report, len(learnt(before)) if before else 0)
    checks = [Check("finished", _end(report, lost), bool(report["finished"]) and not lost)]
    checks += [_kept(name, old[name], found.get(name), limits.max_loss) for name in old]
    for name in learnt(report):
        if name not in old:
            checks += _new(name, found.get(name), _ahead(report, name), limits)
    checks += _clients(report, before, limits.max_client_loss)
    return checks + list(_promises(report))


def accuracy(report: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy 0..1 of each domain after the last, by whoever answers."""
    names, done = learnt(report), report.get("learnt") or 0
    if not done:
        return {}
    row = report["accuracy_matrix"][done - 1]
    pairs = zip(names[:done], row, strict=False)
    return {name: value for name, cell in pairs if (value := number(cell)) is not None}


def learnt(report: Mapping[str, Any]) -> list[str]:
    """Names of the domains that have ended, in order."""
    return [str(domain["name"]) for domain in report["domains"] if domain["finished"]]


def _end(report: Mapping[str, Any], lost: int) -> str:
    if not report["finished"]:
        return "the run has not ended"
    return f"{lost} rounds were given up; none may be" if lost else "all rounds were had"


def _given_up(report: Mapping[str, Any], first: int) -> int:
    """Rounds that were given up in domain `first` and later ones."""
    return sum(
        failure["domain"] >= first and str(failure["reason"]).startswith("given up")
        for failure in report["failed_attempts"]
    )


def _kept(name: str, before: float, now: float | None, most: float) -> Check:
    if now is None:
        return Check(f"old domain {name}", "it was not measured", holds=False)
    words = f"{percent(before)} to {percent(now)}; may lose {points(most / 100)}"
    return Check(f"old domain {name}", words, holds=100 * (before - now) <= most + 1e-9)


def _new(name: str, now: float | None, ahead: float, limits: Update) -> list[Check]:
    if now is None:
        return [Check(f"new domain {name}", "it was not measured", holds=False)]
    least = f"{percent(now)}; must be {percent(limits.min_accuracy)} or more"
    gain = f"{percent(ahead)} to {percent(now)}; must gain {points(limits.min_gain / 100)}"
    enough = 100 * (now - ahead) >= limits.min_gain - 1e-9
    return [
        Check(f"new domain {name}", least, holds=now >= limits.min_accuracy - 1e-9),
        Check(f"gain on {name}", gain, holds=enough),
    ]


def _ahead(report: Mapping[str, Any], name: str) -> float:
    """Accuracy on a domain before it was learnt: 0 where its labels were not known."""
    told = report.get("ahead") or []
    names = [str(domain["name"]) for domain in report["domains"]]
    place = names.index(name)
    return number(told[place]) or 0.0 if place < len(told) else 0.0


def _clients(
    report: Mapping[str, Any], before: Mapping[str, Any] | None, most: float
) -> list[Check]:
    """The client that lost most on the old domains, where clients tell their scores."""
    was, now = _each(before or {}), _each(report)
    names = learnt(before) if before else []
    losses = {
        node: 100 * (one - other)
        for node in was.keys() & now.keys()
        if (one := _mean(was[node][: len(names)])) is not None
        and (other := _mean(now[node][: len(names)])) is not None
    }
    if not losses:
        return []
    node = max(losses, key=lambda node: (losses[node], -node))
    words = f"node {node} lost {points(losses[node] / 100)}; may lose {points(most / 100)}"
    return [Check("worst client", words, holds=losses[node] <= most + 1e-9)]


def _each(report: Mapping[str, Any]) -> dict[int, Sequence[Any]]:
    clients = table(report.get("over_clients")).get("clients") or []
    return {int(client["node"]): client["domains"] for client in clients}


def _mean(cells: Sequence[Any]) -> float | None:
    values = [value for cell in cells if (value := number(cell)) is not None]
    return sum(values) / len(values) if values else None


def _promises(report: Mapping[str, Any]) -> Iterator[Check]:
    block = report.get("privacy")
    if not block:
        return
    for unit in block["units"]:
        spent, target = number(unit["epsilon"]), number(unit["target"])
        words = f"epsilon {epsilon(spent)}" + ("" if target is None else f" of {target:g}")
        within = spent is not None and (target is None or spent <= target * (1 + 1e-9))
        yield Check(f"privacy per {noun(unit)}", words, holds=within)
    for line in breaches(block):
        yield Check("privacy", line, holds=False)
