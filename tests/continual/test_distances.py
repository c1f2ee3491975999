"""Distances against brute force and closed forms; thresholds and alarms on planted Gaussians."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from perennial.continual.distances import (
    Distances,
    alone_distances,
    bandwidth,
    calibrated,
    diagonal_kl,
    mean_nearest,
    mmd,
    unlikely,
)
from perennial.continual.scope import area, scope_of, unit
from perennial.continual.windows import LEAST, Settings, cut

WIDTH = 24
CLASSES = 9


def rows(seed, count, width=5):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def brute(window, reference):
    return np.sqrt(((window[:, None].astype(float) - reference[None]) ** 2).sum(2))


@pytest.fixture(scope="module")
def world():
    """(labels, seed) -> embeddings around the centres of labels; 9 are known, 9 are not."""
    centres = np.random.default_rng(5).normal(size=(2 * CLASSES, WIDTH))

    def draw(labels, seed):
        noise = np.random.default_rng(seed).normal(scale=0.5, size=(len(labels), WIDTH))
        return unit(centres[labels] + noise)

    return draw


@pytest.fixture(scope="module")
def known():
    return np.repeat(np.arange(CLASSES), 40)


@pytest.fixture(scope="module")
def detector(world, known):
    return calibrated(world(known, 0), [str(label) for label in known], 60, Settings())


def test_mean_nearest_is_that_of_brute_force():
    window, reference = rows(0, 13), rows(1, 40)
    assert mean_nearest(window, reference) == pytest.approx(brute(window, reference).min(1).mean())


def test_kl_is_that_of_diagonal_gaussians():
    window, reference = rows(2, 30), 2.0 * rows(3, 50) + 1.0

    def normal(part):
        wide = torch.from_numpy(part.astype(np.float64))
        return torch.distributions.Normal(wide.mean(0), wide.std(0))

    wanted = torch.distributions.kl_divergence(normal(window), normal(reference)).sum()
    assert diagonal_kl(window, reference) == pytest.approx(float(wanted), rel=1e-6)
    assert diagonal_kl(window, window) == pytest.approx(0.0, abs=1e-12)
    still = np.ones((20, 5), np.float32)
    assert diagonal_kl(still, still) == 0.0


def test_mmd_is_the_unbiased_estimate_by_its_definition():
    window, reference, gamma = rows(4, 6), rows(5, 9) + 0.5, 0.3

    def kernel(one, other):
        return np.exp(-gamma * brute(one, other) ** 2)

    def between(part):
        return sum(
            kernel(part, part)[i, j] for i, j in product(range(len(part)), repeat=2) if i != j
        )

    wanted = between(window) / 30 + between(reference) / 72 - 2 * kernel(window, reference).mean()
    assert mmd(window, reference, gamma) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_mmd_of_gaussians_nears_its_closed_form(shift):
    # E k(x, y) for x ~ N(a, 1), y ~ N(b, 1) is (1 + 4 g)^(-1/2) exp(-g (a - b)^2 / (1 + 4 g)).
    gamma = 0.5
    same = (1 + 4 * gamma) ** -0.5
    wanted = 2 * same * (1 - np.exp(-gamma * shift**2 / (1 + 4 * gamma)))
    some = norm.ppf((np.arange(1000) + 0.5) / 1000).astype(np.float32)[:, None]
    assert mmd(some + np.float32(shift), some, gamma) == pytest.approx(wanted, abs=2e-3)


def test_bandwidth_is_one_over_the_median_square():
    some = rows(8, 31)
    pairs = brute(some, some)[np.triu_indices(31, 1)]
    assert bandwidth(some) == pytest.approx(1.0 / np.median(pairs**2), rel=1e-4)
    assert bandwidth(np.ones((5, 3), np.float32)) == 1.0


@pytest.mark.parametrize("apart", [0.0, 0.1, 0.4])
def test_neighbours_in_order_are_not_compared(apart):
    reference, of = rows(9, 60), np.random.default_rng(1).integers(0, 3, 60)
    gaps = np.rint(apart * np.bincount(of)).astype(int)
    place = np.array([(of[:i] == of[i]).sum() for i in range(60)])
    distances = brute(reference, reference)
    for i, j in product(range(60), repeat=2):
        if i == j or (of[i] == of[j] and abs(place[i] - place[j]) <= gaps[of[i]]):
            distances[i, j] = np.inf
    assert alone_distances(reference, of, apart) == pytest.approx(distances.min(1), rel=1e-5)


def test_twins_that_were_written_in_a_row_do_not_lower_the_threshold():
    labels = ["a"] * 100 + ["b"] * 100
    spread = rows(10, 200, WIDTH)
    twins = np.repeat(spread[::5], 5, 0) + 0.01 * rows(11, 200, WIDTH)
    near = calibrated(twins, labels, 50, Settings(apart=0.0)).thresholds.nearest
    far = calibrated(twins, labels, 50, Settings(apart=0.1)).thresholds.nearest
    new = mean_nearest(rows(12, 50, WIDTH), twins)
    assert near < new < 1.1 * far


def alarms(detector, draw, seeds):
    return np.mean([detector.alarms(draw(seed)) for seed in seeds])


def test_windows_of_what_is_known_hardly_alarm(world, detector):
    def window(seed):
        labels = np.random.default_rng(seed).integers(0, CLASSES, 60)
        return world(labels, 1000 + seed)

    assert alarms(detector, window, range(100)) <= 0.05


def test_label_skew_is_no_drift_to_the_nearest_but_to_kl_and_mmd(world, detector):
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = rng.choice(rng.choice(CLASSES, 4, replace=False), 60)
        found.append(detector.distances(world(labels, 2000 + seed)))
    over = detector.thresholds
    assert np.mean([each.over(over) for each in found]) <= 0.05
    assert np.mean([each.kl > over.kl for each in found]) > 0.9
    assert np.mean([each.mmd > over.mmd for each in found]) > 0.9


def test_new_labels_alarm(world, detector):
    def window(seed):
        labels = np.random.default_rng(seed).integers(0, CLASSES, 60)
        labels[:30] += CLASSES
        return world(labels, 3000 + seed)

    assert alarms(detector, window, range(30)) > 0.95


def test_an_alarm_is_by_the_nearest_and_confirmed():
    over = Distances(1.0, 1.0, 1.0)
    high, low = 2.0, 0.5
    found = {
        bits: Distances(*(high if bit else low for bit in bits)).over(over)
        for bits in product((0, 1), repeat=3)
    }
    assert {bits for bits, alarm in found.items() if alarm} == {(1, 1, 0), (1, 0, 1), (1, 1, 1)}


def test_thresholds_are_the_same_each_time(world, known, detector):
    again = calibrated(world(known, 0), [str(label) for label in known], 60, Settings())
    assert again.thresholds == detector.thresholds


def test_too_small_a_reference_is_refused():
    with pytest.raises(ValueError, match=f"{LEAST} records or more; got 19"):
        calibrated(rows(0, 19), ["a"] * 19, 50, Settings())


def test_without_classes_a_reference_is_one():
    reference = rows(13, 80)
    each = calibrated(reference, [str(i) for i in range(80)], 30, Settings())
    assert each.thresholds == calibrated(reference, ["a"] * 80, 30, Settings()).thresholds


@pytest.mark.parametrize("windows", [1, 2, 20, 45])
def test_unlikely_is_a_tail_of_the_binomial(windows):
    for number in range(windows + 1):
        wanted = number > 0 and binom.sf(number - 1, windows, 0.05) <= 0.05
        assert unlikely(number, windows, 0.05) == wanted


def test_windows_are_all_records_in_parts_of_about_one_size():
    for count, window in ((100, 100), (149, 100), (151, 100), (1234, 100), (60, 100)):
        parts = cut(count, window)
        assert np.array_equal(np.concatenate(parts), np.arange(count))
        assert len(parts) == max(1, round(count / window))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert cut(49, 100) == []
    assert cut(19, 20) == []


def test_scope_is_the_cosine_to_the_nearest_mean():
    known = np.array([[1, 0, 0], [1, 0.2, 0], [0, 1, 0], [0, 1, 0.2]], np.float32)
    scope = scope_of(known, ["a", "a", "b", "b"], known)
    asked = np.array([[2, 0.2, 0], [0, 0, 5]], np.float32)
    mean = np.array([1, 0.1, 0]) / np.sqrt(1.01)
    other = np.array([0, 1, 0.1]) / np.sqrt(1.01)
    wanted = [1 - asked[0] @ mean / np.linalg.norm(asked[0]), 1 - other[2]]
    assert scope.classes == ("a", "b")
    assert scope.scores(asked) == pytest.approx(wanted, abs=1e-6)
    assert scope.outside(asked).tolist() == [False, True]


def test_the_threshold_keeps_95_percent_of_validation(world, known):
    validation = world(known, 1)
    scope = scope_of(world(known, 0), [str(label) for label in known], validation)
    assert scope.outside(validation).mean() == pytest.approx(0.05, abs=0.005)
    strange = world(known + CLASSES, 2)
    assert area(scope.scores(validation), scope.scores(strange)) > 0.9
    assert not scope_of(validation, [""] * len(known)).outside(strange).any()
    with pytest.raises(ValueError, match="one record or more"):
        scope_of(validation[:0], [])


def test_area_counts_pairs():
    rng = np.random.default_rng(3)
    inside, outside = rng.integers(0, 6, 40), rng.integers(2, 9, 30)
    more = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    assert area(inside, outside) == pytest.approx(more)
