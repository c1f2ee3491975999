"""What one training run tells of an epsilon: a lower bound from guesses about planted records.

Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846): m canaries are put in or left out by one fair
coin each; whoever sees the result guesses the coins and may abstain. Under (epsilon, delta)-DP,
the number of right guesses is no better than the binomial tail of their Theorem 5.2 with its term
in delta; more right guesses than that refute the claim.

How many guesses are made is not chosen by what came out: a few shares of m are fixed below, and
each is tested at its part of the error (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .stream import Stream

SHARES = ((0.05, 0.05), (0.15, 0.15), (0.35, 0.35), (0.15, 0.0))
"""Parts of the canaries guessed in (highest scores) and out (lowest); the rest is abstained on.

The last is for training that draws few of the records: then who was drawn is in for certain, and
who was not may be either.
"""

MOST_EPSILON = 30.0
"""Where the search for a bound ends: no finite number of guesses comes near."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What one kind of canary shows.

    Attributes:
        canaries: m, how many coins were thrown.
        guesses: r, of the share whose bound is the highest.
        right: v of them.
        epsilon: lower bound; training is not (less than this, delta)-private.
        confidence: that the bound is no higher than the truth, 0..1.
    """

    canaries: int
    guesses: int
    right: int
    epsilon: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Kind:
    """The bound of one kind of canary against the claim.

    Attributes:
        kind: `gradient` or `wrong_label`.
        bound: what was found.
        passed: whether the bound is at most the claim; true where nothing is claimed.
    """

    kind: str
    bound: Bound
    passed: bool

    def plain(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "kind": self.kind,
            "canaries": self.bound.canaries,
            "guesses": self.bound.guesses,
            "right": self.bound.right,
            "lower_bound": self.bound.epsilon,
            "pass": self.passed,
        }


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit.

    Attributes:
        claimed: epsilon that the training claims; None where nothing is promised.
        delta: at which it is claimed; 0 where nothing is.
        confidence: that a training which keeps its claim passes all of `kinds`.
        kinds: one per kind of canary.
    """

    claimed: float | None
    delta: float
    confidence: float
    kinds: tuple[Kind, ...]

    @property
    def passed(self) -> bool:
        """Whether no kind of canary refutes the claim."""
        return all(kind.passed for kind in self.kinds)

    def plain(self) -> dict[str, Any]:
        """Values for JSON: `claimed`, `delta`, `confidence`, `kinds`, `pass`."""
        return {
            "claimed": self.claimed,
            "delta": self.delta,
            "confidence": self.confidence,
            "kinds": [kind.plain() for kind in self.kinds],
            "pass": self.passed,
        }


def coins(count: int) -> npt.NDArray[np.bool_]:
    """`count` fair coins that nobody can foresee; true for in."""
    return (Stream().words(count) & np.uint64(1)).astype(np.bool_)


def bound(
    scores: npt.NDArray[np.float64],
    included: npt.NDArray[np.bool_],
    delta: float,
    confidence: float,
    shares: Sequence[tuple[float, float]] = SHARES,
) -> Bound:
    """The highest lower bound on epsilon over `shares`, valid at `confidence` as a whole.

    Args:
        scores: per canary [m]; higher speaks for in. They may depend on the coins only through
            what the training released.
        included: the coins [m].
        delta: at which epsilon is bounded, 0..1.
        confidence: 0..1.
        shares: (guessed in, guessed out) as parts of m, each sum in 0..1; fixed beforehand.

    Raises:
        ValueError: no canary, arrays of two lengths, or a score that is nan.
    """
    if not len(scores) or scores.shape != included.shape:
        raise ValueError(f"scores and coins must be [m]; got {scores.shape}, {included.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers; got nan")
    error = (1.0 - confidence) / len(shares)
    found = [_at(scores, included, share, delta, error) for share in shares]
    guesses, right, epsilon = max(found, key=lambda one: (one[2], one[0]))
    return Bound(len(scores), guesses, right, epsilon, confidence)


def _at(
    scores: npt.NDArray[np.float64],
    included: npt.NDArray[np.bool_],
    share: tuple[float, float],
    delta: float,
    error: float,
) -> tuple[int, int, float]:
    above, below = (math.floor(part * len(scores)) for part in share)
    # Equal scores stand in an order of chance: the canaries' own order must not tell.
    order = np.lexsort((Stream().words(len(scores)), scores))
    right = int(included[order[len(order) - above :]].sum())
    right += int((~included[order[:below]]).sum())
    return above + below, right, lower_bound(len(scores), above + below, right, delta, error)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """The largest epsilon that so many right guesses refute with probability of error `error`.

    0 where they refute none. By bisection: the tail grows with epsilon.

    Args:
        canaries: m.
        guesses: r <= m.
        right: v <= r.
        delta: 0..1.
        error: chance of a bound above the truth, in (0, 1).
    """
    low, high = 0.0, MOST_EPSILON
    if tail(canaries, guesses, right, low, delta) >= error:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        if tail(canaries, guesses, right, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low


def tail(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Largest chance, over all (epsilon, delta)-private trainings, of `right` guesses or more.

    Theorem 5.2 of the paper: f(v) + 2 m delta max over i >= 1 of (f(v - i) - f(v)) / i, where f
    is the upper tail of a binomial with `guesses` draws at the accuracy of randomised response.

    Raises:
        ValueError: not 0 <= right <= guesses <= canaries.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"needs right <= guesses <= canaries; got {right}, {guesses}, {canaries}")
    mass = _binomial(guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    pure = float(mass[right:].sum())
    if not right or not delta:
        return min(1.0, pure)
    missed = np.cumsum(mass[:right][::-1])  # P[v - i <= X < v] for i = 1..v
    slack = float((missed / np.arange(1, right + 1)).max())
    return min(1.0, pure + 2.0 * canaries * delta * slack)


def _binomial(draws: int, rate: float) -> npt.NDArray[np.float64]:
    """The chances of 0..`draws` successes, each of chance `rate` in (0, 1)."""
    # log(1 - rate) by hand: 1 - rate is 0 in float64 from epsilon 37 on, and inexact before.
    miss = 1.0 - rate if rate < 0.5 else math.exp(-math.log(rate / (1.0 - rate))) * rate
    factorials = np.array([math.lgamma(k + 1.0) for k in range(draws + 1)])
    hits = np.arange(draws + 1)
    ways = factorials[-1] - factorials - factorials[::-1]
    found: npt.NDArray[np.float64] = np.exp(
        ways + hits * math.log(rate) + (draws - hits) * math.log(miss)
    )
    return found
