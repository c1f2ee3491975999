"""The values that pass between the rooms of the house: vectors, updates, states, records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""A flat float32 vector [n]."""

Arrays: TypeAlias = Mapping[str, npt.NDArray[np.float32]]
"""Tensor name -> float32 array."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names and shapes of the tensors inside one flat vector, in order.

    Law: `unpack(pack(arrays))` equals `arrays`, and `pack(unpack(vector))` equals `vector`.

    Attributes:
        names: tensor names, each once.
        shapes: one shape per name.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes) or len(set(self.names)) != len(self.names):
            raise ValueError("a manifest needs one shape per name and no name twice")
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes)])
        object.__setattr__(self, "offsets", tuple(int(end) for end in ends))

    @property
    def size(self) -> int:
        """Number of float32 values in the vector."""
        return self.offsets[-1]

    @property
    def hash(self) -> str:
        """16 hex digits over names and shapes: equal at both ends of the wire, or refused."""
        text = json.dumps([self.names, self.shapes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def pack(self, arrays: Arrays) -> Vector:
        """A flat float32 vector [size] holding `arrays` in the order of `names`.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        vector = np.empty(self.size, np.float32)
        for name, shape, (start, end) in self._places():
            if name not in arrays or tuple(arrays[name].shape) != shape:
                got = tuple(arrays[name].shape) if name in arrays else "nothing"
                raise ValueError(f"tensor {name!r} must have shape {shape}; got {got}")
            vector[start:end] = np.asarray(arrays[name], np.float32).reshape(-1)
        return vector

    def unpack(self, vector: Vector) -> dict[str, Vector]:
        """Views into `vector` [size] by tensor name.

        Raises:
            ValueError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the vector must have length {self.size}; got {vector.shape}")
        return {name: vector[a:b].reshape(shape) for name, shape, (a, b) in self._places()}

    def only(self, names: Collection[str]) -> Manifest:
        """The manifest of a subset of tensors, in this manifest's order."""
        kept = [(n, s) for n, s in zip(self.names, self.shapes, strict=True) if n in names]
        return Manifest(tuple(n for n, _ in kept), tuple(s for _, s in kept))

    def slices(self, names: Collection[str]) -> list[slice]:
        """Where the tensors of `names` lie in this vector, neighbours joined."""
        found: list[slice] = []
        for name, _, (start, end) in self._places():
            if name not in names:
                continue
            if found and found[-1].stop == start:
                found[-1] = slice(found[-1].start, end)
            else:
                found.append(slice(start, end))
        return found

    def _places(self) -> list[tuple[str, tuple[int, ...], tuple[int, int]]]:
        return list(zip(self.names, self.shapes, pairwise(self.offsets), strict=True))


def gather(vector: Vector, slices: Sequence[slice]) -> Vector:
    """The parts of `vector` at `slices`, one after another (a copy)."""
    return np.concatenate([vector[s] for s in slices]) if slices else vector[:0].copy()


def scatter(vector: Vector, slices: Sequence[slice], values: Vector) -> Vector:
    """A copy of `vector` with `values` written at `slices`; the inverse of `gather`."""
    result = vector.copy()
    start = 0
    for part in slices:
        end = start + part.stop - part.start
        result[part] = values[start:end]
        start = end
    return result


@dataclass(frozen=True, slots=True)
class Spend:
    """One use of one cohort's records.

    Attributes:
        sample_rate: Poisson inclusion probability of a record per step, 0..1.
        noise_multiplier: noise standard deviation over the L2 sensitivity.
        steps: number of noisy steps.
        cohort: name of the set of records that pays.
        mechanism: `gaussian`; or `skellam`, whose Renyi divergences are below those of a gaussian
            of this multiplier, and nothing more is known.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    cohort: str
    mechanism: str = "gaussian"


@dataclass(frozen=True, slots=True)
class Update:
    """What one client's training gave: local minus global.

    Attributes:
        delta: flat change of the tensors that travel, float32 [n]; private to the client
            unless the sum is `plain`.
        weight: weight in the mean, >= 0 (the number of records, or 1).
        metrics: plain numbers for the server; in private runs only what the ledger covers.
    """

    delta: Vector
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names one round of one run: what an update answers to.

    Attributes:
        run: name of the run.
        domain: index of the domain, from 0.
        round: index of the round within the domain, from 0.
        attempt: 0, then one more each time the round is tried again.
        manifest: hash of the manifest of the tensors that travel.
    """

    run: str
    domain: int
    round: int
    attempt: int
    manifest: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """All that passes from one round to the next; saved whole.

    Attributes:
        round: rounds done in this domain.
        domain: index of the domain.
        params: flat vector of all trainable tensors, float32 [n].
        slots: what the strategy remembers within a domain (momentum, say), each a flat vector.
        summary: what the continual method tells all clients in this domain, float32 [m].
        head: what answers in the place of the model's own head, float32 [k]; empty where nothing
            does.
        peaks: largest |weight * value| of a client in the first round of a domain and in the
            last round so far, float32 [2], as encrypted sums told; zeros before.
    """

    round: int
    domain: int
    params: Vector
    slots: Mapping[str, Vector] = field(default_factory=dict)
    summary: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    head: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    peaks: Vector = field(default_factory=lambda: np.zeros(2, np.float32))


@dataclass(frozen=True, slots=True)
class Records:
    """Columns of equal length: the examples of a shard, a domain or a file.

    Attributes:
        ids: a stable id per record.
        texts: the text, or the prompt for a causal model.
        targets: the label, or the completion for a causal model.
        domains: the domain's name per record.
        groups: the value of the sharding column per record; empty strings without one.
    """

    ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({len(column) for column in self.columns}) != 1:
            raise ValueError("the columns of Records must have equal length")

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """The five columns in the order of the fields."""
        return (self.ids, self.texts, self.targets, self.domains, self.groups)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | npt.NDArray[np.intp]) -> Records:
        """The records at `indices`, in that order."""
        return Records(*(tuple(column[int(i)] for i in indices) for column in self.columns))

    def where(self, keep: Callable[[int], bool]) -> Records:
        """The records whose position passes `keep`, in order."""
        return self.take([i for i in range(len(self)) if keep(i)])

    def __add__(self, other: Records) -> Records:
        pairs = zip(self.columns, other.columns, strict=True)
        return Records(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts of a data set; validation may be empty."""

    train: Records
    validation: Records
    test: Records


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain update: its name and the labels it brings, in a fixed order.

    Attributes:
        name: as in the data, or `all` when the domains are joined.
        labels: labels of this domain; empty for a causal model.
    """

    name: str
    labels: tuple[str, ...] = ()
