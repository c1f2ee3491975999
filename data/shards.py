"""Shards: which client holds which records.

The `dirichlet` split is that of Hsu, Qi and Brown 2019 (arXiv:1909.06335) seen from the labels:
each label draws its proportions over the clients from Dir(alpha), as in Yurochkin et al. 2019
(arXiv:1905.12022), so that shards are a partition and their sizes differ too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from ..core.config import Shards
from ..core.errors import DataError
from ..core.parts import Indices
from ..core.seeds import generator
from ..core.values import Records

_Owners: TypeAlias = Callable[[Records, Shards, int, Records], Indices]
"""(records, table, seed, like) -> the client of each record [n], 0..num_clients-1."""


def shard(
    records: Records, table: Shards, index: int, seed: int, like: Records | None = None
) -> Records:
    """The records that client `index` holds, in their order; maybe none.

    Args:
        records: the records of all clients.
        table: `[shards]` of the config.
        index: the client, 0..num_clients-1.
        seed: the run's seed.
        like: as in `deal`.

    Raises:
        ValueError: `index` is no client.
        DataError: as `deal`.
    """
    if not 0 <= index < table.num_clients:
        raise ValueError(f"index must be in 0..{table.num_clients - 1}; got {index}")
    kept = _Same(records if like is None else like)
    return records.take(_dealt(_Same(records), table, seed, kept)[index])


def deal(
    records: Records, table: Shards, seed: int, like: Records | None = None
) -> tuple[Indices, ...]:
    """Positions of the records of each client, ascending: one array per client.

    Laws: the arrays are a partition of 0..n-1 (but for `local`, where `records` are one client's
    own and every array holds all of them); they depend on the arguments alone, in any process.
    Under `dirichlet` the proportions of a label depend on (seed, label) alone, so that train,
    validation and test shards of a client are alike; `label` and `column` promise the same
    for parts that are dealt with one `like`.

    - `iid`: a seeded permutation; sizes differ by at most 1.
    - `dirichlet`: see the module; a label's counts are within 1 of its proportions.
    - `label`: a client holds `labels_per_client` labels (all, if there are fewer); the records
      of a label are split evenly over the clients that hold it.
    - `column`: the values of the sharding column, sorted, go to the clients in turn.
    - `local`: all records are the one client's.

    Targets are the labels: for completions use `iid`, `column` or `local`.

    Args:
        records: the records of all clients.
        table: `[shards]` of the config.
        seed: the run's seed.
        like: whose labels and values say who holds what; `records` by default. Give the
            train records when validation or test is dealt, where some may be missing.

    Raises:
        DataError: too few clients to hold every label, or a sharding column that is empty.
    """
    return _dealt(_Same(records), table, seed, _Same(records if like is None else like))


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """Records that are equal only to themselves: a cache key that costs nothing to hash."""

    records: Records

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.records is other.records

    def __hash__(self) -> int:
        return id(self.records)


# A thousand simulated clients ask for their shards of the same records one by one: the deal is
# made once. The cache holds the records, so that their id cannot be reused; hence so small.
@lru_cache(maxsize=4)
def _dealt(records: _Same, table: Shards, seed: int, like: _Same) -> tuple[Indices, ...]:
    size = len(records.records)
    if table.split == "local":
        return (_fixed(np.arange(size, dtype=np.intp)),) * table.num_clients
    owners = _OWNERS[table.split](records.records, table, seed, like.records)
    # A stable sort keeps the order of the records inside each client.
    order = np.argsort(owners, kind="stable").astype(np.intp)
    ends = np.cumsum(np.bincount(owners, minlength=table.num_clients))[:-1]
    return tuple(_fixed(part) for part in np.split(order, ends))


def _fixed(indices: Indices) -> Indices:
    indices.flags.writeable = False  # callers share the cached arrays
    return indices


def _iid(records: Records, table: Shards, seed: int, like: Records) -> Indices:
    owners = np.empty(len(records), np.intp)
    permutation = generator(seed, "shards", "iid").permutation(len(records))
    owners[permutation] = np.arange(len(records)) % table.num_clients
    return owners


def _dirichlet(records: Records, table: Shards, seed: int, like: Records) -> Indices:
    owners = np.empty(len(records), np.intp)
    for label, members in _positions(records.targets).items():
        draw = generator(seed, "shards", "dirichlet", label)
        proportions = draw.dirichlet(np.full(table.num_clients, table.alpha))
        # Cumulative rounding in the order 0, 1, ... would favour the same clients under every
        # label when records are fewer than clients; a drawn order does not.
        clients = draw.permutation(table.num_clients)
        ends = np.rint(np.cumsum(proportions[clients]) * len(members)).astype(np.intp)
        ends[-1] = len(members)
        counts = np.diff(ends, prepend=0)
        shuffled = _shuffled(members, seed, label)
        owners[shuffled] = np.repeat(clients, counts)
    return owners


def _label(records: Records, table: Shards, seed: int, like: Records) -> Indices:
    owners = np.empty(len(records), np.intp)
    holders = _holders(_values(like.targets, records.targets), table, seed)
    for label, members in _positions(records.targets).items():
        shuffled = _shuffled(members, seed, label)
        owners[shuffled] = np.resize(holders[label], len(members))
    return owners


def _holders(labels: Sequence[str], table: Shards, seed: int) -> Mapping[str, Sequence[int]]:
    """Label -> the clients that hold it, in a drawn order; every label has one or more."""
    if table.num_clients * table.labels_per_client < len(labels):
        needed = -(-len(labels) // table.num_clients)
        raise DataError(
            f"[shards] split 'label': {table.num_clients} clients with labels_per_client = "
            f"{table.labels_per_client} must hold {len(labels)} labels; raise labels_per_client "
            f"to {needed} or num_clients to {-(-len(labels) // table.labels_per_client)}"
        )
    draw = generator(seed, "shards", "label")
    holders: dict[str, list[int]] = {label: [] for label in labels}
    queue: list[str] = []
    for client in range(table.num_clients):
        held: list[str] = []
        for _ in range(min(table.labels_per_client, len(labels))):
            # A new pass over all labels starts when nothing is left that this client lacks: so
            # the first pass reaches every label, and no label gets far ahead of the others.
            if all(label in held for label in queue):
                queue += [labels[i] for i in draw.permutation(len(labels))]
            held.append(next(label for label in queue if label not in held))
            queue.remove(held[-1])
        for label in held:
            holders[label].append(client)
    return {label: draw.permutation(clients).tolist() for label, clients in holders.items()}


def _column(records: Records, table: Shards, seed: int, like: Records) -> Indices:
    if records.groups and not any(records.groups):
        raise DataError(
            "[shards] split 'column': the records must have a sharding column; got none or an "
            'empty one; name it with group = "..." in [data]'
        )
    turn = {value: i for i, value in enumerate(_values(like.groups, records.groups))}
    owners = [turn[value] % table.num_clients for value in records.groups]
    return np.array(owners, np.intp)


def _values(first: Iterable[str], then: Iterable[str]) -> list[str]:
    """The values of `first`, sorted, and after them those that only `then` has, sorted."""
    known = frozenset(first)
    return sorted(known) + sorted(frozenset(then) - known)


def _positions(column: Iterable[str]) -> Mapping[str, list[int]]:
    positions: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(column):
        positions[value].append(i)
    return positions


def _shuffled(members: list[int], seed: int, label: str) -> Indices:
    return generator(seed, "shards", "members", label).permutation(np.array(members, np.intp))


_OWNERS: Mapping[str, _Owners] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "label": _label,
    "column": _column,
}
