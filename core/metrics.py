"""What a continual learner keeps and loses, from one matrix of accuracies.

Average accuracy, backward and forward transfer: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840,
equations 2 to 4); forgetting: Chaudhry et al. 2018 (arXiv:1801.10112, equations 2 and 3);
learning accuracy, the mean of the same matrix's diagonal, has its name from Riemer et al. 2019
(arXiv:1810.11910).

In every function A is [T, T]: row i was measured after learning domain i, column j holds the
accuracy on domain j, 0..1; only `forward_transfer` reads cells with j > i. Departure from the
papers: a cell that was not measured is nan and is left out of the means; a mean over nothing is
nan.

With several clients there is one such matrix for each, [C, T, T]. What is told of them follows the
practice of fair federated learning, Li et al. 2020 (arXiv:1905.10497, table 1): the mean, the worst
and the spread over clients, of average accuracy and of forgetting alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


def forward_transfer(A: Matrix, baseline: Matrix) -> float:
    """Mean of A[j-1, j] - baseline[j] over j > 0, -1..1: what learning helped domains to come.

    nan where no such pair was measured. A head that has no output for a label before its domain
    comes cannot be measured ahead: in a class-incremental stream this figure does not exist.

    Args:
        A: [T, T]; here the cells right above the diagonal are read.
        baseline: [T], accuracy on each domain before anything was learnt, 0..1.

    Raises:
        ValueError: `A` is not square, or `baseline` has another length.
    """
    _check(A)
    if baseline.shape != (len(A),):
        raise ValueError(f"the baseline must have length {len(A)}; got shape {baseline.shape}")
    return _mean(np.diagonal(A, 1) - baseline[1:])


def weighted_accuracy(A: Matrix, sizes: Matrix) -> float:
    """The last row's mean weighted by the domains' sizes: the share of all requests, 0..1.

    nan where no domain of a size above 0 was measured.

    Args:
        A: [T, T].
        sizes: [T], number of test records of each domain; nan where unknown.

    Raises:
        ValueError: `A` is not square, or `sizes` has another length.
    """
    _check(A)
    if sizes.shape != (len(A),):
        raise ValueError(f"the sizes must have length {len(A)}; got shape {sizes.shape}")
    return _weighted(A[-1], sizes) if len(A) else float("nan")


def learning_accuracy(A: Matrix) -> float:
    """Mean accuracy on each domain right after it was learnt, 0..1; nan without domains.

    Raises:
        ValueError: `A` is not square.
    """
    _check(A)
    return _mean(np.diagonal(A))


@dataclass(frozen=True, slots=True)
class OverClients:
    """One figure of every client, and what it comes to over them.

    Attributes:
        values: of each client [C]; nan for one that measured nothing.
        mean: every measured client counts alike.
        weighted: each client counts by its weight.
        worst: the worst client's figure; nan where there is none.
        who: the index of that client, the first of equals; -1 where there is none.
        spread: standard deviation over the measured clients, dividing by their number.
    """

    values: Matrix
    mean: float
    weighted: float
    worst: float
    who: int
    spread: float


def clients_accuracy(matrices: Matrix, weights: Matrix) -> OverClients:
    """The clients' average accuracy after the last domain; the worst is the least.

    Args:
        matrices: [C, T, T], one accuracy matrix for each client.
        weights: [C], 0 or more: numbers of test records, say.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_clients(matrices, weights)
    found = [average_accuracy(A)[-1] if len(A) else float("nan") for A in matrices]
    return _over(np.array(found, np.float64), weights, worst=min)


def clients_forgetting(matrices: Matrix, weights: Matrix) -> OverClients:
    """The clients' forgetting after the last domain; the worst is the largest.

    Args:
        matrices: [C, T, T], one accuracy matrix for each client.
        weights: [C], 0 or more: numbers of test records, say.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_clients(matrices, weights)
    found = [forgetting(A)[-1] if len(A) else float("nan") for A in matrices]
    return _over(np.array(found, np.float64), weights, worst=max)


def _over(values: Matrix, weights: Matrix, worst: Callable[[list[float]], float]) -> OverClients:
    known = [float(value) for value in values if not np.isnan(value)]
    extreme = worst(known) if known else float("nan")
    return OverClients(
        values,
        mean=_mean(known),
        weighted=_weighted(values, weights),
        worst=extreme,
        who=values.tolist().index(extreme) if known else -1,
        spread=float(np.std(known)) if known else float("nan"),
    )


def _check_clients(matrices: Matrix, weights: Matrix) -> None:
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        got = matrices.shape
        raise ValueError(f"the clients' matrices must have shape [C, T, T]; got {got}")
    if weights.shape != (len(matrices),):
        raise ValueError(f"there must be {len(matrices)} weights; got shape {weights.shape}")


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


def _weighted(values: Matrix, weights: Matrix) -> float:
    known = ~np.isnan(values) & (np.nan_to_num(weights) > 0.0)
    total = float(weights[known].sum())
    return float(values[known] @ weights[known]) / total if known.any() else float("nan")
