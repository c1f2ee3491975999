from __future__ import annotations

import math

import numpy as np
import pytest

from perennial.core import metrics

nan = float("nan")

# After three domains: the first falls from 0.9 over 0.7 to 0.6, the second from 0.8 to 0.5.
A = np.array([[0.9, nan, nan], [0.7, 0.8, nan], [0.6, 0.5, 1.0]])


def test_average_accuracy_by_hand():
    assert metrics.average_accuracy(A) == pytest.approx([0.9, 0.75, 0.7])


def test_forgetting_by_hand():
    # i=1: 0.9-0.7; i=2: mean(0.9-0.6, 0.8-0.5)
    assert metrics.forgetting(A) == pytest.approx([0.0, 0.2, 0.3])


def test_forgetting_counts_from_the_best_not_the_first():
    matrix = np.array([[0.5, nan, nan], [0.8, 0.6, nan], [0.7, 0.9, 0.4]])
    # i=1: 0.5-0.8; i=2: mean(0.8-0.7, 0.6-0.9)
    assert metrics.forgetting(matrix) == pytest.approx([0.0, -0.3, -0.1])


def test_backward_transfer_by_hand():
    assert metrics.backward_transfer(A) == pytest.approx(((0.6 - 0.9) + (0.5 - 0.8)) / 2)


def test_learning_accuracy_by_hand():
    assert metrics.learning_accuracy(A) == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_cells_above_the_diagonal_are_not_read():
    full = np.where(np.isnan(A), 0.123, A)
    assert metrics.average_accuracy(full) == pytest.approx(metrics.average_accuracy(A))
    assert metrics.forgetting(full) == pytest.approx(metrics.forgetting(A))
    assert metrics.backward_transfer(full) == metrics.backward_transfer(A)
    assert metrics.learning_accuracy(full) == metrics.learning_accuracy(A)


def test_one_domain_forgets_nothing_and_transfers_nothing():
    one = np.array([[0.4]])
    assert metrics.average_accuracy(one) == pytest.approx([0.4])
    assert metrics.forgetting(one) == pytest.approx([0.0])
    assert math.isnan(metrics.backward_transfer(one))
    assert metrics.learning_accuracy(one) == pytest.approx(0.4)


def test_unmeasured_cells_are_left_out_of_the_means():
    holes = np.array([[0.9, nan, nan], [nan, nan, nan], [0.5, 0.7, 0.8]])
    assert metrics.average_accuracy(holes) == pytest.approx([0.9, nan, 2.0 / 3], nan_ok=True)
    assert metrics.forgetting(holes) == pytest.approx([0.0, nan, 0.4], nan_ok=True)
    assert metrics.backward_transfer(holes) == pytest.approx(-0.4)
    assert metrics.learning_accuracy(holes) == pytest.approx(0.85)


def test_no_domain_at_all():
    empty = np.empty((0, 0))
    assert metrics.average_accuracy(empty).shape == (0,)
    assert metrics.forgetting(empty).shape == (0,)
    assert math.isnan(metrics.backward_transfer(empty))
    assert math.isnan(metrics.learning_accuracy(empty))


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"square \[T, T\]; got shape \(2, 3\)"):
        metrics.average_accuracy(np.zeros((2, 3)))


def test_forward_transfer_by_hand():
    # Lopez-Paz & Ranzato 2017, equation 4: mean of A[0,1] - b[1] and A[1,2] - b[2].
    full = np.array([[0.9, 0.4, 0.1], [0.7, 0.8, 0.5], [0.6, 0.5, 1.0]])
    b = np.array([0.3, 0.1, 0.2])
    assert metrics.forward_transfer(full, b) == pytest.approx(((0.4 - 0.1) + (0.5 - 0.2)) / 2)
    assert metrics.forward_transfer(full, np.array([nan, 0.1, nan])) == pytest.approx(0.3)
    # The first domain's baseline and all cells but those right above the diagonal are not read.
    moved = np.where(np.eye(3, k=1) > 0, full, 0.77)
    assert metrics.forward_transfer(moved, b) == metrics.forward_transfer(full, b)


def test_forward_transfer_of_what_cannot_be_known_is_nan():
    assert math.isnan(metrics.forward_transfer(A, np.full(3, 0.1)))
    assert math.isnan(metrics.forward_transfer(np.array([[0.4]]), np.array([0.1])))
    assert math.isnan(metrics.forward_transfer(np.empty((0, 0)), np.empty(0)))
    with pytest.raises(ValueError, match=r"length 3; got shape \(2,\)"):
        metrics.forward_transfer(A, np.zeros(2))


