"""Scores by which an onlooker tells who was trained on, and how good they are.

White-box attacks as in Nasr, Shokri and Houmansadr 2019 (arXiv:1812.00910): what was released is
explained as a sum of the candidates' own gradients; members get more of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..core.values import Vector

Scores = npt.NDArray[np.float64]

_RIDGE = 0.05  # of unit gradients: below what two records have in common


def gradient_scores(steps: Sequence[Vector]) -> Scores:
    """Per gradient canary [m]: its value in every step's gradient, signs turned back, summed.

    The mean over the steps is taken off first: it holds what no canary's turning sign made.

    Args:
        steps: the canaries' values per step, each [m].
    """
    rows = np.array(steps, np.float64)
    signs = (-1.0) ** np.arange(len(rows))
    found: Scores = signs @ (rows - rows.mean(0) if len(rows) > 1 else rows)
    return found


def record_scores(
    steps: Sequence[Vector], known: npt.NDArray[np.float32], count: int
) -> tuple[Scores, Scores]:
    """Two scores per record canary [m]: how often it was drawn, and how unevenly.

    The first is a record's share over all steps, the second the variance of its share from step
    to step, which noise that is used twice does not hide.

    Args:
        steps: released gradients, each [values]; near `known`, so steps must have been small.
        known: gradients of the canaries and of other records that were trained on, [n, values].
        count: m; the first rows of `known` are the canaries.
    """
    found = shares(np.array(steps, np.float64), known)[:, :count]
    return found.sum(0), found.var(0)


def member_scores(update: Vector, known: npt.NDArray[np.float32]) -> Scores:
    """How much of an update each candidate accounts for, [m]; members have more.

    Args:
        update: local minus global parameters [values], or what an attacker takes for it.
        known: gradients of the candidates at the global parameters, [m, values].
    """
    # Training goes against the gradient; how far it went is unknown and does not matter.
    aim = -update.astype(np.float64) / max(float(np.linalg.norm(update)), 1e-30)
    found: Scores = shares(aim[None], known)[0]
    return found


def shares(rows: Scores, known: npt.NDArray[np.float32]) -> Scores:
    """Each row as a sum of the records' directions, by ridge regression: weights [rows, n].

    Args:
        rows: [rows, values].
        known: gradients of the records, [n, values].
    """
    lengths = np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
    units = (known / lengths).astype(np.float64)
    weights: Scores = np.linalg.solve(units @ units.T + _RIDGE * np.eye(len(units)), units @ rows.T)
    return weights.T


def area(inside: Scores, outside: Scores) -> float:
    """The chance that a member scores above a non-member (area under the ROC curve), 0..1."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left")
    ties = np.searchsorted(ordered, inside, "right") - below
    return float((below + ties / 2.0).mean() / len(outside))


def found_at(inside: Scores, outside: Scores, false_rate: float) -> float:
    """Share of the members that score above all but `false_rate` of the non-members, 0..1."""
    wrong = int(false_rate * len(outside))
    limit = np.sort(outside)[::-1][wrong] if wrong < len(outside) else -np.inf
    return float((inside > limit).mean())


def curve(inside: Scores, outside: Scores) -> list[tuple[float, float]]:
    """The ROC curve as (false, true positive rate), at most 101 points from (0, 0) to (1, 1)."""
    limits = np.sort(np.concatenate([inside, outside]))[::-1]
    steps = np.unique(np.linspace(0, len(limits) - 1, min(99, len(limits))).astype(int))
    points = [
        (float((outside >= limits[i]).mean()), float((inside >= limits[i]).mean())) for i in steps
    ]
    return [(0.0, 0.0), *points, (1.0, 1.0)]
