"""Whether a single request fits any class that the model has learnt.

The score is 1 - the cosine to the nearest class mean of the frozen embeddings; a request beyond
what 95 % of the validation records reach is out of scope. A nearest-class-mean rule as in Mensink
et al. 2013 (IEEE TPAMI 35), on cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.values import Vector
from .index import class_means


@dataclass(frozen=True, slots=True)
class Scope:
    """What lies within the classes.

    Attributes:
        classes: their names.
        means: mean embedding of each, L2 norm 1, float32 [classes, d].
        threshold: largest score within scope, 0..2; nothing lies beyond an infinite one.
    """

    classes: tuple[str, ...]
    means: Vector
    threshold: float = float("inf")

    def scores(self, rows: Vector) -> Vector:
        """1 - cosine to the nearest class mean, float32 [n] in 0..2, of embeddings [n, d]."""
        nearest = (rows @ self.means.T).max(1)
        return np.asarray(1.0 - nearest / np.maximum(np.linalg.norm(rows, axis=1), 1e-12))

    def outside(self, rows: Vector) -> npt.NDArray[np.bool_]:
        """Whether each embedding of [n, d] is out of scope."""
        return np.asarray(self.scores(rows) > self.threshold)


def scope_of(
    rows: Vector, classes: Sequence[str], validation: Vector | None = None, kept: float = 0.95
) -> Scope:
    """The scope of the classes of `rows`.

    Args:
        rows: embeddings [n, d], n >= 1.
        classes: of each.
        validation: embeddings of other records of these classes; without any, nothing is out.
        kept: share of them that must stay in scope, 0..1.

    Raises:
        ValueError: there is no record to take a mean of.
    """
    if not len(rows):
        raise ValueError("a scope needs the embeddings of one record or more; got none")
    names = tuple(dict.fromkeys(classes))
    index = {name: i for i, name in enumerate(names)}
    means = unit(class_means(rows, np.array([index[name] for name in classes]), len(names)))
    scope = Scope(names, means)
    if validation is None or not len(validation):
        return scope
    reach = np.quantile(scope.scores(validation), kept, method="higher")
    return Scope(names, means, float(reach))


def unit(rows: npt.NDArray[Any]) -> Vector:
    """`rows` [n, d] with an L2 norm of 1 each, float32; a row of zeros stays one."""
    wide = np.asarray(rows, np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.maximum(norms, np.float32(1e-12)))


def area(inside: npt.NDArray[Any], outside: npt.NDArray[Any]) -> float:
    """Area under the ROC curve: the chance that one of `outside` [n] exceeds one of `inside` [m].

    Equal ones count half. Hanley and McNeil 1982, Radiology 143.
    """
    ordered = np.sort(np.asarray(inside))
    below = np.searchsorted(ordered, outside, "left")
    level = np.searchsorted(ordered, outside, "right")
    return float(((below + level) / 2.0).mean() / len(ordered))
