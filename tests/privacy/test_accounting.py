"""Epsilon against recorded figures, against two other accountants, and by its own laws."""

import math

import pytest

from perennial.core.errors import PrivacyError
from perennial.core.values import Spend
from perennial.privacy.accounting import (
    MAX_NOISE,
    account_of,
    epsilon,
    epsilon_of,
    most_repeats,
    noise_for,
    rdp_epsilon,
)
from perennial.privacy.crosscheck import prv_epsilon

# By dp-accounting 0.6, PLDAccountant(value_discretization_interval=2e-5), one SelfComposedDpEvent
# for each entry (sample rate, noise multiplier, steps), of a GaussianDpEvent at rate 1 and of its
# PoissonSampledDpEvent below: (uses, delta, epsilon).
RECORDED = [
    ([(0.05, 1.0, 300)], 1e-05, 5.795312376507647),
    ([(0.05, 0.7185, 120)], 1e-05, 7.960956468789757),
    ([(0.05, 0.7185, 120), (0.05, 1.027, 585)], 1e-05, 11.133383761921582),
    ([(0.25, 2.0, 100)], 1e-05, 6.4491513710569075),
    ([(0.5, 8.0, 520)], 1e-05, 6.684244706572406),
    ([(1.0, 20.44, 30)], 1e-05, 0.9996513860088143),
    ([(0.01, 1.1, 2000)], 1e-06, 2.4675897858506364),
    ([(0.25, 1.83, 40), (0.05, 1.83, 2040)], 1e-05, 7.972645676121503),
    ([(0.1, 0.6, 20), (1.0, 5.0, 3)], 0.0001, 8.708050367535812),
    ([(0.001, 0.8, 5000)], 1e-07, 0.9808539156458291),
    ([(0.02, 4.0, 60)], 1e-05, 0.13017888131333774),
]


def spends(uses, cohort="a", mechanism="gaussian"):
    return [Spend(q, noise, n, cohort, mechanism) for q, noise, n in uses]


@pytest.mark.parametrize(("uses", "delta", "recorded"), RECORDED)
def test_within_one_percent_of_the_recorded_figure_and_never_below(uses, delta, recorded):
    found = epsilon(spends(uses), delta)
    assert recorded <= found <= 1.01 * recorded


@pytest.mark.parametrize(("uses", "delta", "recorded"), [RECORDED[i] for i in (3, 5, 9, 10)])
def test_never_below_the_library_at_its_own_step(uses, delta, recorded):
    from dp_accounting import dp_event, pld

    accountant = pld.PLDAccountant()
    for rate, noise, steps in uses:
        event = dp_event.GaussianDpEvent(noise)
        if rate < 1:
            event = dp_event.PoissonSampledDpEvent(rate, event)
        accountant.compose(dp_event.SelfComposedDpEvent(event, steps))
    theirs = accountant.get_epsilon(delta)
    assert theirs <= epsilon(spends(uses), delta) <= 1.01 * theirs


@pytest.mark.parametrize(("uses", "delta", "recorded"), RECORDED)
def test_renyi_is_above_and_prv_agrees(uses, delta, recorded):
    assert rdp_epsilon(spends(uses), delta) >= epsilon(spends(uses), delta)
    found, error = prv_epsilon(spends(uses), delta)
    assert abs(found - recorded) <= error


def test_replay_spends_again():
    """The figures of the replay study: 120 steps to learn, then 65 in every later update."""

    def after(updates, rate=0.05):
        again = [(rate, 1.027, 65 * updates)] if updates else []
        return epsilon(spends([(0.05, 0.7185, 120), *again]), 1e-5)

    assert [round(after(k), 2) for k in (0, 1, 5)] == [7.96, 8.33, 9.76]
    assert round(after(9), 1) == 11.1
    assert round(after(9, rate=0.17), 1) == 34.3


def test_batches_that_are_not_poisson_would_spend_far_more():
    """The same first run when each epoch takes every record once: six Gaussian releases."""
    assert round(epsilon(spends([(1.0, 0.7185, 6)]), 1e-5), 1) == 19.7


