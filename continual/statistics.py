"""Sums of per-example statistics: counts, class sums and the Gram matrix, as one vector.

The vector is `[counts [K] | class sums [K, M] | upper triangle of the Gram matrix, row by row
[M (M + 1) / 2]]`. Law: the vector of two sets of records together is the sum of their vectors;
for features that are whole numbers it is so bit for bit while no value passes 2^24, the last
whole number that float32 counts to without a gap (beyond it, to one part in 2^24).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.values import Vector

Floats = npt.NDArray[np.float64]
"""A float64 array."""

_EXACT = 2.0**24  # whole numbers that float32 holds without a gap
_PANEL = 512  # rows of the Gram matrix that are computed at once


def size(num_labels: int, width: int, *, second: bool = True) -> int:
    """How many values the vector has.

    Args:
        num_labels: K.
        width: M, number of features.
        second: whether the Gram matrix is in it.
    """
    return num_labels * (1 + width) + second * triangle(width)


def triangle(width: int) -> int:
    """How many values the upper triangle of a matrix [width, width] has, diagonal included."""
    return width * (width + 1) // 2


def gather(
    features: Vector,
    classes: npt.NDArray[np.intp],
    num_labels: int,
    *,
    second: bool = True,
    signs: Vector | None = None,
) -> Vector:
    """The vector of sums over records, float32 [size(K, M)].

    Args:
        features: float32 [n, M]; n may be 0.
        classes: index of each record's label, 0..K-1, [n].
        num_labels: K.
        second: whether to sum the Gram matrix too.
        signs: 1 to add a record, -1 to take it away, [n]; None adds them all.
    """
    count, width = features.shape
    vector = np.zeros(size(num_labels, width, second=second), np.float32)
    if not count:
        return vector
    signed = features if signs is None else features * signs[:, None]
    ones = np.ones(count, np.float32) if signs is None else signs
    vector[:num_labels] = np.bincount(classes, ones, num_labels)
    sums = np.zeros((num_labels, width))
    np.add.at(sums, classes, signed)
    vector[num_labels : num_labels * (1 + width)] = sums.reshape(-1)
    if second:
        fill_triangle(vector[num_labels * (1 + width) :], features, signed)
    return vector


def fill_triangle(packed: Vector, features: Vector, signed: Vector) -> None:
    """Write the upper triangle of signed^T features into `packed` [triangle(M)], in place.

    No full matrix is made: panels of rows go straight into the triangle.
    """
    width = features.shape[1]
    # By Cauchy and Schwarz no partial sum passes the largest column's; else take float64.
    exact = float(np.square(features, dtype=np.float64).sum(0).max(initial=0.0)) < _EXACT
    if not exact:
        features, signed = features.astype(np.float64), signed.astype(np.float64)
    start = 0
    for first in range(0, width, _PANEL):
        panel = signed[:, first : first + _PANEL].T @ features[:, first:]
        for row, values in enumerate(panel):
            end = start + width - first - row
            packed[start:end] = values[row:]
            start = end


def full(packed: npt.NDArray[Any], width: int) -> Floats:
    """The symmetric matrix float64 [width, width] of its upper triangle [triangle(width)]."""
    matrix = np.zeros((width, width))
    start = 0
    for row in range(width):
        end = start + width - row
        matrix[row, row:] = packed[start:end]
        matrix[row:, row] = packed[start:end]
        start = end
    return matrix


@dataclass(frozen=True, slots=True)
class Sums:
    """Statistics of any number of records.

    Attributes:
        counts: records per label, [K].
        sums: sum of the features per label, [K, M].
        gram: upper triangle of the Gram matrix, [triangle(M)]; empty where it was not summed.
    """

    counts: npt.NDArray[Any]
    sums: npt.NDArray[Any]
    gram: npt.NDArray[Any]

    @property
    def width(self) -> int:
        """M, number of features."""
        return int(self.sums.shape[1])


def view(vector: npt.NDArray[Any], num_labels: int, width: int) -> Sums:
    """Views into the vector of `gather`; the Gram matrix is empty where it is not in it.

    Raises:
        ValueError: the vector is of other sizes.
    """
    start = num_labels * (1 + width)
    if len(vector) not in (start, start + triangle(width)):
        raise ValueError(
            f"the sums of {num_labels} labels and {width} features must have {start} values, or "
            f"{start + triangle(width)} with the Gram matrix; got {len(vector)}"
        )
    sums = vector[num_labels:start].reshape(num_labels, width)
    return Sums(vector[:num_labels], sums, vector[start:])
