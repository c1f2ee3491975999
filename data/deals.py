"""Who holds which records of a stream, and whether they can be dealt at all."""

from __future__ import annotations

from ..core.config import Shards
from ..core.errors import DataError
from ..core.seeds import derive
from ..core.values import Records
from .shards import deal
from .stream import Stream, of_domain

_BY_LABEL = ("dirichlet", "label")


def need_deal(domains: Stream, table: Shards, seed: int) -> None:
    """Deal every domain once and keep nothing.

    Args:
        domains: the stream of the run.
        table: `[shards]` of the config.
        seed: the run's seed.

    Raises:
        DataError: labels are dealt where there are none, or as `shards.deal`.
    """
    causal = not any(domain.labels for domain in domains.domains)
    if causal and table.split in _BY_LABEL:
        raise DataError(
            f"[shards] split {table.split!r} deals by label, and a causal model has none; "
            "write 'iid', 'column' or 'local'"
        )
    if table.split == "local":
        return  # every client has its own
    records_per_client(domains, table, seed)


def deal_of(
    domains: Stream, table: Shards, seed: int, domain: str, split: str
) -> tuple[Records, ...]:
    """What every client holds of one domain in one split; the same in every process of a run.

    Args:
        domains: the stream of the run.
        table: `[shards]` of the config.
        seed: the run's seed.
        domain: its name.
        split: `train`, `validation` or `test`.

    Raises:
        DataError: as `shards.deal`.
    """
    records = of_domain(getattr(domains.splits, split), domain)
    train = domains.splits.train
    # A value of the column is one place: it stays with its client though a domain lacks others.
    like = train if table.split == "column" else of_domain(train, domain)
    dealt = deal(records, table, derive(seed, "shards", domain), like=like)
    return tuple(records.take(indices) for indices in dealt)


def records_per_client(domains: Stream, table: Shards, seed: int) -> list[int]:
    """Number of training records of each client over all domains.

    Raises:
        DataError: as `shards.deal`.
    """
    counts = [0] * table.num_clients
    for domain in domains.domains:
        for index, held in enumerate(deal_of(domains, table, seed, domain.name, "train")):
            counts[index] += len(held)
    return counts
