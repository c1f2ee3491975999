"""The shapes of what keeps earlier domains alive: on each client, and on the server.

A method has two halves. The client's joins records, adds a gradient, scales the step and gives a
vector at the end of a domain. The server's keeps what the sums of those vectors say, tells the
clients of it, and may answer in the model's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import RunError
from .values import Domain, Manifest, Records, Vector

Tensors: TypeAlias = Mapping[str, Any]
"""Tensor name -> torch tensor on the client's device."""

Kept: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""What the server keeps of all domains so far: arrays by name; never changed in place."""

NO_TENSORS = Manifest((), ())
"""The manifest of an empty vector."""


def no_tensors(*_: Any) -> Tensors:
    """No tensor at all: adds no gradient, masks no step."""
    return {}


def nothing() -> Vector:
    """A vector of no values."""
    return np.zeros(0, np.float32)


def no_records() -> Records:
    """No record."""
    return Records()


def added(rows: Iterable[Vector], records: Records, clip: float) -> Vector:
    """The sum [m] of `rows`, blocks of [b, m], as they are; 0 values without rows."""
    total: npt.NDArray[np.float64] | None = None
    for block in rows:
        part = block.sum(0, dtype=np.float64)
        total = part if total is None else total + part
    return nothing() if total is None else total.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Phase:
    """Where in the life of a client a domain update stands.

    Attributes:
        domain: the domain being learnt.
        index: its index, from 0.
        folder: the client's own folder on its disk.
        seed: seed of the client in this domain.
        summary: what the server tells all clients in this domain, as `Continual.told` gave it.
        summed: (rows in blocks float32 [b, m], the records they are of, clip) -> their sum [m].
            In a private run each row's L2 norm is cut to the clip and the sum is noised, after it
            was charged: the only way in which statistics of raw records may steer training. One
            record may change one row, by no more than the clip.
        private: whether each record's privacy is promised.
        tuning: whether this round is one of the method's own at the end of the domain.
        manifest: of all trainable tensors in this domain.
        labels: all labels so far, in the order of the head.
        base: identity of the frozen base.
        held: () -> the client's own training records of all domains so far, those of this domain
            last, without the withdrawn ones.
        withdrawn: () -> those of its records whose people asked to be forgotten.
        gone: ids of all withdrawn records, whether the client still holds them or not.
        everything: whether the whole client withdrew: what it ever gave leaves, too, of records
            that are in none of its shards any more, so that `gone` cannot name them.
        counted: indices of the domains of this run whose end the server counted this client in.
        run: of which run, and those that went on from it, the indices are.
        stiffest: largest curvature of a pull that a step can follow: under plain SGD 1 / rate,
            beyond which it would leap over what pulls it; infinite where the optimizer adapts.
        answers: indices of the labels that the domain is learnt among, tuning rounds aside; empty
            for all, which it is where old records are replayed.
    """

    domain: Domain
    index: int
    folder: Path
    seed: int
    summary: Vector
    summed: Callable[[Iterable[Vector], Records, float], Vector] = added
    private: bool = False
    tuning: bool = False
    manifest: Manifest = NO_TENSORS
    labels: tuple[str, ...] = ()
    base: str = ""
    held: Callable[[], Records] = no_records
    withdrawn: Callable[[], Records] = no_records
    gone: frozenset[str] = frozenset()
    everything: bool = False
    counted: frozenset[int] = frozenset()
    run: str = ""
    stiffest: float = math.inf
    answers: tuple[int, ...] = ()

    def withdrew(self, name: str) -> bool:
        """Whether the record of the id `name` must be forgotten."""
        return self.everything or name in self.gone


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the end of a domain gave, on the server.

    Attributes:
        domain: the domain that ended.
        index: its index, from 0.
        labels: all labels so far, in the order of the head.
        total: sum of the clients' vectors, float64 [m].
        clients: sum of their weights: 1 for each client that held records (or for each one that
            answered, where a client's privacy is promised).
        params: the parameters at the end of the domain, float32 [n].
        manifest: of the parameters.
        model: holds `params`; give it back as it was.
        validation: the server's own records of the domains so far, for choices; may be empty.
    """

    domain: Domain
    index: int
    labels: tuple[str, ...]
    total: npt.NDArray[np.float64]
    clients: float
    params: Vector
    manifest: Manifest
    model: Any
    validation: Records


class Answer(Protocol):
    """How records are answered where a method does it in the place of the model's head."""

    def logits(self, records: Records) -> Vector:
        """Scores float32 [n, labels so far]: the largest is the answer, softmax its confidence.

        The model is left as it was.
        """
        ...


def _kept_mean(kept: Kept, lesson: Lesson) -> Kept:
    if not lesson.total.size:
        return kept
    return {**kept, "mean": (lesson.total / max(lesson.clients, 1.0)).astype(np.float32)}