@pytest.mark.parametrize(("one", "all_of_them"), [(1.0, 9.6), (3.0, 34.8), (8.0, 122.6)])
def test_a_year_of_weekly_releases(one, all_of_them):
    noise = noise_for(one, 1e-5, [(1.0, 1)])
    assert epsilon(spends([(1.0, noise, 52)]), 1e-5) == pytest.approx(all_of_them, rel=2e-3)


def test_equal_uses_are_joined_whatever_their_order():
    parts = spends([(0.1, 1.0, 3), (1.0, 5.0, 1), (0.1, 1.0, 4)])
    whole = spends([(1.0, 5.0, 1), (0.1, 1.0, 7)])
    assert account_of(parts) == account_of(whole)
    assert epsilon(parts, 1e-5) == epsilon(whole, 1e-5)


def test_releases_without_sampling_add_up_exactly():
    """k releases at noise z are one at z / sqrt(k)."""
    many = epsilon(spends([(1.0, 3.0, 1), (1.0, 3.0001, 8)]), 1e-5)
    assert many == pytest.approx(epsilon(spends([(1.0, 1.0, 1)]), 1e-5), rel=1e-4)


def test_the_report_is_the_maximum_over_cohorts():
    little, much = spends([(0.1, 2.0, 10)], "b"), spends([(0.1, 1.0, 50)], "a")
    both = [*little, *much, *spends([(0.1, 1.0, 50), (0.1, 2.0, 1)], "c")]
    assert epsilon_of([*little, *much], 1e-5) == epsilon(much, 1e-5)
    assert epsilon_of(both, 1e-5) == epsilon(both[2:], 1e-5) > epsilon(much, 1e-5)
    assert epsilon_of([], 1e-5) == epsilon([], 1e-5) == 0.0


def test_neither_of_two_cohorts_contains_the_other():
    one, two = spends([(0.1, 1.0, 9), (0.5, 4.0, 1)]), spends([(0.1, 1.0, 1), (0.5, 4.0, 99)], "b")
    each = epsilon(one, 1e-5), epsilon(two, 1e-5)
    assert epsilon_of([*one, *two], 1e-5) == max(each)


def test_more_of_anything_never_spends_less():
    uses = [(0.1, 1.0, 20)]
    base = epsilon(spends(uses), 1e-5)
    for worse in ([(0.1, 1.0, 21)], [(0.11, 1.0, 20)], [(0.1, 0.99, 20)], [*uses, (1e-3, 9.0, 1)]):
        assert epsilon(spends(worse), 1e-5) >= base
    assert epsilon(spends(uses), 1e-6) > base


