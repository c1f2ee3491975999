"""Skellam numbers are what they should be, and hide what their bound says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from perennial.privacy import skellam
from perennial.privacy.stream import Stream

KEY = bytes(range(32))


class Words:
    """A source of words that are given."""

    def __init__(self, *words):
        self.left = list(words)

    def words(self, count):
        found, self.left = self.left[:count], self.left[count:]
        return np.array(found, np.uint64)


def exact(variance, count):
    """P(X = k), k = 0..count - 1, from scipy."""
    return stats.skellam.pmf(np.arange(count), variance / 2, variance / 2)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 7.3, 30.0])
def test_the_probabilities_are_scipys(sigma):
    found = skellam._probabilities(sigma**2)[: math.ceil(6 * sigma) + 2]
    assert found == pytest.approx(exact(sigma**2, found.size), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.5, 40.0, 99.9, 100.1, 130.0])
def test_the_probabilities_are_those_of_fifty_digits(sigma):
    mp = pytest.importorskip("mpmath")
    with mp.workdps(50):
        variance = mp.mpf(sigma**2)
        found = skellam._probabilities(sigma**2)
        for k in {0, 1, int(sigma), int(4 * sigma), int(9 * sigma), int(13 * sigma)}:
            wanted = mp.exp(-variance) * mp.besseli(k, variance, maxterms=10**6)
            assert abs(mp.mpf(found[k]) / wanted - 1) < 1e-13


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 25.0, 99.0, 101.0, 3e4])
def test_the_table_ends_where_nothing_is_left(sigma):
    found = skellam._probabilities(sigma**2)
    assert found[-1] < 2.0**-128
    assert found[0] + 2 * found[1:].sum() == pytest.approx(1.0, abs=1e-14)


def test_both_ways_to_the_probabilities_agree():
    variance, top = skellam._LARGE, 1300
    first, second = skellam._recurred(variance, top), skellam._expanded(variance, top)
    assert first == pytest.approx(second / second[0], rel=1e-12)


@pytest.mark.parametrize("sigma", [0.7, 20.0, 5000.0])
def test_thresholds_are_the_sums_of_probabilities_to_127_bits(sigma):
    table, found = skellam._table(sigma**2), skellam._probabilities(sigma**2)
    total, size = 0, table.high.size
    assert size == found.size - 1
    for i, p in enumerate(found[:0:-1].tolist()):
        mantissa, exponent = math.frexp(p)
        whole, shift = int(mantissa * 2**53), exponent - 53 + 128
        total += whole << shift if shift >= 0 else whole >> -shift
        if i > size - 50 or not i % 97:
            assert (int(table.high[i]) << 64) + int(table.low[i]) == total


@pytest.mark.parametrize("sigma", [0.5, 2.0, 30.0])
def test_samples_fit_the_distribution(sigma):
    found, num = skellam.sample(sigma**2, 200_000, Stream(KEY)), 200_000
    most = math.ceil(3 * sigma)
    observed = np.array([(found == k).sum() for k in range(-most, most + 1)])
    half = exact(sigma**2, most + 1)
    expected = np.concatenate([half[:0:-1], half]) * num
    rest = num - observed.sum(), num - expected.sum()
    statistic = ((observed - expected) ** 2 / expected).sum() + (rest[0] - rest[1]) ** 2 / rest[1]
    assert stats.chi2.sf(statistic, observed.size) > 1e-6


@pytest.mark.parametrize("sigma", [300.0, 1e4, 1e5])
def test_wide_samples_fit_a_normal_distribution(sigma):
    found = skellam.sample(sigma**2, 100_000, Stream(KEY))
    assert stats.kstest(found / sigma, "norm").pvalue > 1e-6


@pytest.mark.parametrize("sigma", [0.5, 3.0, 99.0, 101.0, 2e3, 65e3, 66e3, 1e5])
def test_the_variance_is_what_was_asked_for(sigma):
    num = 100_000
    found = skellam.sample(sigma**2, num, Stream(KEY)).astype(float)
    # Fourth moment 3 v**2 + v: the variance of the squares is 2 v**2 + v.
    width = math.sqrt((2 * sigma**4 + sigma**2) / num)
    assert abs((found**2).mean() - sigma**2) < 5 * width
    assert abs(found.mean()) < 5 * sigma / math.sqrt(num)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / math.sqrt(num)


def test_the_same_words_give_the_same_noise_and_others_other():
    first, again = (skellam.sample(9.0, 5000, Stream(KEY)) for _ in range(2))
    other = skellam.sample(9.0, 5000, Stream(bytes(32)))
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.08


def test_a_word_stands_for_its_threshold_and_its_last_bit_for_the_sign():
    variance = 4.0
    table = skellam._table(variance)
    size = table.high.size
    for m in (1, 2, 5, 9):  # |X| >= m below its threshold, and not above
        edge = int(table.high[size - m])
        assert skellam.sample(variance, 1, Words((edge + 1) << 1))[0] == m - 1
        assert skellam.sample(variance, 1, Words((edge - 1) << 1))[0] == m
        assert skellam.sample(variance, 1, Words((edge - 1) << 1 | 1))[0] == -m


def test_where_a_word_cannot_decide_the_next_one_does():
    table = skellam._table(4.0)
    size, m = table.high.size, 3
    edge, low = int(table.high[size - m]), int(table.low[size - m])
    assert skellam.sample(4.0, 1, Words(edge << 1, low - 1))[0] == m
    assert skellam.sample(4.0, 1, Words(edge << 1, low))[0] == m - 1
    # Among the thresholds that have no bit in the first word.
    deep = np.flatnonzero(table.high == 0)
    last = deep[-1]
    assert table.low[last] > 0
    found = skellam.sample(4.0, 1, Words(0, int(table.low[last])))[0]
    assert found == size - last - 1
    assert skellam.sample(4.0, 1, Words(0, int(table.low[last]) - 1))[0] == size - last
    assert skellam.sample(4.0, 1, Words(0, 0))[0] > size - last


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf, skellam.LARGEST_VARIANCE * 1.01])
def test_a_variance_that_cannot_be_drawn_is_refused(variance):
    with pytest.raises(ValueError, match="variance must be"):
        skellam.sample(variance, 3, Stream(KEY))


def test_no_variance_is_no_noise_and_draws_nothing():
    assert not skellam.sample(0.0, 5, Words()).any()


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 4.0, 20.0, 60.0])
def test_the_tail_is_passed_by_less_than_the_bound(sigma):
    edge = skellam.tail(sigma**2)
    found = skellam._probabilities(sigma**2)
    assert found[edge + 1 :].sum() <= math.exp(-32)
    if edge > 1:
        assert edge <= 8 * sigma + 12


@pytest.mark.parametrize("sigma", [1e3, 1e5, 1e6])
def test_the_tail_of_wide_noise_is_eight_deviations(sigma):
    assert skellam.tail(sigma**2) == pytest.approx(8 * sigma, rel=2e-3)


# Accounting


def divergence(order, shift, variance):
    """The Renyi divergence of one Skellam number shifted by `shift` from itself, by summing."""
    half = skellam._probabilities(variance)
    half = half[half > 0]
    p = np.log(np.concatenate([half[:0:-1], half]))
    first, second = p[: p.size - shift], p[shift:]
    terms = order * first + (1 - order) * second
    return float(np.logaddexp.reduce(terms)) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2, 2.5, 3, 5, 8, 16])
@pytest.mark.parametrize(("shift", "sigma"), [(1, 2.0), (1, 5.0), (3, 10.0), (10, 25.0), (5, 40.0)])
def test_the_bound_is_above_the_divergence_and_near_it_where_noise_is_wide(order, shift, sigma):
    found = divergence(order, shift, sigma**2)
    bound = skellam.renyi(order, shift, sigma**2, 1)
    assert found <= bound
    if sigma >= 10 and order <= 3:
        assert bound <= 1.02 * found
    z = skellam.multiplier(shift, sigma**2, 1)
    assert bound <= order / (2 * z**2) * (1 + 1e-12)


cases = {
    "norm": st.floats(0.5, 1e6),
    "z": st.floats(0.05, 50.0),
    "size": st.integers(1, 10**7),
}


@settings(max_examples=50, deadline=None)
@given(**cases)
def test_a_gaussian_of_the_multiplier_has_no_smaller_divergence_at_any_order(norm, z, size):
    variance = (z * norm) ** 2
    found = skellam.multiplier(norm, variance, size)
    assert 0.0 < found < z
    orders = np.geomspace(1.0, 1e9, 2000)
    bounds = np.array([skellam.renyi(order, norm, variance, size) for order in orders])
    assert (bounds <= orders / (2 * found**2) * (1 + 1e-9)).all()
    assert (bounds > orders / (2 * (1.01 * found) ** 2)).any(), "no larger one would do"


def test_of_many_levels_it_costs_nothing():
    # 8 bits, an update of 20 times the clip of a value, 57,000 values.
    norm = 20 * 127
    assert skellam.multiplier(norm, norm**2, 57_000) == pytest.approx(1.0, rel=2e-4)
    assert skellam.multiplier(norm, norm**2 / 16, 57_000) == pytest.approx(0.25, rel=2e-3)


def test_the_ends():
    assert skellam.multiplier(5.0, 0.0, 3) == 0.0
    assert skellam.multiplier(0.0, 1.0, 3) == math.inf
