"""The statistics of the one-run audit against hand numbers, scipy and randomised response."""

import math

import numpy as np
import pytest
from scipy import stats

from perennial.privacy import audit


def response(epsilon, count, rng):
    """Scores of randomised response, the mechanism for which the bound is tight, and its coins."""
    coins = rng.random(count) < 0.5
    told = coins ^ (rng.random(count) > 1.0 / (1.0 + math.exp(-epsilon)))
    return told.astype(float), coins


def test_one_guess_by_hand():
    # Randomised response at ln 3 is right 3 times in 4; delta adds 2 m delta P[0 <= X < 1].
    assert audit.tail(1, 1, 1, math.log(3), 0.0) == pytest.approx(0.75)
    assert audit.tail(1, 1, 1, math.log(3), 0.1) == pytest.approx(0.75 + 2 * 0.1 * 0.25)
    assert audit.tail(7, 1, 0, math.log(3), 0.1) == 1.0


def test_the_term_in_delta_is_the_worst_over_all_shifts():
    # Two guesses at ln 3, both right: 9/16; one less has 6/16, two less (6 + 1)/16 over 2.
    assert audit.tail(4, 2, 2, math.log(3), 0.01) == pytest.approx(9 / 16 + 8 * 0.01 * 6 / 16)
    # At a chance of 1 in 100 for two wrong ones, the first shift still is the worst.
    assert audit.tail(2, 2, 1, 0.0, 0.01) == pytest.approx(0.75 + 4 * 0.01 * 0.25)


@pytest.mark.parametrize(("guesses", "right", "epsilon"), [(50, 40, 1.0), (700, 430, 0.2)])
def test_without_delta_it_is_the_binomial_tail(guesses, right, epsilon):
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    wanted = stats.binom.sf(right - 1, guesses, accuracy)
    assert audit.tail(1000, guesses, right, epsilon, 0.0) == pytest.approx(wanted, rel=1e-9)


def test_all_right_has_a_closed_form():
    # q^r = error, and q is the accuracy of randomised response.
    q = 0.05 ** (1 / 200)
    found = audit.lower_bound(200, 200, 200, 0.0, 0.05)
    assert found == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
    assert audit.tail(200, 200, 200, found, 0.0) == pytest.approx(0.05, abs=1e-6)


def test_delta_lowers_the_bound():
    bounds = [audit.lower_bound(500, 100, 95, delta, 0.05) for delta in (0.0, 1e-5, 1e-4, 1e-2)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[2] > bounds[3] == 0.0


def test_guesses_at_chance_bound_nothing():
    assert audit.lower_bound(500, 200, 100, 1e-5, 0.05) == 0.0


def test_no_mechanism_is_sure_enough_to_leave_the_search():
    assert audit.lower_bound(10**4, 10**4, 10**4, 0.0, 0.05) < audit.MOST_EPSILON / 2


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_bound_holds_on_randomised_response_and_is_not_far_below(epsilon):
    rng = np.random.default_rng(4)
    found = [
        audit.bound(*response(epsilon, 800, rng), delta=0.0, confidence=0.95).epsilon
        for _ in range(150)
    ]
    # 5 % may be above; 17 of 150 or more would be so by chance once in 1,000 times.
    assert sum(one > epsilon for one in found) < 17
    assert np.median(found) > 0.6 * epsilon


def test_without_privacy_the_bound_is_large():
    rng = np.random.default_rng(0)
    coins = rng.random(1000) < 0.5
    found = audit.bound(coins + rng.normal(0, 0.01, 1000), coins, 1e-5, 0.95)
    assert found.epsilon > 4.5
    assert found.right == found.guesses == 700
    assert (found.canaries, found.confidence) == (1000, 0.95)


def test_scores_that_say_nothing_bound_nothing_even_when_the_coins_are_in_order():
    coins = np.arange(1000) < 500
    found = [audit.bound(np.zeros(1000), coins, 1e-5, 0.95).epsilon for _ in range(20)]
    assert sum(one > 0.0 for one in found) <= 5


def test_high_scores_mean_in():
    coins = np.arange(400) % 2 == 0
    assert audit.bound(coins.astype(float), coins, 0.0, 0.95).epsilon > 3.0
    assert audit.bound(-coins.astype(float), coins, 0.0, 0.95).epsilon == 0.0


def test_coins_are_fair_and_new_each_time():
    first, second = audit.coins(4000), audit.coins(4000)
    assert abs(first.mean() - 0.5) < 0.05
    assert 1700 < (first != second).sum() < 2300


@pytest.mark.parametrize(
    ("scores", "coins", "words"),
    [
        (np.array([1.0, np.nan]), np.array([True, False]), "nan"),
        (np.array([1.0]), np.array([True, False]), "scores and coins"),
        (np.zeros(0), np.zeros(0, bool), "scores and coins"),
    ],
)
def test_scores_that_cannot_be_guessed_from(scores, coins, words):
    with pytest.raises(ValueError, match=words):
        audit.bound(scores, coins, 0.0, 0.95)


def test_more_right_than_guessed():
    with pytest.raises(ValueError, match="right <= guesses"):
        audit.tail(10, 5, 6, 1.0, 0.0)


def test_a_result_in_plain_values():
    bound = audit.Bound(100, 20, 19, 1.4, 0.975)
    result = audit.Audit(1.0, 1e-5, 0.95, (audit.Kind("gradient", bound, False),))
    assert result.plain() == {
        "claimed": 1.0,
        "delta": 1e-5,
        "confidence": 0.95,
        "kinds": [
            {
                "kind": "gradient",
                "canaries": 100,
                "guesses": 20,
                "right": 19,
                "lower_bound": 1.4,
                "pass": False,
            }
        ],
        "pass": False,
    }
