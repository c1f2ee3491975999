"""The shapes of the plug-ins: records of functions that close over their options.

A plug-in file has one `build(*, ...)`; what it returns is one of these. `Tensors` are torch
tensors, but nothing here imports torch: strategies use plain arithmetic on them, so that the
same line runs on numpy arrays in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .continual import Answer as Answer
from .continual import Continual as Continual
from .continual import Kept as Kept
from .continual import Lesson as Lesson
from .continual import Phase as Phase
from .continual import Tensors as Tensors
from .continual import added as added
from .continual import no_tensors as no_tensors
from .private import Ledger as Ledger
from .private import Privatizer as Privatizer
from .private import Session as Session
from .private import Strata as Strata
from .private import UserPrivatizer as UserPrivatizer
from .secure_sum import KeyHolder as KeyHolder
from .secure_sum import SecureSum as SecureSum
from .values import Manifest, Records, ServerState, Splits, Update, Vector

Indices: TypeAlias = npt.NDArray[np.intp]
"""Positions of records, one dimension."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """Server arithmetic of one aggregation rule, and the client's half of it.

    Attributes:
        init: parameters [n] -> the strategy's slots at the start of a run.
        apply: (state, mean delta over all tensors [n]) -> the next state; round and domain
            are the caller's to count.
        trainable: (manifest, round) -> names of the tensors that train and travel in this round.
        combine: (updates) -> mean delta; `None` for the weighted mean, which is all that
            an encrypted sum allows.
        pull: (parameters, the round's global parameters) -> gradient per tensor, added on the
            client after clipping and noise.
    """

    init: Callable[[Vector], Mapping[str, Vector]]
    apply: Callable[[ServerState, Vector], ServerState]
    trainable: Callable[[Manifest, int], frozenset[str]]
    combine: Callable[[Sequence[Update]], Vector] | None = None
    pull: Callable[[Tensors, Tensors], Tensors] = no_tensors


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over evaluated records, so that scores of parts add up.

    Attributes:
        loss: sum of the losses.
        correct: number of right answers (right tokens for a causal model).
        total: number of answers.
    """

    loss: float = 0.0
    correct: int = 0
    total: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.loss + other.loss, self.correct + other.correct, self.total + other.total)

    @staticmethod
    def of(logits: Vector, targets: Sequence[int]) -> Score:
        """Cross entropy and right answers of `logits` [n, labels] for `targets` [n]."""
        if not len(targets):
            return Score()
        rows, right = np.asarray(logits, np.float64), np.asarray(targets, np.intp)
        shifted = rows - rows.max(1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(rows)), right]
        correct = int((rows.argmax(1) == right).sum())
        return Score(float(loss.sum()), correct, len(right))

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1; 0 when there was nothing to answer."""
        return self.correct / self.total if self.total else 0.0

    @property
    def mean_loss(self) -> float:
        """Mean loss; 0 when there was nothing to answer."""
        return self.loss / self.total if self.total else 0.0


class Encoded(Protocol):
    """Records made ready for a model, kept between epochs and rounds."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def batch(self, indices: Indices) -> Any:
        """The model's own batch of the records at `indices`, on the model's device."""
        ...


class EncodedRecords(Encoded, Protocol):
    """Whole records of a client or a test set."""

    def joined(self, other: Any) -> Any:
        """Its records, then those of `other`, which the same model encoded."""
        ...


