"""Records that cannot be dealt are named before any client is asked."""

import pytest

from perennial.core.config import Domains, Shards
from perennial.core.errors import DataError
from perennial.core.values import Records, Splits
from perennial.data.deals import deal_of, need_deal, records_per_client
from perennial.data.stream import Stream, stream

DOMAINS, LABELS = ("x", "x", "y"), ("a", "b", "c")


def made(causal: bool = False) -> Stream:
    records = Records(("1", "2", "3"), ("s", "t", "u"), LABELS, DOMAINS, ("",) * 3)
    return stream(Splits(records, Records(), Records()), Domains(), causal=causal)


@pytest.mark.parametrize("split", ["dirichlet", "label"])
def test_a_causal_model_has_no_labels_to_deal_by(split: str) -> None:
    table = Shards(split=split)  # type: ignore[arg-type]
    need_deal(made(), table, 0)
    with pytest.raises(DataError, match="a causal model has none; write 'iid'"):
        need_deal(made(causal=True), table, 0)


def test_other_splits_are_dealt_as_they_are() -> None:
    need_deal(made(causal=True), Shards(split="iid"), 0)
    need_deal(made(causal=True), Shards(split="local"), 0)
    with pytest.raises(DataError, match="sharding column"):
        need_deal(made(), Shards(split="column"), 0)
    with pytest.raises(DataError, match="raise labels_per_client"):
        need_deal(made(), Shards(split="label", num_clients=1, labels_per_client=1), 0)


def test_a_value_of_the_column_stays_with_its_client_in_every_domain():
    ids = tuple(f"r{i}" for i in range(5))
    texts, labels = ("t",) * 5, ("a", "a", "a", "b", "b")
    places = ("east", "north", "west", "north", "west")  # the second domain has no east
    train = Records(ids, texts, labels, ("one", "one", "one", "two", "two"), places)
    nothing = Records()
    found = stream(Splits(train, nothing, nothing), Domains())
    table = Shards(split="column", num_clients=3)
    held = [
        {
            place
            for domain in ("one", "two")
            for place in deal_of(found, table, 0, domain, "train")[index].groups
        }
        for index in range(3)
    ]
    assert held == [{"east"}, {"north"}, {"west"}]
    assert records_per_client(found, table, 0) == [1, 2, 2]
