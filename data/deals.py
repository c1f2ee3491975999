"""Whether the records of every domain can be dealt to the clients, before any client is asked."""

from __future__ import annotations

from ..core.config import Shards
from ..core.errors import DataError
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
    for domain in domains.domains:
        deal(of_domain(domains.splits.train, domain.name), table, seed)