class Model(Protocol):
    """A frozen base with a trainable adapter, seen as one flat vector.

    Attributes:
        module: the torch module that trains; only its adapter (and head) require gradients.
        labels: the labels it answers with, in the order of its outputs.
        labels_needed: whether it classifies; a causal model completes text and has no labels.
    """

    module: Any
    labels: tuple[str, ...]
    labels_needed: bool

    @property
    def manifest(self) -> Manifest:
        """Today's manifest; it changes with the labels."""
        ...

    def fit_labels(self, labels: Sequence[str]) -> None:
        """Give the head one row per label; rows of known labels are kept, new ones are zero."""
        ...

    def vector(self) -> Vector:
        """A copy of the trainable tensors, float32 [manifest.size], on the CPU."""
        ...

    def load(self, vector: Vector) -> None:
        """Write `vector` [manifest.size] into the trainable tensors in place."""
        ...

    def parameters(self) -> Mapping[str, Any]:
        """The trainable tensors by the manifest's names."""
        ...

    def encode(self, records: Records) -> EncodedRecords:
        """Tokens (and cached activations) of `records`, whose labels the model must know."""
        ...

    def losses(
        self, batch: Any, answers: Sequence[int], free: Any = None, prior: Any = None
    ) -> Any:
        """Loss per example [b] over the outputs in `answers` (all of them when empty).

        Args:
            batch: of `encode(...).batch`.
            answers: indices of labels.
            free: bool [b], the examples whose loss looks at all outputs all the same.
            prior: [labels], added to a classifier's logits first; None for nothing.
        """
        ...

    def resampled(self, batch: Any, rng: np.random.Generator) -> Any:
        """`batch` with answers drawn from the model's own predictions, without gradients."""
        ...

    def logits(self, encoded: Encoded, batch_size: int) -> Vector:
        """Scores of the labels, float32 [n, labels], in the order of `encoded`.

        Raises:
            RunError: the model has no labels.
        """
        ...

    def features(self, records: Records, layers: int = 1, *, adapted: bool = False) -> Vector:
        """Mean over a text's tokens of the last hidden states, float32 [n, layers * width].

        Args:
            records: their texts are read, and nothing else.
            layers: how many of the top layers, side by side, the last one first.
            adapted: through the adapter as it is now; else of the frozen base.
        """
        ...

    def score(self, encoded: Encoded, batch_size: int) -> Score:
        """Loss and right answers over `encoded`, without gradients."""
        ...

    def place(self, device: str, precision: str) -> None:
        """Move to `cpu` or `cuda`; compute in `fp32`, or in `bf16` by autocast."""
        ...

    def save(self, folder: Path) -> None:
        """The adapter in PEFT's own format, with head and labels beside it."""
        ...

    def identity(self) -> str:
        """Hash of the frozen base: adapters of another base are refused."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A reader with its options closed over.

    Attributes:
        read: () -> the three splits; each time the same, in the same order.
    """

    read: Callable[[], Splits]


@dataclass(frozen=True, slots=True)
class Bars:
    """What an exported graph must keep, held against the float32 graph that it was made of.

    Attributes:
        size: largest share of its bytes, 0..1.
        loss: most points of accuracy that may be lost.
        domain_loss: the same for the domain that loses most.
        agreement: least share of equal answers, 0..1.
        changed: largest share of answers that depend on who else is in the batch, 0..1.
        cpu_1: largest share of its CPU time, one text at a time.
        cpu_32: the same in batches of 32.
    """

    size: float
    loss: float
    domain_loss: float
    agreement: float
    changed: float
    cpu_1: float
    cpu_32: float


Batches: TypeAlias = Callable[[], Iterable[Mapping[str, npt.NDArray[np.int64]]]]
"""() -> inputs of a graph, batch by batch: held-out texts that ranges may be looked up on."""


@dataclass(frozen=True, slots=True)
class Export:
    """How a graph in float32 becomes what a user runs.

    Attributes:
        write: (graph file, batches, file to write) -> None; ModelError where the graph holds
            something that it cannot treat.
        bars: what comes out must keep, where the config says nothing else.
        batches: how many batches of 32 held-out texts it looks at; 0 where it looks at none.
        suffix: of the file that it writes.
    """

    write: Callable[[Path, Batches, Path], None]
    bars: Bars
    batches: int = 0
    suffix: str = ".onnx"


Replies: TypeAlias = Iterable["Reply"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one node, free of any transport's types.

    Attributes:
        node: the node's id.
        body: sealed update; empty when there is none.
        ticket: fields of the ticket the client answers to, as they came.
        metrics: plain numbers, as they came.
        error: why there is no update; empty when there is one.
    """

    node: int
    body: bytes = b""
    ticket: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    error: str = ""
