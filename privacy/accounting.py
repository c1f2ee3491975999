"""What uses of one cohort's records add up to: epsilon at a delta; the only door to dp-accounting.

Privacy loss distributions of the Poisson-subsampled Gaussian mechanism, neighbours by adding or
removing one record (Koskela, Jaelkoe, Honkela 2020, arXiv:1906.03049; rounded pessimistically by
connecting the dots, Doroshenko et al. 2022, arXiv:2207.04380). Departures: the grid of losses is
as coarse as a bound on its error allows, always of whole multiples of the library's own step, so
that epsilon is never below the library's; Gaussian uses without sampling are merged exactly
before they are composed. Renyi bounds (Mironov, Talwar, Zhang 2019, arXiv:1908.10530) stand in
where only they hold (Skellam noise) or where epsilon has lost its meaning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ..core.errors import PrivacyError
from ..core.values import Spend

Account: TypeAlias = tuple[tuple[float, float, str, int], ...]
"""Uses of one cohort, equal ones joined: (sample rate, noise multiplier, mechanism, steps)."""

MAX_NOISE = 1e4
"""Largest noise multiplier that is ever proposed: nothing is learnt under more."""

_MIN_NOISE = 1e-2
_MECHANISMS = ("gaussian", "skellam")
# Multiples of the last, which is the library's own step: a grid whose points are points of
# another gives an epsilon of at least the other's.
_WIDTHS = (5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
_MAX_ERROR = 4e-3
# Sums over 1e6 numbers and transforms there and back err by less than this part of epsilon.
_ROUNDING = 1e-6
_HOPELESS = 2000.0
_INTEGERS = np.array([*range(2, 33), 40, 48, 64, 96, 128, 256])
_ORDERS = np.array([1 + i / 10 for i in range(1, 100)] + [int(i) for i in _INTEGERS if i > 10])


def checked_delta(delta: float) -> float:
    """`delta` as it is.

    Raises:
        PrivacyError: it is no probability between 0 and 1, both left out.
    """
    if not 0.0 < delta < 1.0:
        raise PrivacyError(
            f"delta must lie between 0 and 1, both left out; got {delta:g}. Write one well below "
            "1 / (number of records)"
        )
    return delta


def checked(spend: Spend) -> Spend:
    """`spend` as it is.

    Raises:
        PrivacyError: its rate, noise or steps are out of range, or its mechanism is unknown.
    """
    if not 0.0 < spend.sample_rate <= 1.0:
        problem = f"a sample rate above 0 and at most 1; got {spend.sample_rate:g}"
    elif not _MIN_NOISE <= spend.noise_multiplier < math.inf:
        problem = f"a noise multiplier of {_MIN_NOISE:g} or more; got {spend.noise_multiplier:g}"
    elif spend.steps != int(spend.steps) or spend.steps < 1:
        problem = f"a whole number of steps, 1 or more; got {spend.steps}"
    elif spend.mechanism not in _MECHANISMS:
        problem = f"a mechanism of {', '.join(_MECHANISMS)}; got {spend.mechanism!r}"
    else:
        return spend
    raise PrivacyError(f"a use of the records {spend.cohort!r} must have {problem}")


def account_of(spends: Iterable[Spend]) -> Account:
    """The account of one cohort: `spends` with equal ones joined, in a fixed order.

    Raises:
        PrivacyError: as `checked`.
    """
    steps: Counter[tuple[float, float, str]] = Counter()
    for spend in map(checked, spends):
        key = (float(spend.sample_rate), float(spend.noise_multiplier), spend.mechanism)
        steps[key] += int(spend.steps)
    return tuple((*key, count) for key, count in sorted(steps.items()))


def accounts_of(spends: Iterable[Spend]) -> dict[str, Account]:
    """The account of each cohort, by its name.

    Raises:
        PrivacyError: as `checked`.
    """
    by_cohort: dict[str, list[Spend]] = {}
    for spend in spends:
        by_cohort.setdefault(spend.cohort, []).append(spend)
    return {cohort: account_of(used) for cohort, used in by_cohort.items()}


def epsilon(spends: Sequence[Spend], delta: float) -> float:
    """Epsilon of one cohort that pays all of `spends`, whichever cohort they name.

    Never below dp-accounting's own PLD accountant at its default step, and within 1 % of it up
    to an epsilon of 2,000 by Renyi, beyond which Renyi's bound is given.

    Args:
        spends: uses of the same records.
        delta: in (0, 1).

    Raises:
        PrivacyError: delta or a spend is out of range.
    """
    return _epsilon(account_of(spends), checked_delta(delta))


def epsilon_of(spends: Iterable[Spend], delta: float) -> float:
    """The maximum over cohorts of their epsilon: what is reported.

    Raises:
        PrivacyError: as `epsilon`.
    """
    return worst(accounts_of(spends).values(), delta)[0]


def worst(accounts: Iterable[Account], delta: float) -> tuple[float, Account]:
    """The largest epsilon over `accounts`, and whose it is; 0 and an empty one without any.

    Raises:
        PrivacyError: delta is out of range.
    """
    checked_delta(delta)
    found = [(_epsilon(account, delta), account) for account in _undominated(set(accounts))]
    return max(found, default=(0.0, ()))


def rdp_epsilon(spends: Sequence[Spend], delta: float) -> float:
    """An upper bound of `epsilon` by Renyi differential privacy, quick to compute.

    Raises:
        PrivacyError: delta or a spend is out of range.
    """
    return _renyi(account_of(spends), checked_delta(delta))


def most_repeats(paid: Account, more: Account, target: float, delta: float, most: int) -> int:
    """The largest k in 0..`most` such that `paid` and k times `more` stay within `target`.

    Args:
        paid: what the cohort paid so far.
        more: not empty.
        target: epsilon.
        delta: in (0, 1).
        most: where counting stops.
    """

    def total(k: int) -> Account:
        steps = Counter({use[:3]: use[3] for use in paid})
        for use in more:
            steps[use[:3]] += k * use[3]
        return tuple((*key, count) for key, count in sorted(steps.items()) if count)

    # Renyi's bound is above epsilon: what fits by it fits, and little more does.
    fits = _last(lambda k: _renyi(total(k), delta) <= target, 0, most + 1)
    low, step = fits, 1
    while low + step <= most and _epsilon(total(low + step), delta) <= target:
        low, step = low + step, 2 * step
    return _last(lambda k: _epsilon(total(k), delta) <= target, low, min(low + step, most + 1))


def noise_for(
    target: float,
    delta: float,
    uses: Sequence[tuple[float, int]],
    mechanism: str = "gaussian",
) -> float:
    """The smallest noise multiplier, to four digits and rounded up, that keeps to `target`.

    Args:
        target: epsilon, > 0.
        delta: in (0, 1).
        uses: (sample rate, steps) of one cohort, all under this noise.
        mechanism: of all uses.

    Raises:
        PrivacyError: no noise up to `MAX_NOISE` reaches the target; delta or a use is out of
            range; or there is none.
    """
    checked_delta(delta)
    if not uses or not target > 0.0:
        raise PrivacyError(
            f"noise is planned for an epsilon above 0 and at least one use; got {target:g} and "
            f"{len(uses)} uses"
        )
    joined = tuple((float(rate), int(steps)) for rate, steps in uses)
    return _noise_for(float(target), delta, joined, mechanism)


@lru_cache(maxsize=512)
def _noise_for(
    target: float, delta: float, uses: tuple[tuple[float, int], ...], mechanism: str
) -> float:
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    def at(noise: float, bound: Callable[[Account, float], float]) -> float:
        return bound(account_of(Spend(q, noise, n, "", mechanism) for q, n in uses), delta)

    if at(MAX_NOISE, _renyi) > target and at(MAX_NOISE, _epsilon) > target:
        raise PrivacyError(
            f"epsilon must be reachable: even noise of {MAX_NOISE:g} times the clip spends "
            f"{at(MAX_NOISE, _epsilon):.3g} at delta {delta:g} over this schedule; got {target:g}. "
            "Raise epsilon, or plan fewer rounds, updates or replays"
        )
    low, high = _MIN_NOISE, MAX_NOISE
    while high > 1.01 * low:  # Renyi's bound needs 6 to 11 % more noise: a place to start
        middle = math.sqrt(low * high)
        low, high = (low, middle) if at(middle, _renyi) <= target else (middle, high)
    low = max(_MIN_NOISE, 0.8 * low)
    while low > _MIN_NOISE and at(low, _epsilon) <= target:
        low = max(_MIN_NOISE, 0.8 * low)
    while at(high, _epsilon) > target:
        low, high = high, 1.25 * high
    if at(low, _epsilon) <= target:
        return low
    noise = brentq(lambda x: at(x, _epsilon) - target, low, high, rtol=1e-5, xtol=1e-9)
    digit = 10.0 ** (math.floor(math.log10(noise)) - 3)
    count = math.floor(noise / digit)
    while at(float(f"{count * digit:.4g}"), _epsilon) > target:
        count += 1
    return float(f"{count * digit:.4g}")


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last k in `low`..`high` - 1 that holds, which `low` is taken to."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _undominated(accounts: Iterable[Account]) -> list[Account]:
    """Those that no other one contains: a cohort that did less of everything spent less."""
    steps = [(account, {use[:3]: use[3] for use in account}) for account in accounts]

    def contains(outer: dict[Any, int], inner: dict[Any, int]) -> bool:
        return all(outer.get(key, 0) >= count for key, count in inner.items())

    return [
        account
        for account, mine in steps
        if not any(contains(other, mine) for it, other in steps if it != account)
    ]


@lru_cache(maxsize=8192)
def _epsilon(account: Account, delta: float) -> float:
    if not account:
        return 0.0
    bound = _renyi(account, delta)
    if bound > _HOPELESS or any(mechanism == "skellam" for _, _, mechanism, _ in account):
        return bound
    found, width = bound, math.inf
    while (finer := _width(account, found, delta)) < width:
        width = finer
        with np.errstate(over="ignore"):  # a ratio to no mass at all: the library means infinity
            found = float(_composed(account, width).get_epsilon_for_delta(delta))
        if not math.isfinite(found):
            return bound
    return found * (1.0 + _ROUNDING)


def _width(account: Account, epsilon: float, delta: float) -> float:
    """The coarsest grid that errs by less than `_MAX_ERROR` of epsilon, or the finest there is.

    Rounding a loss to a grid without moving its mean likelihood adds at most width^2 / 4 to its
    variance, and half of that to its mean. A composed loss is about normal with variance s^2 and
    mean s^2 / 2, so that epsilon = s^2 / 2 + z s with z the quantile of delta.
    """
    steps = sum(count for rate, _, _, count in account if rate < 1.0) + 1
    quantile = math.sqrt(2.0 * math.log(1.0 / delta))
    spread = math.sqrt(quantile**2 + 2.0 * epsilon) - quantile
    largest = 2.0 * spread * math.sqrt(_MAX_ERROR / steps)
    return next((width for width in _WIDTHS if width <= largest), _WIDTHS[-1])


def _composed(account: Account, width: float) -> Any:
    precision = sum(steps / noise**2 for rate, noise, _, steps in account if rate == 1.0)
    parts = [_power(*use[:2], use[3], width) for use in account if use[0] < 1.0]
    if precision:
        parts.append(_one_step(1.0, 1.0 / math.sqrt(precision), width))
    result = parts[0]
    for part in parts[1:]:
        # What is cut off the tails counts as a certain loss.
        result = result.compose(part, tail_mass_truncation=1e-15)
    return result


@lru_cache(maxsize=32)
def _power(rate: float, noise: float, steps: int, width: float) -> Any:
    return _one_step(rate, noise, width).self_compose(steps)


@lru_cache(maxsize=32)
def _one_step(rate: float, noise: float, width: float) -> Any:
    from dp_accounting.pld import (  # type: ignore[import-untyped]
        privacy_loss_distribution as pld,
    )

    return pld.from_gaussian_mechanism(
        standard_deviation=noise, sampling_prob=rate, value_discretization_interval=width
    )


@lru_cache(maxsize=8192)
def _renyi(account: Account, delta: float) -> float:
    from dp_accounting import rdp  # type: ignore[import-untyped]

    if not account:
        return 0.0
    total = sum(steps * _renyi_step(rate, noise) for rate, noise, _, steps in account)
    # The bound on noise in whole numbers is proven for whole orders.
    proven = np.ones(len(_ORDERS), bool)
    if any(mechanism == "skellam" for _, _, mechanism, _ in account):
        proven = np.floor(_ORDERS) == _ORDERS
    return float(rdp.compute_epsilon(_ORDERS[proven], total[proven], delta)[0])


@lru_cache(maxsize=4096)
def _renyi_step(rate: float, noise: float) -> Any:
    """Renyi divergences of one step at `_ORDERS`, float64 [orders].

    (order - 1) times the divergence is convex in the order and 0 at 1 (Wang, Balle,
    Kasiviswanathan 2019, arXiv:1808.00087, corollary 10): a line between whole orders is a bound.
    """
    if rate == 1.0:
        return _ORDERS / (2.0 * noise**2)
    from dp_accounting import dp_event, rdp

    accountant = rdp.RdpAccountant(orders=_INTEGERS)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)))
    # Whole orders are sums of positive terms near 1: they err by some 1e-16.
    moments = (_INTEGERS - 1) * (np.maximum(accountant.rdp, 0.0) + 1e-14)
    points = np.concatenate([[0.0], _INTEGERS - 1.0])
    return np.interp(_ORDERS - 1.0, points, np.concatenate([[0.0], moments])) / (_ORDERS - 1.0)
