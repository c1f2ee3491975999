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
