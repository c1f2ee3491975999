"""The seeded split: laws first, then small cases by hand."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import ConfigError, DataError
from perennial.core.values import Records, Splits
from perennial.data.split import Rates, split


def records(pairs: list[tuple[str, str]]) -> Records:
    size = len(pairs)
    ids = tuple(map(str, range(size)))
    return Records(ids, ids, tuple(t for _, t in pairs), tuple(d for d, _ in pairs), ("",) * size)


def parts(splits: Splits) -> list[list[int]]:
    return [[int(i) for i in part.ids] for part in (splits.train, splits.validation, splits.test)]


pairs = st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("xyz")), max_size=60)


@given(pairs, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_parts_are_a_partition_in_order_and_train_keeps_every_stratum(
    pairs: list[tuple[str, str]], seed: int
) -> None:
    given_ = records(pairs + [("A", "x")] * 2)
    splits = split(given_, Rates(seed=seed))
    found = parts(splits)
    assert sorted(chain.from_iterable(found)) == list(range(len(given_)))
    assert all(part == sorted(part) for part in found)
    assert splits == split(given_, Rates(seed=seed))
    strata = set(zip(given_.domains, given_.targets, strict=True))
    assert strata == set(zip(splits.train.domains, splits.train.targets, strict=True))


def test_a_stratum_does_not_feel_the_others() -> None:
    alone = [("A", "x")] * 10
    mixed = [pair for _ in range(10) for pair in (("B", "y"), ("A", "x"))]
    of_alone = parts(split(records(alone), Rates()))
    of_mixed = [[i // 2 for i in part if i % 2] for part in parts(split(records(mixed), Rates()))]
    assert of_alone == of_mixed


@pytest.mark.parametrize(
    ("size", "expected"),
    [(2, [1, 0, 1]), (3, [1, 1, 1]), (10, [7, 1, 2]), (76, [53, 8, 15])],
)
def test_sizes(size: int, expected: list[int]) -> None:
    found = parts(split(records([("A", "x")] * size), Rates()))
    assert [len(part) for part in found] == expected


def test_zero_rates_hold_nothing_out() -> None:
    found = parts(split(records([("A", "x")] * 9), Rates(0.0, 0.0)))
    assert [len(part) for part in found] == [9, 0, 0]


def test_labels_of_one_record_cannot_be_split() -> None:
    with pytest.raises(DataError, match="write test_rate = 0"):
        split(records([("A", "x"), ("A", "y")]), Rates())


@pytest.mark.parametrize("rates", [(0.5, 0.5), (-0.1, 0.0), (0.0, -0.1), (float("nan"), 0.0)])
def test_rates_that_do_not_fit(rates: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="add up to less than 1"):
        Rates(*rates)
