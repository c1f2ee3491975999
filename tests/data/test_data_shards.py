"""Shards: the laws of every split, then sizes and proportions by hand."""

from collections import Counter
from itertools import chain
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.config import Shards
from perennial.core.errors import DataError
from perennial.core.values import Records
from perennial.data import shards
from perennial.data.shards import deal, shard

PARTITIONS = ("iid", "dirichlet", "label", "column")


def records(targets: list[str], groups: list[str] | None = None) -> Records:
    ids = tuple(map(str, range(len(targets))))
    return Records(ids, ids, tuple(targets), ("d",) * len(ids), tuple(groups or ["g"] * len(ids)))


def counts(table: Shards, given_: Records, seed: int = 0, like: Records | None = None) -> list:
    return [Counter(given_.take(part).targets) for part in deal(given_, table, seed, like)]


@pytest.mark.parametrize("split", PARTITIONS)
@given(
    targets=st.lists(st.sampled_from("abcde"), max_size=80),
    num_clients=st.integers(1, 9),
    alpha=st.sampled_from([1e-3, 0.5, 1e6]),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_shards_are_a_partition_in_order_and_the_same_again(
    split: str, targets: list[str], num_clients: int, alpha: float, seed: int
) -> None:
    given_ = records(targets, [f"g{ord(t) * i % 7}" for i, t in enumerate(targets)])
    table = Shards(split=split, num_clients=num_clients, alpha=alpha, labels_per_client=5)
    parts = [part.tolist() for part in deal(given_, table, seed)]
    assert len(parts) == num_clients
    assert sorted(chain.from_iterable(parts)) == list(range(len(targets)))
    assert all(part == sorted(part) for part in parts)
    copy = Records(*given_.columns)
    for index, part in enumerate(parts):
        assert shard(copy, table, index, seed) == given_.take(part)


FIXED = {
    "iid": [[3, 6, 10, 11], [1, 2, 4, 8], [0, 5, 7, 9]],
    "dirichlet": [[1, 3, 4, 9], [0, 2, 6, 7], [5, 8, 10, 11]],
    "label": [[0, 1, 10, 11], [2, 3, 4, 5], [6, 7, 8, 9]],
    "column": [[0, 3, 5, 8, 10], [1, 4, 6, 9, 11], [2, 7]],
}


@pytest.mark.parametrize("split", PARTITIONS)
def test_another_process_deals_alike(split: str) -> None:
    # Fixed numbers stand for the other process: they may not change between releases, or a
    # client that comes back would train on records that were another's.
    given_ = records(list("aabbccddeeff"), [f"g{i % 5}" for i in range(12)])
    parts = deal(given_, Shards(split=split, num_clients=3), seed=7)
    assert [part.tolist() for part in parts] == FIXED[split]


def test_another_seed_deals_otherwise() -> None:
    given_ = records(list("abcdef") * 10)
    for split in ("iid", "dirichlet", "label"):
        table = Shards(split=split, num_clients=4)
        assert shard(given_, table, 0, 0) != shard(given_, table, 0, 1)


@pytest.mark.parametrize(("size", "num_clients"), [(10, 4), (3, 5), (0, 2), (12, 4)])
def test_iid_sizes_differ_by_at_most_one(size: int, num_clients: int) -> None:
    parts = deal(records(["x"] * size), Shards(num_clients=num_clients), 0)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_proportions_are_shared_between_train_and_test(alpha: float) -> None:
    table = Shards(split="dirichlet", num_clients=6, alpha=alpha)
    train = counts(table, records(["a"] * 1000 + ["b"] * 500), seed=3)
    test = counts(table, records(["b"] * 200 + ["c"] * 50 + ["a"] * 100), seed=3)
    for label, num_train, num_test in (("a", 1000, 100), ("b", 500, 200)):
        for of_train, of_test in zip(train, test, strict=True):
            assert abs(of_train[label] / num_train - of_test[label] / num_test) < (
                1 / num_train + 1 / num_test
            )


def test_dirichlet_alpha_goes_from_one_client_to_all_alike() -> None:
    given_ = records(["a"] * 400)
    assert max(c["a"] for c in counts(Shards(split="dirichlet", alpha=1e-4), given_)) == 400
    even = counts(Shards(split="dirichlet", alpha=1e6), given_)
    assert all(abs(c["a"] - 100) <= 2 for c in even)


def test_dirichlet_has_the_variance_of_its_law() -> None:
    # A share of Dir(alpha) over k has mean 1/k and variance (k - 1) / (k^2 (k alpha + 1)).
    k, alpha = 5, 0.5
    labels = [f"l{i}" for i in range(400)]
    given_ = records([label for label in labels for _ in range(100)])
    found = counts(Shards(split="dirichlet", num_clients=k, alpha=alpha), given_)
    shares = np.array([[client[label] / 100 for label in labels] for client in found])
    assert shares.mean(axis=1) == pytest.approx(np.full(k, 1 / k), abs=0.05)
    assert shares.var() == pytest.approx((k - 1) / (k**2 * (k * alpha + 1)), rel=0.1)


def test_dirichlet_with_few_records_does_not_favour_the_same_clients() -> None:
    given_ = records([f"l{i}" for i in range(60) for _ in range(5)])
    table = Shards(split="dirichlet", num_clients=100, alpha=1e6)
    held = [len(part) for part in deal(given_, table, 0)]
    assert sum(size > 0 for size in held) > 85


@given(st.integers(1, 8), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_label_gives_each_client_its_number_of_labels_and_every_label_a_client(
    num_labels: int, num_clients: int, per_client: int, seed: int
) -> None:
    labels = [f"l{i}" for i in range(num_labels)]
    given_ = records(labels * 20)
    table = Shards(split="label", num_clients=num_clients, labels_per_client=per_client)
    if num_clients * per_client < num_labels:
        with pytest.raises(DataError, match="raise labels_per_client to"):
            deal(given_, table, seed)
        return
    found = counts(table, given_, seed)
    assert all(len(client) == min(per_client, num_labels) for client in found)
    for label in labels:
        held = [client[label] for client in found if label in client]
        assert sum(held) == 20
        assert max(held) - min(held) <= 1


def test_label_says_what_to_raise() -> None:
    table = Shards(split="label", num_clients=2, labels_per_client=2)
    with pytest.raises(DataError, match="to 4 or num_clients to 4"):
        deal(records(list("abcdefg")), table, 0)


def test_label_and_column_follow_train_where_test_lacks_some() -> None:
    train = records(list("abcdef") * 4, [f"u{i}" for i in range(24)])
    test = train.where(lambda i: train.targets[i] in "bdf" and i % 3 != 2)
    assert 0 < len(test) < 12
    for split in ("label", "column"):
        table = Shards(split=split, num_clients=3)
        for index in range(3):
            mine = shard(train, table, index, 5)
            of_test = shard(test, table, index, 5, like=train)
            column = "targets" if split == "label" else "groups"
            assert set(getattr(of_test, column)) <= set(getattr(mine, column))


def test_column_deals_sorted_values_in_turn() -> None:
    given_ = records(list("xxxxxx"), ["c", "a", "b", "d", "a", "c"])
    table = Shards(split="column", num_clients=2)
    assert shard(given_, table, 0, 0).groups == ("c", "a", "a", "c")
    assert shard(given_, table, 1, 0).groups == ("b", "d")
    # A value that only test has comes last: it moves no other.
    late = records(list("xxx"), ["aa", "b", "d"])
    assert shard(late, table, 0, 0, like=given_).groups == ("aa",)


def test_column_needs_a_column() -> None:
    given_ = Records(("1",), ("t",), ("x",), ("d",), ("",))
    with pytest.raises(DataError, match=r'name it with group = "\.\.\." in \[data\]'):
        deal(given_, Shards(split="column"), 0)


def test_local_is_all_of_it() -> None:
    given_ = records(list("abc"))
    assert shard(given_, Shards(split="local", num_clients=3), 2, 0) == given_


@pytest.mark.parametrize("split", [*PARTITIONS, "local"])
def test_nothing_is_dealt_as_nothing(split: str) -> None:
    assert shard(Records(), Shards(split=split), 3, 0) == Records()


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_that_is_no_client(index: int) -> None:
    with pytest.raises(ValueError, match=r"index must be in 0\.\.3"):
        shard(records(["a"]), Shards(num_clients=4), index, 0)


def test_a_thousand_clients_cost_one_deal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Mock(side_effect=shards.generator)
    monkeypatch.setattr(shards, "generator", drawn)
    given_ = records([f"l{i % 50}" for i in range(5_000)])
    sizes = [len(shard(given_, Shards(num_clients=1000), i, 0)) for i in range(1000)]
    assert sizes == [5] * 1000
    assert drawn.call_count == 1
