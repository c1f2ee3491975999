"""Statistics of a domain's own records as one noisy sum: one row for each record.

The row is the record's features u, cut to norm 1, three times: the upper triangle of u u^T with
the entries off the diagonal times sqrt(2), which makes its norm that of u u^T, then u and a 1 at
the places of the record's label. Each part has a public weight, and the squares of the weights
add up to 1, so every row has norm 1 and nothing of the promise is wasted. (The noisy sufficient
statistics of a linear model: Wang 2018, arXiv:1803.02596; here all parts are one release.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ..core.values import Records, Vector
from . import statistics

WITH_GRAM, WITHOUT = (0.24, 0.96, 0.14), (0.0, 0.97, 0.25)
"""Weights of the three parts, with a Gram matrix and without, before they are scaled to norm 1."""

_FEW = 10.0  # records of a label at which a client's noisy class sum counts half

_BLOCK = 4_000_000  # values of the rows that are made at once

Summed = Callable[[Iterator[Vector], Records, float], Vector]
"""(rows in blocks, their records, clip) -> their sum, as `Phase.summed`."""


def noisy(
    features: Callable[[npt.NDArray[np.intp]], Vector],
    records: Records,
    classes: npt.NDArray[np.intp],
    labels: npt.NDArray[np.intp],
    num_labels: int,
    width: int,
    radius: float,
    summed: Summed,
    *,
    second: bool = True,
) -> Vector:
    """The vector of `statistics.gather` of one domain's records, with noise, float32.

    Labels of other domains get exact zeros: that they have no records here is public. Without a
    Gram matrix, class sums are weighed by how many records they seem to be of, and the labels of
    the domain are taken to be as frequent as each other.

    Args:
        features: positions of records [b] -> theirs, float32 [b, M].
        records: of this domain; each id once.
        classes: place of each record's label in `labels`, [n].
        labels: the domain's labels as indices of all labels, [L].
        num_labels: K, of all labels.
        width: M.
        radius: what norm the features are cut to, public.
        summed: what adds the rows up and their noise.
        second: whether the Gram matrix is summed too.
    """
    parts = np.array(WITH_GRAM if second else WITHOUT)
    gram, sums, counts = parts / np.linalg.norm(parts)
    pairs = statistics.triangle(width) if second else 0
    upper = np.triu_indices(width) if second else None
    length = pairs + len(labels) * (width + 1)
    block = max(1, _BLOCK // length)

    def rows() -> Iterator[Vector]:
        yield np.zeros((0, length), np.float32)  # so that the sum of no record has its length
        for start in range(0, len(records), block):
            part = np.arange(start, min(start + block, len(records)))
            unit = features(part).astype(np.float64)
            norms = np.linalg.norm(unit, axis=1, keepdims=True)
            unit /= np.where(norms > 0, norms, 1.0)
            row = np.zeros((len(part), length), np.float32)
            if upper is not None:
                scale = np.where(upper[0] == upper[1], gram, gram * np.sqrt(2.0))
                row[:, :pairs] = unit[:, upper[0]] * unit[:, upper[1]] * scale
            places = pairs + classes[part, None] * width + np.arange(width)
            np.put_along_axis(row, places, (sums * unit).astype(np.float32), 1)
            row[np.arange(len(part)), pairs + len(labels) * width + classes[part]] = counts
            yield row

    total = summed(rows(), records, 1.0).astype(np.float64)
    vector = np.zeros(statistics.size(num_labels, width, second=second), np.float32)
    view = statistics.view(vector, num_labels, width)
    ends = pairs + len(labels) * width
    numbers = total[ends:] / counts
    means = total[pairs:ends].reshape(len(labels), width) * (radius / sums)
    if upper is None:
        # What was released may be weighed freely. Where a client has few records of a label its
        # sum is mostly noise, and the noise of ten clients would hide the one that has many; and
        # the noise of one count tilts a class mean more than labels of a domain differ.
        known = np.maximum(numbers, 0.0)
        means *= (known / (known + _FEW))[:, None]
        numbers[:] = max(float(numbers.mean()), 0.0) if len(labels) else 0.0
    view.counts[labels] = numbers
    view.sums[labels] = means
    if upper is not None:
        scale = np.where(upper[0] == upper[1], gram, gram * np.sqrt(2.0))
        view.gram[:] = total[:pairs] * (radius**2 / scale)
    return vector
