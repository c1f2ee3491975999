"""Which records of a shard a client's memory takes, and which ones it then holds.

The same answer each time it is asked: a domain may end twice, and the rounds that tune the head
train on what the memory is going to hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.parts import Indices, Phase
from ..core.values import Records, Vector
from . import policies
from .memory import Store


@dataclass(frozen=True, slots=True)
class Rule:
    """What is worth keeping, as `build` was told."""

    policy: str
    per_class: int
    capacity: int
    share: float
    loss_share: float


def picked(rule: Rule, phase: Phase, store: Store, shard: Records, model: Any) -> Store:
    """The records of `shard` worth keeping, ranked within their classes; all its classes seen.

    Args:
        rule: what is worth keeping.
        phase: of the domain; in a private run each record is drawn for itself.
        store: the memory so far, for what is drawn and what is seen.
        shard: the client's own records of the domain.
        model: embeds them, and gives their losses.
    """
    shard = shard.where(lambda i: not phase.withdrew(shard.ids[i]))
    classes = shard.targets if model.labels_needed else shard.domains
    seen, vectors = frozenset(classes), None
    if phase.private:
        key = store.secret
        rows = [i for i, name in enumerate(shard.ids) if policies.priority(key, name) < rule.share]
        ranks = [0] * len(rows)
    else:
        if rule.policy in ("herding", "k_center"):
            vectors = embedded(shard, model)
        rows, ranks = _ranked(rule, store, shard, classes, model, vectors)
        if rule.policy == "reservoir":  # no more than could stay: the others cost a forward pass
            ids, room = [shard.ids[i] for i in rows], _room(rule, store.seen | seen)
            best = sorted(policies.lowest(_seeded(store), ids, room).tolist())
            rows, ranks = [rows[i] for i in best], [ranks[i] for i in best]
    taken = shard.take(rows)
    embeddings = embedded(taken, model) if vectors is None else vectors[rows]
    return replace(
        Store(store.base, store.seed, store.secret),
        records=taken,
        classes=tuple(classes[i] for i in rows),
        ranks=np.array(ranks, np.int64),
        kept=np.full(len(rows), time.time()),
        embeddings=embeddings.astype(np.float16),
        seen=seen,
    )


def _ranked(
    rule: Rule,
    store: Store,
    shard: Records,
    classes: Sequence[str],
    model: Any,
    vectors: Vector | None,
) -> tuple[list[int], list[int]]:
    """Positions in the shard that are worth keeping, and the rank of each in its class."""
    losses = policies.losses(model, shard) if rule.policy == "highest_loss" else None
    rows: list[int] = []
    ranks: list[int] = []
    for name in dict.fromkeys(classes):
        members = np.array([i for i, of in enumerate(classes) if of == name], np.intp)
        best: Indices = policies.lowest(
            _seeded(store), [shard.ids[i] for i in members], len(members)
        )
        count = math.ceil(rule.share * len(members) - 1e-9)  # 0.2 of 15 is 3, not 4
        if rule.policy != "reservoir":  # which is uniform over all records, whatever their class
            count = min(count, rule.per_class)
        if vectors is not None:
            choose = policies.herding if rule.policy == "herding" else policies.k_center
            best = choose(vectors[members], count)
        elif losses is not None:
            best = policies.highest_loss(losses[members], best, rule.loss_share, count)
        rows += members[best[:count]].tolist()
        ranks += range(count)
    return rows, ranks


def merged(rule: Rule, phase: Phase, store: Store, new: Store, shard: Records) -> Store:
    """The memory after a domain: what it held of other records, and `new`, within the caps.

    Args:
        rule: what is worth keeping.
        phase: of the domain.
        store: the memory before it.
        new: `picked` of the shard.
        shard: the client's own records of the domain.
    """
    first = dict(zip(store.records.ids, store.kept.tolist(), strict=True))
    fresh = new.without(store.forgotten | phase.gone)
    kept = [first.get(name, now) for name, now in zip(fresh.records.ids, fresh.kept, strict=True)]
    fresh = replace(fresh, kept=np.array(kept, np.float64))
    # The shard's own records were picked anew: that makes a second call like the first.
    both = store.without(phase.gone | frozenset(shard.ids)) + fresh
    both = replace(both, seen=store.seen | new.seen)
    if phase.private:
        return both
    both = replace(both, alone=not len(both))
    return _uniform(rule, both) if rule.policy == "reservoir" else _balanced(rule, both)


def _uniform(rule: Rule, store: Store) -> Store:
    ids, room = store.records.ids, _room(rule, store.seen)
    return store.take(sorted(policies.lowest(_seeded(store), ids, room).tolist()))


def _room(rule: Rule, seen: frozenset[str]) -> int:
    """How many records a reservoir holds once so many classes were seen."""
    room = rule.per_class * len(seen)
    return min(room, rule.capacity) if rule.capacity else room


def _balanced(rule: Rule, store: Store) -> Store:
    """At most `per_class` of a class, and equal parts of `capacity`: the last-ranked go first."""
    ids = store.records.ids
    members: dict[str, list[int]] = {name: [] for name in store.classes}
    for row, name in enumerate(store.classes):
        members[name].append(row)
    names = sorted(members)
    sizes = [min(len(members[name]), rule.per_class) for name in names]
    rows: list[int] = []
    for name, room in zip(names, policies.quotas(sizes, rule.capacity), strict=True):
        # Of equal ranks, as of two updates of one class, the newer one stays.
        order = sorted(members[name], key=lambda i: (store.ranks[i], -store.kept[i], ids[i]))
        rows += order[:room]
    return store.take(sorted(rows))


def embedded(records: Records, model: Any) -> Vector:
    """Embeddings of the frozen base of L2 norm 1, float32 [n, d]."""
    if not len(records):
        return np.zeros((0, 0), np.float32)
    vectors = np.asarray(model.features(records, 1), np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vector = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def _seeded(store: Store) -> bytes:
    return store.seed.to_bytes(16, "big")
