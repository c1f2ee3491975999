"""Linear heads in closed form, from sums of per-example statistics alone.

Class means (Mensink et al. 2013, doi:10.1109/TPAMI.2013.83), linear discriminants with one
covariance for all classes (Hayes and Kanan 2020, arXiv:1909.01520), and ridge regression on
one-hot targets (McDonnell et al. 2023, arXiv:2307.02251). Ridge and discriminants are centred,
so the intercept is not shrunk. A label without records gets no answer: its score is the lowest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..core.errors import RunError
from ..core.values import Vector
from .statistics import Floats, Sums, full

_ENERGY = 0.8  # of the classes' spread that says how far each is from the middle

NEVER = -1e4
"""Intercept of a label without records: below any score, and far from what overflows."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear head.

    Attributes:
        weight: float32 [K, M].
        bias: float32 [K].
    """

    weight: Vector
    bias: Vector

    def scores(self, features: Vector) -> Vector:
        """Scores float32 [n, K] of features float32 [n, M]."""
        # In float64, so that where a label stands among others changes no bit that is kept.
        scores = features.astype(np.float64) @ self.weight.T.astype(np.float64)
        found: Vector = (scores + self.bias).astype(np.float32)
        return found


def class_means(sums: Sums) -> Floats:
    """The mean of each label's features, float64 [K, M]; zeros for a label without records."""
    counts = np.asarray(sums.counts, np.float64)
    total = np.asarray(sums.sums, np.float64)
    held = counts > 0
    return np.where(held[:, None], total, 0.0) / np.where(held, counts, 1.0)[:, None]


def means(sums: Sums, within: Floats | None = None) -> Callable[[float], Linear]:
    """(shrinkage 0..1) -> the head of the nearest class mean, by cosine around the classes' middle.

    Needs counts and class sums only. The shrinkage is the weight of the identity in the metric;
    1 takes no heed of `within`. All classes count as equally far from the middle, which
    noise in the sums would tilt otherwise; how far is read from the directions that hold most of
    the classes' spread.

    Args:
        sums: the Gram matrix is not looked at.
        within: covariance [M, M] of the features within classes, from records that are no
            client's; the cosine is then Mahalanobis's.
    """
    held = np.asarray(sums.counts) > 0
    centres = class_means(sums)
    middle = centres[held].mean(0) if held.any() else np.zeros(sums.width)
    spread = np.where(held[:, None], centres - middle, 0.0)
    left, values, right = np.linalg.svd(spread, full_matrices=False)
    energy = np.cumsum(values**2) / max(float((values**2).sum()), 1e-12)
    rank = 1 + int(np.searchsorted(energy, _ENERGY))
    main = (left[:, :rank] * values[:rank]) @ right[:rank]

    def solve(shrinkage: float) -> Linear:
        weight = spread
        level = float(np.trace(within)) / sums.width if within is not None else 0.0
        if within is not None and level > 0.0 and shrinkage < 1.0:
            weight = solved(within * (1.0 - shrinkage), shrinkage * level, spread.T).T
            weight = weight * level
        length = np.sqrt(np.maximum((weight * main).sum(1, keepdims=True), 0.0))
        weight = weight / np.where(length > 0, length, 1.0)
        # One scale for all labels: the score of a class's own mean is about 1.
        weight /= max(float(length.mean(where=held[:, None])) if held.any() else 0.0, 1e-12)
        return _linear(weight, -weight @ middle, held)

    return solve


def discriminants(sums: Sums) -> Callable[[float], Linear]:
    """(shrinkage 0..1) -> the linear discriminants of classes with one covariance.

    The shrinkage is the weight of a multiple of the identity in the covariance within classes;
    equal priors, because the labels of a stream come and go.
    """
    centres = class_means(sums)
    counts = np.asarray(sums.counts, np.float64)
    held = counts > 0
    scatter = full(sums.gram, sums.width)
    scatter -= (centres * counts[:, None]).T @ centres
    scatter /= max(counts.sum() - held.sum(), 1.0)
    level = float(np.trace(scatter)) / sums.width

    def solve(shrinkage: float) -> Linear:
        ridge = shrinkage * level if level > 0 else 1.0
        weight = solved(scatter * (1.0 - shrinkage), ridge, centres.T).T
        return _linear(weight, -0.5 * (weight * centres).sum(1), held)

    return solve


def ridge(sums: Sums) -> Callable[[float], Linear]:
    """(regulariser > 0) -> the ridge regression on one-hot targets.

    The regulariser is in units of the mean diagonal of the centred Gram matrix, so one value
    means the same for any number of records and any scale of the features.
    """
    counts = np.asarray(sums.counts, np.float64)
    number = max(float(counts.sum()), 1.0)
    total = np.asarray(sums.sums, np.float64)
    middle = total.sum(0) / number
    gram = full(sums.gram, sums.width)
    gram -= number * np.outer(middle, middle)
    level = float(np.trace(gram)) / sums.width
    targets = (total - np.outer(counts, middle)).T
    shares = counts / number

    def solve(regulariser: float) -> Linear:
        weight = solved(gram, regulariser * level if level > 0 else 1.0, targets).T
        return _linear(weight, shares - weight @ middle, counts > 0)

    return solve


def solved(matrix: Floats, regulariser: float, targets: Floats) -> Floats:
    """(matrix + regulariser * 1)^-1 targets, float64 [M, K]; `matrix` [M, M] is left as it was.

    A matrix that noise or rounding made indefinite gets ten times the regulariser until it is
    definite.

    Args:
        matrix: symmetric.
        regulariser: >= 0.
        targets: [M, K].

    Raises:
        RunError: a value is not finite.
    """
    if not (np.isfinite(matrix).all() and np.isfinite(targets).all() and regulariser >= 0.0):
        raise RunError(
            "the sums that a head is solved from must be finite; these are not. A client sent "
            "what no features can sum to: look at the clients' versions and start the run anew."
        )
    largest = float(np.abs(np.diagonal(matrix)).max(initial=0.0))
    regulariser = max(regulariser, 1e-12 * (largest or 1.0))
    right = torch.from_numpy(np.ascontiguousarray(targets))
    while True:
        factor = torch.from_numpy(matrix.copy())
        factor.diagonal().add_(regulariser)
        factor, failed = torch.linalg.cholesky_ex(factor)
        if not int(failed):
            answer: Floats = torch.cholesky_solve(right, factor).numpy()
            return answer
        regulariser *= 10.0


def _linear(weight: Floats, bias: Floats, held: np.ndarray) -> Linear:
    return Linear(
        np.where(held[:, None], weight, 0.0).astype(np.float32),
        np.where(held, bias, NEVER).astype(np.float32),
    )
