"""Replay: each client keeps a few records of every domain on its own disk and trains on them again.

Exemplars by herding: Rebuffi et al. 2017 (arXiv:1611.07725); the balanced fine-tune of the head
at the end of a domain: Castro et al. 2018 (arXiv:1807.09536), here of the head alone. No record
leaves the client, and nothing is summed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..core.errors import PrivacyError, RunError
from ..core.parts import Continual, Phase, Tensors
from ..core.values import Records, Vector
from . import exemplars, policies
from . import memory as disk
from .memory import Store

_DAY_S = 86400.0
_PER_CLASS = 20


def build(
    *,
    policy: Literal[
        "auto", "reservoir", "class_balanced", "herding", "k_center", "highest_loss", "nearest"
    ] = "auto",
    per_class: Annotated[int | None, Field(ge=1)] = None,
    capacity: Annotated[int, Field(ge=0)] = 0,
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0,
    keep_days: Annotated[float, Field(ge=0.0)] = 0.0,
    uncertain_below: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
    retrieve: Annotated[int, Field(ge=1)] = 200,
    loss_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5,
    tune_rounds: Annotated[int, Field(ge=0, le=1000)] = 1,
) -> Continual:
    """Replay from a memory on the client's disk.

    In a private run whether a record stays may depend on that record alone: each is kept with
    the chance `share`, drawn by a key that only its client knows; other limits than that are
    refused. Only `auto` and `reservoir` can do so.

    What a domain adds to the memory is chosen at its end: a client that is away then keeps nothing
    of it.

    Args:
        policy: which records are worth keeping. `auto`: `herding`, in a private run `reservoir`;
            `reservoir`: uniform over all records so far; `class_balanced`: uniform within a class;
            `herding`: those whose mean is nearest to the class's; `k_center`: those that cover the
            class; `highest_loss`: hard ones mixed with random ones (alone they are outliers, and
            worse than random); `nearest`: keeps as `class_balanced` and replays, in each round,
            what is nearest to the new records.
        per_class: most records of a class that a client keeps; for `reservoir`, on average; 20
            where it is not given.
        capacity: most records that a client keeps, in equal parts of all classes; 0 for no limit.
        share: most of its own records of a class that a client keeps, 0..1, rounded up: with many
            clients, the part of `per_class` that each one should hold.
        keep_days: how long a record is kept; 0 for ever.
        uncertain_below: a record of the new domain waits a round while the model gives its right
            answer a probability above this, 0..1; 0 trains on all.
        retrieve: for `nearest`: most records that a round replays.
        loss_share: for `highest_loss`: how many are kept for their loss, 0..1; 1 is loss alone.
        tune_rounds: rounds at the end of a domain in which the head alone is trained on as many
            records of each class as the memory keeps; all that trains, where there is no head.
    """
    chosen = "herding" if policy == "auto" else policy
    counting = {"per_class": per_class is not None, "capacity": capacity > 0}
    rule = exemplars.Rule(chosen, per_class or _PER_CLASS, capacity, share, loss_share)

    def start(phase: Phase) -> Remembered:
        if phase.private and policy not in ("auto", "reservoir"):
            raise PrivacyError(
                "in a private run a record may stay in memory for what it is itself, never for how "
                f"it compares with others; {policy!r} compares. Use [continual] policy = 'auto'."
            )
        with disk.alone_in(phase.folder):
            found = disk.read(phase.folder, phase.base)
            before = disk.fresh(phase.base, phase.seed) if found is None else found
            left = before.where(lambda i: not phase.withdrew(before.records.ids[i]))
            store = _unexpired(left, keep_days)
            # From here on the list of the withdrawn itself, which `gone` is of, keeps them out.
            store = replace(store, forgotten=store.forgotten - phase.gone)
            if phase.private and len(store) and not store.alone:
                raise PrivacyError(
                    f"{phase.folder / disk.STORE} must hold only records that are kept for what "
                    "they are themselves; they were chosen in a run without privacy, by comparing "
                    "them. Delete it, or give this client a folder of its own for private runs."
                )
            if found is None or len(store) < len(before) or store.forgotten != before.forgotten:
                disk.write(phase.folder, store)
            return Remembered(phase, store, disk.open_index(phase.folder, store))

    def dataset(memory: Remembered, shard: Records, model: Any) -> Records:
        if memory.phase.tuning:
            new = exemplars.picked(rule, memory.phase, memory.store, shard, model)
            return exemplars.merged(rule, memory.phase, memory.store, new, shard).records
        earlier = memory.store.without(frozenset(shard.ids))
        if policy == "nearest":
            earlier = _nearest(memory, shard, model, retrieve)
        if uncertain_below:
            shard = _uncertain(shard, model, uncertain_below, memory.phase.private)
        return shard + earlier.records

    def mask(memory: Remembered, parameters: Tensors) -> Tensors:
        names = (*memory.phase.manifest.names, *parameters)
        if not memory.phase.tuning or not any(name.startswith(_HEAD) for name in names):
            return {}
        still = {n: p for n, p in parameters.items() if not n.startswith(_HEAD)}
        return {name: parameter.new_zeros(()) for name, parameter in still.items()}

    def finish(memory: Remembered, shard: Records, model: Any, phase: Phase) -> Vector:
        new = exemplars.picked(rule, phase, memory.store, shard, model)
        with disk.alone_in(phase.folder):
            before = disk.read(phase.folder, phase.base)
            if before is None:
                raise RunError(
                    f"{phase.folder / disk.STORE} must be there until its domain has ended; it was "
                    "deleted meanwhile, such as by a withdrawal. Go on, and it begins empty."
                )
            after = _unexpired(exemplars.merged(rule, phase, before, new, shard), keep_days)
            if disk.packed(after) != disk.packed(before):
                disk.write(phase.folder, after)
        return np.zeros(0, np.float32)

    return Continual(
        start=start,
        dataset=dataset,
        mask=mask,
        finish=finish,
        rounds=tune_rounds,
        replays=True,
        private=policy in ("auto", "reservoir"),
        remedy="write policy = 'auto'",
        unheeded=tuple(name for name, given in counting.items() if given),
    )


_HEAD = "head."


@dataclass(frozen=True, slots=True)
class Remembered:
    """A client's memory in one round.

    Attributes:
        phase: of the round.
        store: as it was on disk, without what is gone.
        index: of the store's embeddings; None without a record.
    """

    phase: Phase
    store: Store
    index: Any


def _nearest(memory: Remembered, shard: Records, model: Any, count: int) -> Store:
    """The `count` records in memory that are nearest to any record of the shard."""
    store, own = memory.store, frozenset(shard.ids)
    others = store.without(own)
    if len(others) <= count:
        return others
    if not len(shard):
        return others.take(sorted(np.argsort(others.ranks, kind="stable")[:count].tolist()))
    # Whatever is among the nearest to all is among as many nearest to one of them.
    wanted = count + len(store) - len(others)
    distances, found = memory.index.nearest(exemplars.embedded(shard, model), wanted)
    nearest = np.full(len(store), np.inf)
    np.minimum.at(nearest, found.ravel(), distances.ravel().astype(np.float64))
    order = [i for i in np.argsort(nearest, kind="stable") if store.records.ids[i] not in own]
    return store.take(sorted(int(i) for i in order[:count]))


def _uncertain(shard: Records, model: Any, below: float, private: bool) -> Records:
    """The records whose right answer the model does not give a probability above `below`."""
    if not len(shard):
        return shard
    sure = np.exp(-policies.losses(model, shard))
    left = shard.where(lambda i: bool(sure[i] <= below))
    # In a private run none of them may stay because the others went.
    return left if len(left) or private else shard.take([int(np.argmin(sure))])


def _unexpired(store: Store, days: float) -> Store:
    oldest = time.time() - days * _DAY_S
    return store.where(lambda i: bool(store.kept[i] >= oldest)) if days else store
