"""Two heads in closed form that answer together: on the frozen encoder and through the adapter.

The frozen encoder's sums never go stale and the adapter's are of the new features; what one takes
for another the other often does not, so the mean of their log-probabilities is right more often
than either (a product of experts of equal weight: Hinton 2002, section 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.continual import nothing
from ..core.errors import RunError
from ..core.parts import Answer, Continual, Kept, Lesson, Model, Phase
from ..core.values import Manifest, Records, Vector
from ..core.wire import split
from .statistics import Floats

if TYPE_CHECKING:
    from .analytic_answer import HeadAnswer

_NAMES = ("frozen", "adapted")
_SEPARATOR = "."
_TINY = 1e-300  # of a chance, so that it has a logarithm
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
        from . import analytic_answer

        one, other = (analytic_answer.answer(part, model, labels) for part in _halves(head))
        return Together(one, other)

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
    """See `core.continual.Answer`.

    Sums that are taken anew know nothing of a label whose only holder was away: of such a label
    the other half alone tells.
    """

    frozen: HeadAnswer
    adapted: HeadAnswer

    def logits(self, records: Records) -> Vector:
        """Means of the log-probabilities of the labels so far, float32 [n, labels]."""
        one, other = self.frozen, self.adapted
        first, second = (_chances(half.logits(records)) for half in (one, other))
        pair = (
            _completed(first, second, other.known & ~one.known),
            _completed(second, first, one.known & ~other.known),
        )
        mean: Vector = (np.log(np.maximum(pair, _TINY)).mean(0)).astype(np.float32)
        return mean


def _chances(logits: Vector) -> Floats:
    logs = logits.astype(np.float64)
    chances: Floats = np.exp(logs - logs.max(1, keepdims=True, initial=-np.inf))
    chances /= chances.sum(1, keepdims=True)
    return chances


def _completed(mine: Floats, others: Floats, missing: npt.NDArray[np.bool_]) -> Floats:
    """Chances [n, K]: those of the labels `missing` [K] from the other half, mine for the rest."""
    if not missing.any():
        return mine
    rest = np.where(missing, 0.0, mine)
    room = 1.0 - others[:, missing].sum(1, keepdims=True)
    rest *= room / np.maximum(rest.sum(1, keepdims=True), _TINY)
    return np.where(missing, others, rest)


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
