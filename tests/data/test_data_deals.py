"""Records that cannot be dealt are named before any client is asked."""

import pytest

from perennial.core.config import Domains, Shards
from perennial.core.errors import DataError
from perennial.core.values import Records, Splits
from perennial.data.deals import need_deal
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
