"""Skellam noise: whole numbers, and a sum of shares of it is such noise again.

The difference of two Poisson numbers of mean v/2 has variance v and the probabilities
exp(-v) I_k(v) (Skellam 1946). Its Renyi divergences are bounded by Agarwal, Kairouz and Liu 2021,
"The Skellam Mechanism for Differentially Private Federated Learning" (arXiv:2110.04995), for
whole orders.

Samples are drawn by inversion of a table with 127-bit thresholds from secret words. Against the
distribution itself each probability errs by a factor within 1 +- 1e-12, which adds less than
2e-12 to epsilon for each sample in a sum. Probabilities below 2**-88 may err by more, as they are
cut to multiples of 2**-128: that adds less than 2**-106 * (1 + exp(epsilon)) to delta for each. The
time that drawing takes is not hidden from others on the client's own machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

# Of wider noise several samples are added up: a table has 14 entries for each unit of deviation.
_WIDEST = 2.0**16
MOST_SAMPLES = 1024
"""Most samples that are added up for one value."""

LARGEST_VARIANCE = MOST_SAMPLES * _WIDEST**2
"""Of one share of noise."""

# From this variance on three terms of the expansion for large arguments are exact in float64.
_LARGE = 1e4
# exp(-32) is 1.3e-14: eight standard deviations of a gaussian by the same bound.
_TAIL_EXPONENT = 32.0
_LIMB = 32


class Source(Protocol):
    """Where uniform words come from: `stream.Stream`."""

    def words(self, count: int) -> Words:
        """`count` uniform 64-bit words."""
        ...


def sample(variance: float, count: int, source: Source) -> npt.NDArray[np.int64]:
    """Independent Skellam numbers of mean 0 and `variance`, int64 [count].

    The same words give the same numbers. Whoever knows the words knows the noise.

    Args:
        variance: 0..LARGEST_VARIANCE; 0 gives zeros.
        count: how many, >= 0.
        source: of secret words.

    Raises:
        ValueError: the variance is out of its range.
    """
    if not 0.0 <= variance <= LARGEST_VARIANCE:
        raise ValueError(f"the variance must be 0..{LARGEST_VARIANCE:g}; got {variance}")
    total = np.zeros(count, np.int64)
    if not variance or not count:
        return total
    parts = math.ceil(variance / _WIDEST**2)
    table = _table(variance / parts)
    for _ in range(parts):
        total += _drawn(table, count, source)
    return total


def tail(variance: float) -> int:
    """The least t for which exp(-32) bounds P(X > t), of noise of `variance`; 0 for variance 0.

    8 standard deviations where the variance is large; more of them where it is small. Chernoff's
    bound: log P(X >= t) <= sqrt(t**2 + v**2) - v - t asinh(t / v).
    """
    if not variance:
        return 0
    low, high = 0, math.ceil(8 * math.sqrt(variance)) + 64
    while high - low > 1:
        middle = (low + high) // 2
        if _exponent(middle, variance) <= -_TAIL_EXPONENT:
            high = middle
        else:
            low = middle
    return high


def renyi(order: float, norm: float, variance: float, size: int) -> float:
    """Bound on the Renyi divergence of a sum with noise when one client's part is left out.

    Args:
        order: alpha > 1; the source proves it for whole ones.
        norm: largest L2 norm of that part, whole numbers [size].
        variance: of the noise in each value of the sum, > 0.
        size: number of values.
    """
    # Of whole numbers: |x| <= x**2.
    norm1 = norm * min(math.sqrt(size), norm)
    second = ((2 * order - 1) * norm**2 + 6 * norm1) / (4 * variance**2)
    return order * norm**2 / (2 * variance) + min(second, 3 * norm1 / (2 * variance))


def multiplier(norm: float, variance: float, size: int) -> float:
    """The largest z for which alpha / (2 z**2) is at least `renyi` for every order alpha >= 1.

    A gaussian of standard deviation z * norm has that divergence; z is a little below
    sqrt(variance) / norm.

    Args:
        norm: as of `renyi`; where it is 0 nothing is told, and z is infinite.
        variance: as of `renyi`; z is 0 where it is 0.
        size: as of `renyi`.
    """
    if not norm or not size:
        return math.inf
    if not variance:
        return 0.0
    norm1 = norm * min(math.sqrt(size), norm)
    # The bound over alpha is first / 2 + min(a / alpha + b, c / alpha).
    a = (6 * norm1 - norm**2) / (4 * variance**2)
    b = norm**2 / (2 * variance**2)
    c = 3 * norm1 / (2 * variance)
    worst = min(a + b, c)
    if a < 0.0:  # the first of the two grows with alpha: the largest is where they meet
        worst = b * c / (c - a) if c - a > b else c
    return 1.0 / math.sqrt(2 * (norm**2 / (2 * variance) + worst))


@dataclass(frozen=True, slots=True)
class _Table:
    """P(|X| >= m) for m from the largest down to 1, ascending: high 63 bits and low 64 of 127."""

    high: Words
    low: Words


def _drawn(table: _Table, count: int, source: Source) -> npt.NDArray[np.int64]:
    words = source.words(count)
    uniform = words >> np.uint64(1)
    # |X| >= m where the uniform number is below the threshold of m.
    below = np.searchsorted(table.high, uniform, side="right")
    # 63 bits decide all but one draw in 2**50; there the next word does.
    for i in np.flatnonzero(table.high[np.maximum(below, 1) - 1] == uniform):
        first = int(np.searchsorted(table.high, uniform[i], side="left"))
        low = table.low[first : below[i]]
        below[i] = first + np.searchsorted(low, source.words(1)[0], side="right")
    found = (table.high.size - below).astype(np.int64)
    np.negative(found, out=found, where=(words & np.uint64(1)).astype(bool))
    return found


@lru_cache(maxsize=4)
def _table(variance: float) -> _Table:
    probabilities = _probabilities(variance)
    # Largest magnitude first; 2 P(X = m) / 2**_LIMB four times is 128 bits, one less than that 127.
    rest = probabilities[:0:-1].copy()
    limbs = []
    for _ in range(128 // _LIMB):
        rest *= 2.0**_LIMB
        whole = np.floor(rest)
        rest -= whole
        limbs.append(np.cumsum(whole.astype(np.uint64)))
    mask, shift = np.uint64(2**_LIMB - 1), np.uint64(_LIMB)
    for lower, higher in zip(limbs[:0:-1], limbs[-2::-1], strict=True):
        higher += lower >> shift
        lower &= mask
    high, low = limbs[0] << shift | limbs[1], limbs[2] << shift | limbs[3]
    return _Table(high, low)


def _probabilities(variance: float) -> Probabilities:
    """P(X = k) for k = 0, 1, ... until it is below 2**-128."""
    top = math.ceil(14 * math.sqrt(variance)) + 40
    found = _expanded(variance, top) if variance >= _LARGE else _recurred(variance, top)
    found /= found[0] + 2 * found[1:].sum()
    return found


def _recurred(variance: float, top: int) -> Probabilities:
    """I_k(v) / I_0(v), k = 0..top, by Miller's backward recurrence of the ratios."""
    ratio, ratios = 0.0, np.ones(top + 1)
    for k in range(top + math.ceil(4 * math.sqrt(variance)) + 60, 0, -1):
        ratio = 1.0 / (2 * k / variance + ratio)
        if k <= top:
            ratios[k] = ratio
    return np.cumprod(ratios).astype(np.float64)


def _expanded(variance: float, top: int) -> Probabilities:
    """exp(-v) I_k(v) sqrt(2 pi), k = 0..top: Debye's expansion (DLMF 10.41.3), regular at k = 0."""
    k = np.arange(top + 1, dtype=np.float64)
    w = np.hypot(k, variance)
    p = (k / w) ** 2
    series = 1 + (3 - 5 * p) / (24 * w) + (81 - 462 * p + 385 * p**2) / (1152 * w**2)
    series += (30375 - 369603 * p + 765765 * p**2 - 425425 * p**3) / (414720 * w**3)
    exponent = k**2 / (w + variance) - k * np.arcsinh(k / variance)
    found: Probabilities = np.exp(exponent) / np.sqrt(w) * series
    return found


def _exponent(t: int, variance: float) -> float:
    return t * t / (math.hypot(t, variance) + variance) - t * math.asinh(t / variance)
