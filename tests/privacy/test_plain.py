from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import RunError
from perennial.core.sums import Chance, Figures, Pact, Party
from perennial.privacy import plain

sums = plain.build()


def pact(size):
    return Pact("run", 0, 0, 0, "", "0" * 32, size, 0.0, "")


def seal(row):
    chance = Chance(np.random.default_rng(0))
    return sums.seal(row, Figures(9.0), pact(len(row)), b"", Party(1, Path()), chance)


def total_of(rows, weights):
    total, here = None, pact(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total = sums.add(total, seal(row), weight, here)
    return sums.result(sums.close(total, here), here, range(len(rows)), {}, {}).total


def test_two_clients_by_hand():
    rows = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -0.25]], np.float32)
    assert total_of(rows, [2.0, 4.0]).tolist() == [14.0, -4.0, 0.0]


@pytest.mark.parametrize("size", [0, 1, 3, 2**40])
def test_an_update_of_another_size_never_leaves_a_client(size):
    chance, row = Chance(np.random.default_rng(0)), np.ones(2, np.float32)
    with pytest.raises(RunError, match=f"update's 2 values; the server says {size}"):
        sums.seal(row, Figures(1.0), pact(size), b"", Party(1, Path()), chance)


def test_the_body_is_little_endian_float32():
    assert seal(np.array([1.0, -2.0], np.float32)) == bytes.fromhex("0000803f000000c0")
    big = np.array([1.0, -2.0], ">f4")
    assert seal(big) == bytes.fromhex("0000803f000000c0")
    strided = np.array([1.0, 7.0, -2.0], np.float32)[::2]
    assert seal(strided) == bytes.fromhex("0000803f000000c0")


clients = st.lists(
    st.tuples(
        st.lists(st.floats(-64, 64, width=32), min_size=3, max_size=3),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200)
@given(clients, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bits_and_numpys_average(found, random):
    rows = np.array([row for row, _ in found], np.float32)
    weights = [float(weight) for _, weight in found]
    first = total_of(rows, weights)
    order = list(range(len(found)))
    random.shuffle(order)
    again = total_of(rows[order], [weights[i] for i in order])
    assert first.tobytes() == again.tobytes()
    if sum(weights):
        wanted = np.average(rows.astype(np.float64), axis=0, weights=weights)
        assert np.allclose(first / sum(weights), wanted, rtol=0, atol=2.0**-32)


def test_why_the_grid_floats_alone_depend_on_the_order():
    rows = np.array([[0.1], [1e-9], [63.7], [-63.7]], np.float32)
    plain_float = [
        float(np.float64(rows[list(o)]).cumsum()[-1]) for o in ((0, 1, 2, 3), (2, 3, 1, 0))
    ]
    assert plain_float[0] != plain_float[1]
    assert total_of(rows, [1.0] * 4) == total_of(rows[[2, 3, 1, 0]], [1.0] * 4)


def test_the_running_total_is_its_own_copy():
    body = seal(np.ones(2, np.float32))
    first = sums.add(None, body, 1.0, pact(2))
    sums.add(first, body, 1.0, pact(2))
    assert sums.single(body, pact(2)).tolist() == [1.0, 1.0]
