"""Heads in closed form against the records they were summed from."""

import numpy as np
import pytest

from perennial.continual import heads, random_features, statistics
from perennial.core.errors import RunError

PINNED = [[2, 0, -1, 0, -3], [2, -2, 1, -1, -2], [1, 1, 0, 1, -1]]


def draw(counts=(40, 30, 50), width=6, seed=0):
    """Records of three labels, each around a point of its own; whole numbers."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=30, size=(len(counts), width))
    spread = rng.normal(scale=6, size=(width, width))
    classes = np.repeat(np.arange(len(counts)), counts)
    noise = rng.normal(size=(len(classes), width)) @ spread
    return np.rint(centres[classes] + noise).astype(np.float32), classes


def summed(features, classes, num_labels=3):
    vector = statistics.gather(features, classes, num_labels)
    return statistics.view(vector, num_labels, features.shape[1])


def test_means_answer_with_the_nearest_direction():
    features = np.array([[4, 0], [2, 0], [0, 5], [-3, -3]], np.float32)
    sums = summed(features, np.array([0, 0, 1, 2]))
    assert heads.class_means(sums).tolist() == [[3, 0], [0, 5], [-3, -3]]
    head = heads.means(sums)(1.0)
    assert head.scores(np.array([[9, 1], [1, 9], [-1, -2]], np.float32)).argmax(1).tolist() == [
        0,
        1,
        2,
    ]


def test_means_under_a_covariance_see_past_its_directions():
    features = np.array([[9, 1], [-9, 1], [9, -1], [-9, -1]], np.float32)
    sums = summed(features, np.array([0, 0, 1, 1]), 2)
    within = np.diag([81.0, 0.01])
    asked = np.array([[8, 1], [-8, 2], [9, -2]], np.float32)
    assert heads.means(sums, within)(0.01).scores(asked).argmax(1).tolist() == [0, 0, 1]
    same = heads.means(sums, within)(1.0)
    assert np.array_equal(same.weight, heads.means(sums)(0.3).weight)


def test_discriminants_are_those_of_the_covariance_within_classes():
    features, classes = draw()
    whole = features.astype(np.float64)
    centres = np.stack([whole[classes == k].mean(0) for k in range(3)])
    rest = whole - centres[classes]
    within = rest.T @ rest / (len(whole) - 3)
    level = np.trace(within) / 6
    inverse = np.linalg.inv(0.9 * within + 0.1 * level * np.eye(6))
    head = heads.discriminants(summed(features, classes))(0.1)
    expected = centres @ inverse
    assert np.allclose(head.weight, expected, rtol=1e-5)
    assert np.allclose(head.bias, -0.5 * (expected * centres).sum(1), rtol=1e-5)


def test_ridge_is_the_regression_on_centred_records():
    features, classes = draw()
    whole = features.astype(np.float64)
    centred = whole - whole.mean(0)
    targets = np.eye(3)[classes]
    level = np.square(centred).sum() / 6
    gram = centred.T @ centred + 0.01 * level * np.eye(6)
    expected = np.linalg.solve(gram, centred.T @ (targets - targets.mean(0))).T
    head = heads.ridge(summed(features, classes))(0.01)
    assert np.allclose(head.weight, expected, atol=1e-7)
    assert np.allclose(head.scores(features), centred @ expected.T + targets.mean(0), atol=1e-5)


@pytest.mark.parametrize("form", ["means", "discriminants", "ridge"])
def test_heads_tell_the_labels_apart(form):
    features, classes = draw()
    sums = summed(features, classes)
    head = getattr(heads, form)(sums)(0.01)
    assert (head.scores(features).argmax(1) == classes).mean() > 0.95


@pytest.mark.parametrize("form", ["means", "discriminants", "ridge"])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_label_without_records_is_never_the_answer(form, count):
    features, classes = draw((4, 0, 3))
    features, classes = features[:count], classes[:count]
    sums = summed(features, classes, 4)
    head = getattr(heads, form)(sums)(0.1)
    scores = head.scores(draw()[0])
    assert np.isfinite(scores).all()
    if count:
        assert set(scores.argmax(1)) <= set(classes)


def test_a_regulariser_means_the_same_for_any_scale_of_the_features():
    features, classes = draw()
    small, large = (heads.ridge(summed(features * s, classes))(0.03) for s in (1, 8))
    assert np.allclose(small.scores(features), large.scores(features * 8), atol=1e-5)


def test_noise_that_makes_a_matrix_indefinite_is_outweighed():
    matrix = np.diag([1.0, -0.5])
    solution = heads.solved(matrix, 1e-3, np.eye(2))
    assert np.allclose(solution, np.diag([1 / 2, 1 / 0.5]), rtol=1e-9)
    assert np.array_equal(matrix, np.diag([1.0, -0.5]))


def test_a_matrix_of_zeros_is_solved_and_one_of_no_numbers_refused():
    assert np.isfinite(heads.solved(np.zeros((2, 2)), 0.0, np.eye(2))).all()
    with pytest.raises(RunError, match="must be finite"):
        heads.solved(np.full((2, 2), np.nan), 0.1, np.eye(2))


def test_the_grid_has_whole_steps_and_one_spread():
    pooled = np.random.default_rng(0).normal(3.0, 0.01, (5, 2 * 48)).astype(np.float32)
    grid = random_features.on_grid(pooled, 2)
    assert grid.dtype == np.int8
    layers = grid.reshape(5, 2, 48)
    assert np.allclose(layers.mean(2), 0, atol=0.3)
    assert np.allclose(layers.std(2), random_features.STEPS, atol=0.3)
    assert not random_features.on_grid(np.zeros((1, 8), np.float32), 2).any()


def test_random_features_are_the_same_numbers_for_ever():
    weights = random_features.weights(3, 5, 7)
    assert weights.tolist() == PINNED
    assert abs(random_features.weights(64, 500, 0).mean()) < 0.05
    assert abs(random_features.weights(64, 500, 0).std() - 2.0) < 0.05


def test_random_features_are_whole_and_do_not_depend_on_the_company():
    grid = np.random.default_rng(0).integers(-127, 128, (33, 96)).astype(np.int8)
    features = random_features.expand(grid, 200, seed=3)
    assert np.array_equal(features, np.rint(features))
    assert features.min() == 0
    one_by_one = [random_features.expand(row[None], 200, seed=3) for row in grid]
    assert np.array_equal(np.concatenate(one_by_one), features)
    assert not np.array_equal(random_features.expand(grid, 200, seed=4), features)
    assert np.array_equal(random_features.expand(grid, 0, seed=3), grid)
