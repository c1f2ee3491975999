"""Texts to labels by an exported model: onnxruntime and tokenizers, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..core.errors import DataError
from ..core.values import Vector
from .artefact import LABELS, TOKENIZER, Artefact
from .session import open_session, scores


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model answers to one text.

    Attributes:
        labels: the likeliest first.
        scores: the probability of each of `labels`, 0..1.
        out_of_scope: 1 - the largest probability, 0..1: how little the text looks like any label.
        outside: whether that is more than 95 % of the held-out texts had.
        cut: whether the text was longer than the model reads.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    out_of_scope: float
    outside: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Predictor:
    """An artefact, ready to answer.

    Attributes:
        session: of the runtime.
        tokenizer: of the base, which cuts at the model's length.
        labels: in the order of the scores.
        threshold: largest out-of-scope score within scope.
    """

    session: Any
    tokenizer: Any
    labels: tuple[str, ...]
    threshold: float

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, cut at the model's length."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def logits(self, texts: Sequence[str], size: int = 32) -> Vector:
        """Scores float32 [n, labels], in batches of `size`."""
        return scores(self.session, self.tokens(texts), size)

    def answer(self, texts: Sequence[str], top: int = 1) -> list[Prediction]:
        """The answers to one or more texts, which are asked together.

        Args:
            texts: none of them empty.
            top: how many labels of each.
        """
        encoded = self.tokenizer.encode_batch(list(texts))
        rows = scores(self.session, [e.ids for e in encoded], len(encoded))
        found = []
        for row, encoding in zip(chances(rows), encoded, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            outside = float(1.0 - row[best[0]])
            found.append(
                Prediction(
                    tuple(self.labels[i] for i in best),
                    tuple(float(row[i]) for i in best),
                    outside,
                    outside > self.threshold,
                    bool(encoding.overflowing),
                )
            )
        return found


def open_artefact(artefact: Artefact, threads: int = 1) -> Predictor:
    """The model of `artefact`, ready to answer.

    Args:
        artefact: whose files were checked.
        threads: that one call may take.

    Raises:
        DataError: the tokenizer or the labels cannot be read.
        ModelError: the runtime cannot open the model.
    """
    tokenizer = open_tokenizer(artefact.folder / TOKENIZER)
    session = open_session(artefact.model, threads)
    labels = _labels(artefact.folder / LABELS, session.get_outputs()[0].shape[-1])
    return Predictor(session, tokenizer, tuple(labels), float(artefact.card["threshold"]))


def open_tokenizer(path: Path) -> Any:
    """The tokenizer in `path`.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise DataError(f"{path} must be a tokenizer: {error}; export the release again") from error


def _labels(path: Path, count: Any) -> list[str]:
    try:
        found: list[str] = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; export the release again") from error
    sound = isinstance(found, list) and all(isinstance(label, str) for label in found)
    if not sound or (isinstance(count, int) and len(found) != count):
        raise DataError(
            f"{path} must be a list of the {count} labels that the model scores; it is not. Export "
            "the release again."
        )
    return found


def chances(logits: Vector) -> Vector:
    """Probabilities [n, labels] of logits [n, labels]."""
    rows = logits.astype(np.float64)
    rows = np.exp(rows - rows.max(1, keepdims=True))
    found: Vector = (rows / rows.sum(1, keepdims=True)).astype(np.float32)
    return found