def _told_mean(kept: Kept) -> Vector:
    return np.asarray(kept["mean"], np.float32) if "mean" in kept else nothing()


def _begun(kept: Kept, params: Vector, manifest: Manifest, index: int) -> tuple[Kept, Vector]:
    return kept, params


def _same_shard(memory: Any, shard: Records, model: Any) -> Records:
    return shard


def _finished(memory: Any, shard: Records, model: Any, phase: Phase) -> Vector:
    return nothing()


@dataclass(frozen=True, slots=True)
class Continual:
    """What keeps earlier domains alive. Only `start` must be given.

    Attributes:
        start: client, at each round and at the end: (phase) -> what the method remembers, read
            from the client's folder and the summary.
        dataset: client, in each round: (memory, shard, model) -> the records to train on, before
            sampling; the model holds the round's parameters.
        pull: client, in each step: (memory, parameters that train) -> gradient per tensor, added
            after clipping and noise.
        mask: client, in each step: (memory, parameters that train) -> multiplier of the step per
            tensor, each value in 0..1; a tensor that is left out is not masked, and one that is 0
            throughout when a round begins stands still in it.
        size: (manifest) -> m, how many values `finish` gives; may be 0.
        parts: (manifest) -> lengths of the parts of that vector, m in all, within which values are
            alike in size: where sums are rounded, each has its own scale. Empty for one part.
        finish: client: (memory, shard, model, phase) -> the vector [m] to add up over the
            clients; at the end of a domain. It may be called again for the same domain, after a
            crash or a failed attempt, and then gives the same and remembers the same.
        begin: server, at the start of a domain: (kept, parameters, manifest, index of the domain)
            -> what is kept and the parameters to start from; called again after a crash. RunError
            where the method has no room for another domain, with what to do.
        learn: server, at the end of a domain: (kept, lesson) -> what is kept from then on.
        told: server, after `begin`: (kept) -> the summary that all clients get in this domain.
        head: server, after `learn`: (kept) -> all that answering needs beside the parameters, as
            one vector for whoever answers; empty where the model's own head answers.
        answer: (head, model, labels) -> how records are answered by a head that is not empty.
        facts: server, after `learn`: (kept) -> plain values for the report, such as capacity left.
        rounds: how many rounds the method adds at the end of a domain, with `Phase.tuning` set.
        sums: how often a domain update uses `Phase.summed` on the same records.
        bits: fewest bits that its sums stand being rounded to; 0 for any.
        ranks: how many ranks of LoRA each domain takes for itself; 0 where none is used up.
        replays: whether `dataset` may give records of earlier domains.
        untrained: whether its head answers though no round was trained.
        users: whether it works where noise for whole users is in every sum: what is summed is not
            drowned by it, and what stands still is not moved by it.
        classifies: whether it needs a model with labels.
        private: whether all that it computes from raw records, and that steers training, comes
            from `Phase.summed` or, record by record, from one record and what was released; a
            private run refuses a method that is not.
        remedy: what to write where a private run refuses it; empty for nothing.
        unheeded: options that were given and that a private run does not heed.
    """

    start: Callable[[Phase], Any]
    dataset: Callable[[Any, Records, Any], Records] = _same_shard
    pull: Callable[[Any, Tensors], Tensors] = no_tensors
    mask: Callable[[Any, Tensors], Tensors] = no_tensors
    size: Callable[[Manifest], int] = lambda manifest: 0
    parts: Callable[[Manifest], tuple[int, ...]] = lambda manifest: ()
    finish: Callable[[Any, Records, Any, Phase], Vector] = _finished
    begin: Callable[[Kept, Vector, Manifest, int], tuple[Kept, Vector]] = _begun
    learn: Callable[[Kept, Lesson], Kept] = _kept_mean
    told: Callable[[Kept], Vector] = _told_mean
    head: Callable[[Kept], Vector] = lambda kept: nothing()
    answer: Callable[[Vector, Any, tuple[str, ...]], Answer] | None = None
    facts: Callable[[Kept], Mapping[str, float | int | str]] = lambda kept: {}
    rounds: int = 0
    sums: int = 0
    bits: int = 0
    ranks: int = 0
    replays: bool = False
    untrained: bool = False
    users: bool = True
    classifies: bool = False
    private: bool = False
    remedy: str = ""
    unheeded: tuple[str, ...] = ()

    def lengths(self, manifest: Manifest) -> tuple[int, ...]:
        """Lengths of the parts of what `finish` gives.

        Raises:
            RunError: they are not as long as the whole.
        """
        size = self.size(manifest)
        found = self.parts(manifest) or (size,)
        if sum(found) != size or min(found) < 0:
            raise RunError(f"the parts of a summary must be {size} values in all; got {found}")
        return found
