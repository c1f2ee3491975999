"""How far a window of embeddings lies from a reference, and from where on that is an alarm.

Three distances: the mean distance to the nearest reference record, which label skew hardly moves;
the Kullback-Leibler divergence of diagonal Gaussians; the maximum mean discrepancy under an RBF
kernel (Gretton et al. 2012, JMLR 13, equation 3, bandwidth by the median). The last two fire on
plain label skew, so they only confirm the first.

Thresholds come from the reference itself, by windows drawn from it again and again. A drawn record
is not compared with itself, nor, for the first distance, with the records of its label that lie
next to it: people write several in a row, and such twins would make the reference look denser
than anything new can find it. That is leaving out blocks instead of single records (Burman, Chow
and Nolan 1994, Biometrika 81), a departure from resampling by whole windows, which in a small
reference would leave nothing to compare with.

Shapes: n records of the reference, m of the window, d values of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.parts import Indices
from ..core.values import Vector
from .index import nearest
from .windows import LEAST, Settings

_DRAWS = 400  # windows per threshold: the 95th of 100 is then known to about 1 in 100
_SEED = 20180  # the same thresholds for the same reference, in every process
_FLOOR = 1e-8  # added to variances: a value that never changes has none
_PAIRS = 1000  # records whose distances give the kernel's bandwidth


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances of one window to a reference, or their thresholds.

    Attributes:
        nearest: mean Euclidean distance to the nearest reference record.
        kl: divergence of the window's diagonal Gaussian from the reference's, in nats.
        mmd: squared maximum mean discrepancy, unbiased: a little below 0 where nothing differs.
    """

    nearest: float
    kl: float
    mmd: float

    def over(self, thresholds: Distances) -> bool:
        """Whether this is an alarm: beyond its threshold by `nearest`, and by one of the others."""
        confirmed = self.kl > thresholds.kl or self.mmd > thresholds.mmd
        return self.nearest > thresholds.nearest and confirmed


@dataclass(frozen=True, slots=True)
class Detector:
    """A reference that windows are compared with.

    Attributes:
        reference: embeddings, float32 [n, d].
        size: records of the windows that it was calibrated for.
        gamma: of the kernel exp(-gamma * |x - y|^2).
        inside: mean of the kernel over all pairs of different reference records.
        thresholds: above which a distance is unusual.
    """

    reference: Vector
    size: int
    gamma: float
    inside: float
    thresholds: Distances

    def distances(self, window: Vector) -> Distances:
        """Distances of `window` float32 [m, d], m >= 2."""
        return Distances(
            mean_nearest(window, self.reference),
            diagonal_kl(window, self.reference),
            mmd(window, self.reference, self.gamma, self.inside),
        )

    def alarms(self, window: Vector) -> bool:
        """Whether `window` float32 [m, d], m >= 2, is an alarm."""
        return self.distances(window).over(self.thresholds)


def mean_nearest(window: Vector, reference: Vector) -> float:
    """Mean over `window` [m, d] of the Euclidean distance to the nearest row of `reference`."""
    return float(nearest(reference, window, 1)[0].mean(dtype=np.float64))


def diagonal_kl(window: Vector, reference: Vector) -> float:
    """KL(window || reference) of the Gaussians of their means and variances per value, in nats.

    Args:
        window: float32 [m, d], m >= 2.
        reference: float32 [n, d], n >= 2.
    """
    return _kl(*_moments(window), *_moments(reference))


