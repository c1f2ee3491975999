"""Text from a graph of `export.causal`: onnxruntime, numpy and the tokenizer, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError, ModelError

GRAPH, FACTS, WORDS = "model.onnx", "generate.json", "tokenizer.json"
INPUTS = ("input_ids", "attention_mask")

Ids = npt.NDArray[np.int64]
Cache = Mapping[str, npt.NDArray[np.float32]]


def names(layers: int) -> list[str]:
    """What key and value of each layer are called, after `past.` or `present.`."""
    return [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


class Generator:
    """A graph with a cache and its tokenizer, loaded.

    Args:
        folder: of `export.causal.write`.
        threads: of onnxruntime within one step; 0 for as many as it likes.

    Raises:
        ModelError: a file is missing or damaged, or a package is not installed.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._session = _session(folder / GRAPH, threads)
        self._words = _words(folder / WORDS)
        facts = _facts(folder / FACTS)
        self._ends, self._context = frozenset(facts["ends"]), int(facts["context"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._past = [i for i in self._session.get_inputs() if i.name not in INPUTS]

    def empty(self, texts: int = 1) -> dict[str, npt.NDArray[np.float32]]:
        """The cache of `texts` texts before their first token: no place in each layer."""
        return {
            part.name: np.zeros((texts, part.shape[1], 0, part.shape[3]), np.float32)
            for part in self._past
        }

    def step(
        self, ids: Ids, mask: Ids, past: Cache
    ) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
        """Logits [b, t, vocabulary] of the tokens `ids` [b, t], and the cache with them in it.

        Args:
            ids: the tokens now.
            mask: 1 for a token, 0 for padding on the left, of all tokens so far, [b, p + t].
            past: of `empty`, or of the step before.
        """
        logits, *present = self._session.run(
            self._outputs, {INPUTS[0]: ids, INPUTS[1]: mask, **past}
        )
        named = zip(self._past, present, strict=True)
        return logits, {part.name: values for part, values in named}

    def greedy(self, ids: Sequence[int], count: int) -> Iterator[int]:
        """Up to `count` tokens after `ids`, each the likeliest, until an end token, left out.

        Raises:
            DataError: no tokens to begin with, an id that the model lacks, or no room for `count`.
        """
        if not ids:
            raise DataError("a prompt must have at least one token; this one has none")
        if self._context and len(ids) + count > self._context:
            raise DataError(
                f"prompt and answer together must be at most {self._context} tokens; got "
                f"{len(ids)} + {count}. Shorten the prompt, or ask for fewer."
            )
        return self._greedy(ids, count)

    def _greedy(self, ids: Sequence[int], count: int) -> Iterator[int]:
        now = np.array([list(ids)], np.int64)
        past = self.empty()
        for place in range(count):
            mask = np.ones((1, len(ids) + place), np.int64)
            logits, past = self.step(now, mask, past)
            token = int(logits[0, -1].argmax())
            if token in self._ends:
                return
            yield token
            now = np.array([[token]], np.int64)

    def answer(self, prompt: str, count: int = 128) -> str:
        """What the model says after `prompt`, in at most `count` tokens.

        Raises:
            DataError: the prompt is empty or too long.
        """
        ids = self._words.encode(prompt).ids
        text: str = self._words.decode(list(self.greedy(ids, count)))
        return text


def _session(path: Path, threads: int) -> Any:
    try:
        from .session import open_session
    except ImportError as error:
        raise ModelError(
            "running a graph needs the package onnxruntime, which is not installed; in the "
            "project's folder, run pip install '.[export]'"
        ) from error
    if not path.is_file():
        raise ModelError(f"{path.parent} must hold {path.name}; it is no folder of this export")
    return open_session(path, threads)


def _words(path: Path) -> Any:
    import tokenizers

    if not path.is_file():
        raise ModelError(f"{path.parent} must hold {path.name}; it is no folder of this export")
    try:
        words = tokenizers.Tokenizer.from_file(str(path))
    # The library raises plain exceptions.
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: {error}. Export the model again.") from error
    # What the tokenizer was last used for is saved with it.
    words.no_truncation()
    words.no_padding()
    return words


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {"ends": [int(i) for i in facts["ends"]], "context": int(facts["context"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error!r}. Export the model again.") from error
