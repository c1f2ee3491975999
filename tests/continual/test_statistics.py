"""Sums of per-example statistics: by hand, and the law that parts add up bit for bit."""

import numpy as np
import pytest

from perennial.continual import statistics


def draw(count, width, num_labels=3, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.integers(-90, 120, (count, width)).astype(np.float32)
    return features, rng.integers(0, num_labels, count)


def test_two_records_by_hand():
    features = np.array([[1, 2], [3, -1]], np.float32)
    vector = statistics.gather(features, np.array([2, 0]), 3)
    counts, sums, gram = [1, 0, 1], [3, -1, 0, 0, 1, 2], [1 + 9, 2 - 3, 4 + 1]
    assert vector.tolist() == [*counts, *sums, *gram]
    assert vector.dtype == np.float32


def test_class_means_need_no_gram_matrix():
    features, classes = draw(9, 4)
    vector = statistics.gather(features, classes, 3, second=False)
    assert len(vector) == statistics.size(3, 4, second=False) == 3 * 5
    assert np.array_equal(vector, statistics.gather(features, classes, 3)[:15])


@pytest.mark.parametrize("width", [1, 7, 600])  # one panel, and more than one
def test_the_triangle_is_that_of_the_gram_matrix(width):
    features, classes = draw(40, width)
    sums = statistics.view(statistics.gather(features, classes, 3), 3, width)
    whole = features.astype(np.float64)
    assert np.array_equal(statistics.full(sums.gram, width), whole.T @ whole)


def test_any_split_in_any_order_adds_up_to_the_same_bits():
    features, classes = draw(200, 50)
    whole = statistics.gather(features, classes, 3)
    rng = np.random.default_rng(1)
    for _ in range(20):
        parts = np.array_split(rng.permutation(200), rng.integers(1, 12))
        vectors = [statistics.gather(features[part], classes[part], 3) for part in parts]
        total = sum(vectors, np.zeros(len(whole)))
        assert np.array_equal(total, whole)


def test_what_is_taken_away_was_never_there():
    features, classes = draw(30, 20)
    signs = np.repeat(np.array([1, -1], np.float32), [20, 10])
    less = statistics.gather(features, classes, 3, signs=signs)
    more = statistics.gather(features[20:], classes[20:], 3)
    assert np.array_equal(less + more, statistics.gather(features[:20], classes[:20], 3))


def test_no_record_sums_to_zeros():
    vector = statistics.gather(np.zeros((0, 5), np.float32), np.zeros(0, np.intp), 4)
    assert vector.shape == (statistics.size(4, 5),)
    assert not vector.any()


def test_beyond_whole_numbers_of_float32_a_value_is_rounded_once():
    features = np.full((70_001, 2), 17.0, np.float32)
    features[0] = 1.0
    vector = statistics.gather(features, np.zeros(len(features), np.intp), 1)
    exact = 70_000 * 289 + 1  # odd and above 2^24: float32 has its even neighbours only
    assert vector[-1] == np.float32(exact)


def test_a_vector_of_another_size_is_refused():
    with pytest.raises(ValueError, match="2 labels and 3 features must have 8 values, or 14"):
        statistics.view(np.zeros(9), 2, 3)
    assert statistics.view(np.zeros(8), 2, 3).gram.size == 0
    assert statistics.view(np.zeros(14), 2, 3).width == 3
