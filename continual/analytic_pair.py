"""Two heads in closed form that answer together: on the frozen encoder and through the adapter.

The frozen encoder's sums never go stale and the adapter's are of the new features; what one takes
for another the other often does not, so the mean of their log-probabilities is right more often
than either (a product of experts of equal weight: Hinton 2002, section 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.continual import nothing
from ..core.errors import RunError
from ..core.parts import Answer, Continual, Kept, Lesson, Model, Phase
from ..core.values import Manifest, Records, Vector
from ..core.wire import split

_NAMES = ("frozen", "adapted")
_SEPARATOR = "."
_BASE = 2**20  # a length in two digits, each of which float32 holds exactly


def paired(frozen: Continual, adapted: Continual) -> Continual:
    """The method of both, each with its own part of the sum and of what is kept.

    Args:
        frozen: `analytic_head` on the base.
        adapted: `analytic_head` through the adapter.
    """
    each = (frozen, adapted)

    def finish(phase: Phase, shard: Records, model: Model, again: Phase) -> Vector:
        return np.concatenate([method.finish(phase, shard, model, again) for method in each])

    def learn(kept: Kept, lesson: Lesson) -> Kept:
        totals = split(lesson.total, [method.size(lesson.manifest) for method in each])
        after: dict[str, Any] = {}
        for name, method, total in zip(_NAMES, each, totals, strict=True):
            own = method.learn(_part(kept, name), replace(lesson, total=total))
            after |= {name + _SEPARATOR + key: value for key, value in own.items()}
        return after

    def head(kept: Kept) -> Vector:
        heads = [method.head(_part(kept, name)) for name, method in zip(_NAMES, each, strict=True)]
        if not all(part.size for part in heads):
            return nothing()
        digits = np.array(divmod(heads[0].size, _BASE), np.float32)
        return np.concatenate([digits, *heads])

    def answer(head: Vector, model: Model, labels: tuple[str, ...]) -> Answer:
        parts = zip(each, _halves(head), strict=True)
        return Together(tuple(_answers(method)(part, model, labels) for method, part in parts))

    def facts(kept: Kept) -> Mapping[str, float | int | str]:
        return {
            f"{key} ({name})": value
            for name, method in zip(_NAMES, each, strict=True)
            for key, value in method.facts(_part(kept, name)).items()
        }

    def size(manifest: Manifest) -> int:
        return sum(method.size(manifest) for method in each)

    return replace(
        adapted,
        size=size,
        parts=lambda manifest: tuple(n for method in each for n in method.lengths(manifest)),
        finish=finish,
        learn=learn,
        head=head,
        answer=answer,
        facts=facts,
        sums=sum(method.sums for method in each),
        private=all(method.private for method in each),
    )


@dataclass(frozen=True, slots=True)
class Together:
    """See `core.continual.Answer`."""

    answers: tuple[Answer, ...]

    def logits(self, records: Records) -> Vector:
        """Means of the log-probabilities of the labels so far, float32 [n, labels]."""
        total = sum(answer.logits(records).astype(np.float64) for answer in self.answers)
        mean: Vector = (np.asarray(total) / len(self.answers)).astype(np.float32)
        return mean


def _answers(method: Continual) -> Callable[[Vector, Any, tuple[str, ...]], Answer]:
    assert method.answer is not None
    return method.answer


def _halves(head: Vector) -> list[Vector]:
    """The two heads in one vector.

    Raises:
        RunError: the vector does not hold two.
    """
    digits = head[:2].astype(np.float64)
    sound = len(digits) == 2 and bool(np.isfinite(digits).all() and (digits >= 0.0).all())
    first = int(digits[0] * _BASE + digits[1]) if sound else -1
    if not 0 < first < len(head) - 2:
        raise RunError(
            f"these {len(head)} values must be two heads in closed form; they are not. Use one "
            "config and one version of the package at both ends."
        )
    return split(head[2:], [first, len(head) - 2 - first])


def _part(kept: Kept, name: str) -> Kept:
    prefix = name + _SEPARATOR
    return {key.removeprefix(prefix): kept[key] for key in kept if key.startswith(prefix)}
