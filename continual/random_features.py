"""Public features on a public grid: whole numbers, the same bits on every machine.

Pooled features are normalised layer by layer and rounded to whole steps; random features are
whole-number projections of them, cut at 0 and rounded again. All that follows the encoder is
arithmetic on small integers, which float32 does without error in any order, so sums of products
of them do not depend on how records were split or ordered, and what a record added once can be
computed again, bit for bit, and taken away.

Random projections with ridge: McDonnell et al. 2023 (arXiv:2307.02251), equation 5; the weights
are binomial here, not Gaussian: whole numbers from a generator whose stream never changes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..core.values import Vector

STEPS = 16
"""Steps of the grid in one standard deviation of a feature."""

LIMIT = 127
"""Largest whole number of a pooled feature: about eight standard deviations, one byte."""

_TRIALS = 16  # of a binomial weight: one for each of 16 random bits
_SPREAD = 2.0  # its standard deviation, sqrt(16) / 2

Grid = npt.NDArray[np.int8]
"""Pooled features in whole steps [n, m]."""


def in_steps(features: Vector, layers: int) -> Vector:
    """Pooled features in steps, not yet whole: each layer has mean 0 and spread `STEPS`.

    Args:
        features: float32 [n, layers * h], the layers side by side.
        layers: how many there are.
    """
    count, width = features.shape
    blocks = np.asarray(features, np.float64).reshape(count, layers, width // layers)
    blocks = blocks - blocks.mean(2, keepdims=True)
    spread = blocks.std(2, keepdims=True)
    blocks *= STEPS / np.where(spread > 0, spread, 1.0)
    steps: Vector = np.clip(blocks, -LIMIT, LIMIT).astype(np.float32)
    return steps.reshape(count, width)


def around(steps: Vector, middle: Vector) -> Vector:
    """`steps` [n, m] less `middle` [m], each row scaled to a spread of `STEPS` around it."""
    rest = steps.astype(np.float64) - middle
    length = np.linalg.norm(rest, axis=1, keepdims=True)
    rest *= STEPS * np.sqrt(steps.shape[1]) / np.where(length > 0, length, 1.0)
    centred: Vector = np.clip(rest, -LIMIT, LIMIT).astype(np.float32)
    return centred


def on_grid(features: Vector, layers: int) -> Grid:
    """Pooled features in whole steps [n, layers * h]; arguments as of `in_steps`."""
    return np.rint(in_steps(features, layers)).astype(np.int8)


def expand(grid: Grid, width: int, seed: int) -> Vector:
    """Random features of the grid in whole steps, float32 [n, width]; the grid for width 0.

    Args:
        grid: [n, m].
        width: how many random features; 0 for none.
        seed: public, the same for everyone who adds to or reads a sum.
    """
    # Exact: |sum| <= m * 127 * 8, below 2^24 up to m = 16,512.
    return np.rint(project(grid.astype(np.float32), width, seed))


def project(steps: Vector, width: int, seed: int) -> Vector:
    """max(0, steps W) as wide as the steps, not yet whole: float32 [n, width].

    Where records are answered nothing is summed, and what is not rounded does not jump.
    """
    if not width:
        return steps
    drive: Vector = steps @ weights(steps.shape[1], width, seed)
    np.maximum(drive, 0.0, out=drive)
    drive *= np.float32(1.0 / (_SPREAD * np.sqrt(steps.shape[1])))
    return drive


@lru_cache(maxsize=2)
def weights(inputs: int, width: int, seed: int) -> Vector:
    """Binomial weights -8..8, float32 [inputs, width], of mean 0 and standard deviation 2."""
    count = inputs * width
    raw = np.random.Philox(key=seed).random_raw((count + 3) // 4)
    ones: Vector = np.bitwise_count(raw.astype("<u8").view("<u2")[:count]).astype(np.float32)
    return (ones - np.float32(_TRIALS // 2)).reshape(inputs, width)
