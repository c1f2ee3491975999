"""What a continual learner keeps and loses, from one matrix of accuracies.

Average accuracy and backward transfer: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840, section 2);
forgetting: Chaudhry et al. 2018 (arXiv:1801.10112, equations 2 and 3); learning accuracy, the
mean of the same matrix's diagonal, has its name from Riemer et al. 2019 (arXiv:1810.11910).

In every function A is [T, T]: row i was measured after learning domain i, column j holds the
accuracy on domain j, 0..1; cells with j > i are not read. Departure from the papers: a cell
that was not measured is nan and is left out of the means; a mean over nothing is nan.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float64]
"""Accuracies [T, T], 0..1, nan where not measured."""


def average_accuracy(A: Matrix) -> Matrix:
    """Mean accuracy over the domains seen so far, after each domain: [T], 0..1.

    Raises:
        ValueError: `A` is not square.
    """
    _check(A)
    return np.array([_mean(A[i, : i + 1]) for i in range(len(A))], np.float64)


def forgetting(A: Matrix) -> Matrix:
    """Mean loss since each old domain's best, after each domain: [T], -1..1.

    Entry i is the mean over j < i of max_{k<i} A[k, j] - A[i, j]; entry 0 is 0. Negative where
    old domains are better than they ever were.

    Raises:
        ValueError: `A` is not square.
    """
    _check(A)
    return np.array([_mean(_lost(A, i)) if i else 0.0 for i in range(len(A))], np.float64)


def backward_transfer(A: Matrix) -> float:
    """Mean of A[T-1, j] - A[j, j] over j < T-1, -1..1; negative where learning hurt the past.

    nan for fewer than two domains, where the paper's formula divides by zero.

    Raises:
        ValueError: `A` is not square.
    """
    _check(A)
    return _mean(A[-1, :-1] - np.diagonal(A)[:-1]) if len(A) else float("nan")


def learning_accuracy(A: Matrix) -> float:
    """Mean accuracy on each domain right after it was learnt, 0..1; nan without domains.

    Raises:
        ValueError: `A` is not square.
    """
    _check(A)
    return _mean(np.diagonal(A))


def _check(matrix: Matrix) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the accuracy matrix must be square [T, T]; got shape {matrix.shape}")


def _lost(matrix: Matrix, i: int) -> list[float]:
    best = [_max(matrix[j:i, j]) for j in range(i)]
    return [top - float(now) for top, now in zip(best, matrix[i, :i], strict=True)]


def _max(values: Iterable[float]) -> float:
    return max((float(v) for v in values if not np.isnan(v)), default=float("nan"))


def _mean(values: Iterable[float]) -> float:
    known = [float(v) for v in values if not np.isnan(v)]
    return sum(known) / len(known) if known else float("nan")
