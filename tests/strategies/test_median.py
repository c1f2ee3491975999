import numpy as np

from perennial.core.values import Update
from perennial.strategies import median

rule = median.build()


def updates(*rows):
    return [Update(np.array(row, np.float32), 1.0) for row in rows]


def test_three_clients_by_hand():
    found = rule.combine(updates([1, 5, -9], [2, 4, 0], [900, 6, 1]))
    assert found.tolist() == [2.0, 5.0, 0.0]


def test_an_even_count_takes_the_middle_of_the_middle():
    assert rule.combine(updates([1], [2], [4], [100])).tolist() == [3.0]


def test_it_is_numpys_median():
    rows = np.random.default_rng(0).normal(size=(7, 20)).astype(np.float32)
    assert np.array_equal(rule.combine(updates(*rows)), np.median(rows, axis=0))


def test_fewer_than_half_liars_cannot_leave_the_range_of_the_honest():
    honest = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    found = rule.combine(updates(*honest, *np.full((3, 20), 1e30)))
    assert (found >= honest.min(0)).all()
    assert (found <= honest.max(0)).all()


def test_weights_do_not_count():
    heavy = [Update(np.array([x], np.float32), w) for x, w in ((1, 1), (2, 1), (9, 1000))]
    assert rule.combine(heavy).tolist() == [2.0]