def test_skellam_noise_is_composed_by_renyi_alone():
    from dp_accounting import dp_event, rdp

    uses = [(1.0, 5.0, 4), (1.0, 6.0, 1)]
    # The bound on such noise is proven for whole orders only.
    accountant = rdp.RdpAccountant(orders=range(2, 64))
    for _, noise, steps in uses:
        accountant.compose(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise), steps))
    found = epsilon(spends(uses, mechanism="skellam"), 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    mixed = [*spends(uses[:1], mechanism="skellam"), *spends(uses[1:])]
    assert epsilon(mixed, 1e-5) == pytest.approx(found, rel=1e-12)
    assert found > epsilon(spends(uses), 1e-5)
    with pytest.raises(PrivacyError, match="Gaussian noise only"):
        prv_epsilon(mixed, 1e-5)


def test_renyi_between_whole_orders_bounds_the_library():
    from dp_accounting import dp_event, rdp

    for rate, noise, steps in [(0.01, 4.0, 30), (0.05, 1.0, 300), (0.3, 2.0, 7)]:
        accountant = rdp.RdpAccountant()
        event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        accountant.compose(dp_event.SelfComposedDpEvent(event, steps))
        theirs = accountant.get_epsilon(1e-5)
        found = rdp_epsilon(spends([(rate, noise, steps)]), 1e-5)
        assert theirs * (1 - 1e-6) <= found <= 1.05 * theirs


def test_a_hopeless_promise_is_still_an_upper_bound_and_quick():
    assert epsilon(spends([(0.5, 0.02, 1000)]), 1e-5) > 2000


@pytest.mark.parametrize(
    ("target", "uses"),
    [
        (8.0, [(0.05, 300)]),
        (1.0, [(1.0, 30)]),
        (3.0, [(0.25, 40), (0.05, 200)]),
        (50.0, [(0.5, 4)]),
    ],
)
def test_noise_is_the_smallest_of_four_digits(target, uses):
    noise = noise_for(target, 1e-5, uses)
    assert noise == float(f"{noise:.4g}")

    def at(multiplier):
        return epsilon([Spend(q, multiplier, n, "a") for q, n in uses], 1e-5)

    digit = 10.0 ** (math.floor(math.log10(noise)) - 3)
    assert at(noise) <= target < at(noise - digit)


def test_noise_for_skellam_keeps_to_renyi():
    noise = noise_for(8.0, 1e-5, [(1.0, 18)], "skellam")
    assert epsilon(spends([(1.0, noise, 18)], mechanism="skellam"), 1e-5) <= 8.0
    assert noise > noise_for(8.0, 1e-5, [(1.0, 18)])


def test_an_epsilon_that_no_noise_reaches_is_named():
    with pytest.raises(PrivacyError, match=r"epsilon must be reachable: even noise of 10000") as e:
        noise_for(1e-4, 1e-5, [(1.0, 1000)])
    assert "got 0.0001" in str(e.value)
    assert epsilon(spends([(1.0, MAX_NOISE, 1000)]), 1e-5) > 1e-4


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_is_a_probability(delta):
    for ask in (lambda: epsilon([], delta), lambda: noise_for(1.0, delta, [(1.0, 1)])):
        with pytest.raises(PrivacyError, match="delta must lie between 0 and 1"):
            ask()


@pytest.mark.parametrize(
    ("spend", "word"),
    [
        (Spend(0.0, 1.0, 1, "a"), "sample rate"),
        (Spend(1.1, 1.0, 1, "a"), "sample rate"),
        (Spend(math.nan, 1.0, 1, "a"), "sample rate"),
        (Spend(0.5, 0.0, 1, "a"), "noise multiplier"),
        (Spend(0.5, -1.0, 1, "a"), "noise multiplier"),
        (Spend(0.5, math.inf, 1, "a"), "noise multiplier"),
        (Spend(0.5, math.nan, 1, "a"), "noise multiplier"),
        (Spend(0.5, 1.0, 0, "a"), "steps"),
        (Spend(0.5, 1.0, -3, "a"), "steps"),
        (Spend(0.5, 1.0, 1.5, "a"), "steps"),
        (Spend(0.5, 1.0, 1, "a", "laplace"), "mechanism"),
    ],
)
def test_a_use_out_of_range_is_refused(spend, word):
    with pytest.raises(PrivacyError, match=f"'a' must have a .*{word}"):
        epsilon([spend], 1e-5)


@pytest.mark.parametrize("more", [(0.05, 0.8, 15), (1.0, 30.0, 1)])
def test_repeats_are_the_largest_number_that_fits(more):
    paid, again = spends([(0.05, 0.8, 120)]), spends([more])
    k = most_repeats(account_of(paid), account_of(again), 8.0, 1e-5, 9999)
    assert k > 0

    def after(repeats):
        rate, noise, steps = more
        return epsilon([*paid, *spends([(rate, noise, steps * repeats)])], 1e-5)

    assert after(k) <= 8.0 < after(k + 1)
    assert most_repeats(account_of(paid), account_of(again), 8.0, 1e-5, 3) == min(k, 3)
    assert most_repeats(account_of(paid), account_of(again), 1.0, 1e-5, 9999) == 0


def test_a_second_look_costs_nothing():
    import time

    uses = spends([(0.037, 1.3, 211)])
    epsilon(uses, 1e-5)
    started = time.perf_counter()
    for _ in range(200):
        epsilon(uses, 1e-5)
    assert time.perf_counter() - started < 0.5