def mmd(window: Vector, reference: Vector, gamma: float, inside: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy under exp(-gamma * |x - y|^2).

    Args:
        window: float32 [m, d], m >= 2.
        reference: float32 [n, d], n >= 2.
        gamma: of the kernel, > 0.
        inside: mean kernel of different reference records, where it is known already.
    """
    if inside is None:
        inside = _mean_pair(_kernel(reference, reference, gamma))
    across = float(_kernel(window, reference, gamma).mean(dtype=np.float64))
    return _mean_pair(_kernel(window, window, gamma)) + inside - 2.0 * across


def calibrated(
    reference: Vector, classes: Sequence[str], size: int, settings: Settings
) -> Detector:
    """The detector for windows of `size` records against `reference`.

    No threshold is exceeded by more than `settings.false_alarms` of the windows drawn from the
    reference: for `nearest`, neither of windows over all classes nor of those over a part of them.

    Args:
        reference: embeddings [n, d] in the order in which the records were met, n >= `LEAST`.
        classes: label of each; where nearly each is another one, they are taken as one class.
        size: records of a window, >= 2.
        settings: rates.

    Raises:
        ValueError: the reference is too small.
    """
    if len(reference) < LEAST:
        raise ValueError(f"a reference needs {LEAST} records or more; got {len(reference)}")
    rng = np.random.default_rng(_SEED)
    of = _class_index(classes)
    alone = alone_distances(reference, of, settings.apart)
    plain = _drawn_means(alone, [np.arange(len(alone))] * _DRAWS, size, rng)
    skewed = _drawn_means(alone, _parts(of, settings.present, rng), size, rng)
    gamma = bandwidth(reference)
    kernel = _kernel(reference, reference, gamma)
    num = min(size, len(reference) // 2)
    drawn = [rng.choice(len(reference), num, replace=False) for _ in range(_DRAWS)]
    rate = 1.0 - settings.false_alarms
    thresholds = Distances(
        max(_quantile(plain, rate), _quantile(skewed, rate)),
        _quantile(_drawn_kl(reference, drawn), rate),
        _quantile(_drawn_mmd(kernel, drawn), rate),
    )
    return Detector(reference, size, gamma, _mean_pair(kernel), thresholds)


def alone_distances(reference: Vector, of: Indices, apart: float) -> Vector:
    """Distance of each record to the nearest other one, its neighbours in order left out, [n].

    Args:
        reference: embeddings [n, d] in the order in which the records were met.
        of: class of each, 0..classes - 1, [n].
        apart: share of a class that is left out on either side of a record, 0..0.4.
    """
    counts = np.bincount(of)
    gaps = np.rint(apart * counts).astype(np.intp)
    place = np.empty(len(of), np.intp)
    for label in range(len(counts)):
        members = np.flatnonzero(of == label)
        place[members] = np.arange(len(members))
    # So many are left out at most, itself among them, that one more is always enough.
    distances, found = nearest(reference, reference, 2 * int(gaps.max()) + 2)
    near = np.abs(place[found] - place[:, None]) <= gaps[of][:, None]
    # A single class may be smaller than what is asked for: the farthest found then stands in.
    near &= of[found] == of[:, None]
    near[:, -1] = False
    first = near.argmin(1)
    return np.asarray(np.take_along_axis(distances, first[:, None], 1)[:, 0])


def bandwidth(rows: Vector) -> float:
    """Gamma of the kernel by the median: 1 / median squared distance of different rows."""
    step = max(1, len(rows) // _PAIRS)
    some = rows[::step][:_PAIRS]
    squares = _squares(some, some)[np.triu_indices(len(some), 1)]
    middle = float(np.median(squares)) if squares.size else 0.0
    return 1.0 / middle if middle > 0.0 else 1.0


def unlikely(alarms: int, windows: int, rate: float) -> bool:
    """Whether so many alarms of `windows` have a chance of at most `rate` without any drift.

    Args:
        alarms: windows that alarm.
        windows: all of them; they count as independent.
        rate: share of false alarms, 0..1.
    """
    if not alarms:
        return False
    fewer = sum(
        math.comb(windows, k) * rate**k * (1.0 - rate) ** (windows - k) for k in range(alarms)
    )
    return 1.0 - fewer <= rate + 1e-12


def _class_index(classes: Sequence[str]) -> Indices:
    names = {name: i for i, name in enumerate(dict.fromkeys(classes))}
    if 2 * len(names) > len(classes):  # completions, or hardly a record of each
        return np.zeros(len(classes), np.intp)
    return np.array([names[name] for name in classes], np.intp)


def _parts(of: Indices, present: float, rng: np.random.Generator) -> list[Indices]:
    """Positions of the records of some classes, drawn `_DRAWS` times."""
    classes = int(of.max()) + 1
    wanted = max(1, round(present * classes))
    chosen = (rng.choice(classes, wanted, replace=False) for _ in range(_DRAWS))
    return [np.flatnonzero(np.isin(of, some)) for some in chosen]


def _drawn_means(
    alone: Vector, parts: Sequence[Indices], size: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    return np.array([alone[rng.choice(part, size)].mean(dtype=np.float64) for part in parts])


def _drawn_kl(reference: Vector, drawn: Sequence[Indices]) -> npt.NDArray[np.float64]:
    rows = reference.astype(np.float64)
    total, squares, count = rows.sum(0), (rows * rows).sum(0), len(rows)
    found = []
    for window in drawn:
        part = rows[window]
        rest = count - len(part)
        mean = (total - part.sum(0)) / rest
        spread = (squares - (part * part).sum(0)) / rest - mean * mean
        variance = np.maximum(spread, 0.0) * rest / (rest - 1) + _FLOOR
        found.append(_kl(*_moments(part), mean, variance))
    return np.array(found)


def _drawn_mmd(
    kernel: npt.NDArray[np.float32], drawn: Sequence[Indices]
) -> npt.NDArray[np.float64]:
    """As `mmd` of each window against the rest of the reference, from sums of one kernel."""
    sums, count = kernel.sum(1, dtype=np.float64), len(kernel)
    total = float(sums.sum())
    found = []
    for window in drawn:
        num, rest = len(window), count - len(window)
        within = float(kernel[np.ix_(window, window)].sum(dtype=np.float64))
        across = float(sums[window].sum()) - within
        outside = total - within - 2.0 * across
        found.append(
            (within - num) / (num * (num - 1))
            + (outside - rest) / (rest * (rest - 1))
            - 2.0 * across / (num * rest)
        )
    return np.array(found)


def _moments(
    rows: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    wide = rows.astype(np.float64)
    return wide.mean(0), wide.var(0, ddof=1) + _FLOOR


def _kl(
    mean: npt.NDArray[np.float64],
    variance: npt.NDArray[np.float64],
    mean_0: npt.NDArray[np.float64],
    variance_0: npt.NDArray[np.float64],
) -> float:
    ratio = variance / variance_0
    shift = (mean - mean_0) ** 2 / variance_0
    return float(0.5 * np.sum(ratio - np.log(ratio) - 1.0 + shift))


def _kernel(rows: Vector, others: Vector, gamma: float) -> npt.NDArray[np.float32]:
    return np.asarray(np.exp(np.float32(-gamma) * _squares(rows, others)))


def _squares(rows: Vector, others: Vector) -> Vector:
    """Squared Euclidean distances [len(rows), len(others)]."""
    own, theirs = (rows * rows).sum(1)[:, None], (others * others).sum(1)
    return np.asarray(np.maximum(own + theirs - 2.0 * rows @ others.T, 0.0))


def _mean_pair(kernel: npt.NDArray[np.float32]) -> float:
    """Mean of a kernel matrix without its diagonal of ones."""
    num = len(kernel)
    return (float(kernel.sum(dtype=np.float64)) - num) / (num * (num - 1))


def _quantile(values: npt.NDArray[np.float64], rate: float) -> float:
    return float(np.quantile(values, rate, method="higher"))
