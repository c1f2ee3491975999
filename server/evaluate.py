"""Scores of the global adapter, domain by domain: on the server's test records or the clients'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from ..core.parts import Answer, Encoded, Model, Reply, Score
from ..core.values import Splits, Ticket, Vector
from ..data.stream import of_domain


class TestRecords:
    """The server's own test records, encoded once per domain and kept."""

    def __init__(self, model: Model, splits: Splits, batch_size: int) -> None:
        self._model = model
        self._records = splits.test
        self._batch_size = batch_size
        self._encoded: dict[str, Encoded] = {}

    def scores(self, params: Vector, domains: Sequence[str]) -> dict[str, Score]:
        """Scores of `params` by domain; the model keeps `params` afterwards."""
        self._model.load(params)
        return {name: self._score(name) for name in domains}

    def answered(self, answer: Answer, domains: Sequence[str]) -> dict[str, Score]:
        """Scores by domain of what answers in the model's place."""
        labels = {label: i for i, label in enumerate(self._model.labels)}
        found: dict[str, Score] = {}
        for name in domains:
            records = of_domain(self._records, name)
            targets = [labels[target] for target in records.targets]
            found[name] = Score.of(answer.logits(records), targets)
        return found

    def _score(self, domain: str) -> Score:
        if domain not in self._encoded:
            self._encoded[domain] = self._model.encode(of_domain(self._records, domain))
        return self._model.score(self._encoded[domain], self._batch_size)


def of_clients(
    replies: Iterable[Reply], ticket: Ticket, domains: Sequence[str], max_total: float
) -> tuple[dict[int, list[Score]], int]:
    """Each client's scores in the order of `domains`, and how many replies were left out.

    Args:
        replies: answers to an evaluate task.
        ticket: what they must answer to.
        domains: names in the order of the task.
        max_total: largest believable number of answers of one client in one domain.
    """
    found: dict[int, list[Score]] = {}
    bad = 0
    for reply in replies:
        scores = _scores(reply, ticket, len(domains), max_total)
        if scores is None or reply.node in found:
            bad += 1
        else:
            found[reply.node] = scores
    return {node: found[node] for node in sorted(found)}, bad


def summed(scores: Mapping[int, Sequence[Score]], domains: Sequence[str]) -> dict[str, Score]:
    """Sums over the clients by domain, in the order of the nodes: float sums depend on it."""
    total = {name: Score() for name in domains}
    for node in sorted(scores):
        for name, score in zip(domains, scores[node], strict=True):
            total[name] += score
    return total


def _scores(reply: Reply, ticket: Ticket, count: int, max_total: float) -> list[Score] | None:
    if reply.error or reply.ticket is None or dict(reply.ticket) != asdict(ticket):
        return None
    metrics = reply.metrics or {}
    scores = [_one(metrics, index, max_total) for index in range(count)]
    return [s for s in scores if s is not None] if None not in scores else None


def _one(metrics: Mapping[str, object], index: int, max_total: float) -> Score | None:
    values = [metrics.get(f"{name}.{index}") for name in ("loss", "correct", "total")]
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if len(numbers) != 3 or not 0 <= numbers[1] <= numbers[2] <= max_total:
        return None
    return Score(numbers[0], int(numbers[1]), int(numbers[2]))