def test_weighted_accuracy_by_hand():
    sizes = np.array([10.0, 30.0, 60.0])
    assert metrics.weighted_accuracy(A, sizes) == pytest.approx((6 + 15 + 60) / 100)
    assert metrics.weighted_accuracy(A, np.ones(3)) == pytest.approx(0.7)
    assert metrics.weighted_accuracy(A, np.array([10.0, nan, 0.0])) == pytest.approx(0.6)
    assert math.isnan(metrics.weighted_accuracy(A, np.zeros(3)))
    assert math.isnan(metrics.weighted_accuracy(np.empty((0, 0)), np.empty(0)))
    with pytest.raises(ValueError, match=r"sizes must have length 3; got shape \(1,\)"):
        metrics.weighted_accuracy(A, np.ones(1))


def test_the_three_figures_of_the_paper_hang_together():
    # With no forgetting before the end, forgetting is backward transfer turned round.
    rng = np.random.default_rng(0)
    falling = np.cumprod(rng.uniform(0.5, 1.0, (5, 5)), axis=0)
    assert metrics.forgetting(falling)[-1] == pytest.approx(-metrics.backward_transfer(falling))
    gap = metrics.average_accuracy(falling)[-1] - metrics.learning_accuracy(falling)
    assert gap == pytest.approx(metrics.backward_transfer(falling) * 4 / 5)


# Three clients: one as above, one that keeps all, one that was never asked of the second domain.
CLIENTS = np.array(
    [
        A,
        [[0.5, nan, nan], [0.5, 0.5, nan], [0.5, 0.5, 0.5]],
        [[1.0, nan, nan], [0.8, nan, nan], [0.4, nan, 0.6]],
    ]
)


def test_over_clients_by_hand():
    found = metrics.clients_accuracy(CLIENTS, np.array([1.0, 2.0, 1.0]))
    assert found.values == pytest.approx([0.7, 0.5, 0.5])
    assert found.mean == pytest.approx(1.7 / 3)
    assert found.weighted == pytest.approx((0.7 + 2 * 0.5 + 0.5) / 4)
    assert (found.worst, found.who) == (pytest.approx(0.5), 1)
    assert found.spread == pytest.approx(math.sqrt(2) * 0.2 / 3)
    lost = metrics.clients_forgetting(CLIENTS, np.array([1.0, 2.0, 1.0]))
    assert lost.values == pytest.approx([0.3, 0.0, 0.6])
    assert (lost.mean, lost.weighted) == (pytest.approx(0.3), pytest.approx((0.3 + 0.6) / 4))
    assert (lost.worst, lost.who) == (pytest.approx(0.6), 2)


def test_clients_that_measured_nothing_do_not_count():
    matrices = np.stack([np.full((3, 3), nan), A])
    found = metrics.clients_accuracy(matrices, np.array([5.0, 1.0]))
    assert (found.mean, found.weighted, found.who, found.spread) == (
        pytest.approx(0.7), pytest.approx(0.7), 1, 0.0,
    )  # fmt: skip
    for none in (np.full((2, 3, 3), nan), np.empty((0, 3, 3)), np.empty((2, 0, 0))):
        found = metrics.clients_forgetting(none, np.ones(len(none)))
        assert found.who == -1
        assert math.isnan(found.mean)
        assert math.isnan(found.weighted)
        assert math.isnan(found.spread)


def test_equal_clients_give_the_figures_of_one():
    same = np.stack([A] * 4)
    for over, one in (
        (metrics.clients_accuracy, metrics.average_accuracy),
        (metrics.clients_forgetting, metrics.forgetting),
    ):
        found = over(same, np.array([1.0, 0.0, 3.0, 2.0]))
        assert [found.mean, found.weighted, found.worst] == pytest.approx([one(A)[-1]] * 3)
        assert found.spread == pytest.approx(0.0)


def test_clients_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \[C, T, T\]; got \(3, 3\)"):
        metrics.clients_accuracy(A, np.ones(3))
    with pytest.raises(ValueError, match=r"3 weights; got shape \(2,\)"):
        metrics.clients_forgetting(CLIENTS, np.ones(2))
