"""What holds for every sum in `privacy/`, so for a new file at once."""

import numpy as np
import pytest

from perennial.core import plugins
from perennial.core.parts import SecureSum
from perennial.core.values import Ticket

# Options that a sum requires; one that is not here is built with its defaults.
OPTIONS = {}
# Largest error per value and unit of weight for |delta| <= 1; a sum that is not here is exact.
ERROR = {"plain": 2.0**-32}

TICKET = Ticket("run", 0, 1, 0, "manifest")
WEIGHTS = [3.0, 0.0, 1.0, 250.0]
SIZE = 37


@pytest.fixture(params=plugins.names("privacy", SecureSum))
def named(request):
    name = request.param
    return name, plugins.load("privacy", name, OPTIONS.get(name, {}), SecureSum)


@pytest.fixture
def sums(named):
    return named[1]


def deltas(count, size=SIZE):
    return np.random.default_rng(count).uniform(-1, 1, (count, size)).astype(np.float32)


def total_of(sums, rows, weights):
    total = None
    for row, weight in zip(rows, weights, strict=True):
        total = sums.add(total, sums.seal(row, weight, TICKET), weight, len(row))
    return sums.open(total, TICKET)


def test_the_sum_of_sealed_deltas_is_the_weighted_sum(named):
    name, sums = named
    rows = deltas(4)
    found = total_of(sums, rows, WEIGHTS)
    wanted = np.array(WEIGHTS) @ rows.astype(np.float64)
    assert found.dtype == np.float64
    assert np.abs(found - wanted).max() <= ERROR.get(name, 0.0) * sum(WEIGHTS)


def test_one_client_alone(named):
    name, sums = named
    rows = deltas(1)
    found = total_of(sums, rows, [2.0])
    assert np.abs(found - 2 * rows[0].astype(np.float64)).max() <= 2 * ERROR.get(name, 0.0)


def test_the_order_does_not_count(sums):
    rows = deltas(4)
    first = total_of(sums, rows, WEIGHTS)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        found = total_of(sums, rows[order], [WEIGHTS[i] for i in order])
        assert np.array_equal(found, first)


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_any_length(sums, size):
    found = total_of(sums, deltas(2, size), [1.0, 1.0])
    assert found.shape == (size,)


def test_sealing_leaves_the_delta_alone_and_adding_the_body(sums):
    row = deltas(1)[0]
    body = sums.seal(row, 3.0, TICKET)
    assert isinstance(body, bytes)
    kept = bytes(bytearray(body))
    sums.add(None, body, 3.0, SIZE)
    assert body == kept
    assert np.array_equal(row, deltas(1)[0])


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * (4 * SIZE - 1), b"x" * (4 * SIZE + 1)])
def test_a_body_of_another_length_is_refused(sums, damage):
    with pytest.raises(ValueError, match="must"):
        sums.add(None, damage, 1.0, SIZE)


def test_a_body_of_another_size_is_refused(sums):
    body = sums.seal(deltas(1, SIZE - 1)[0], 1.0, TICKET)
    with pytest.raises(ValueError, match="must"):
        sums.add(None, body, 1.0, SIZE)


def test_single_updates_can_be_read_only_where_the_sum_says_so(named):
    name, sums = named
    if not sums.single_updates:
        pytest.skip("it hides them")
    row = deltas(1)[0]
    read = sums.read(sums.seal(row, 3.0, TICKET), SIZE)
    assert read.dtype == np.float32
    assert np.abs(read - row).max() <= ERROR.get(name, 0.0)
    with pytest.raises(ValueError, match="must"):
        sums.read(b"x", SIZE)
