"""A graph in ONNX Runtime on the CPU: opened, and asked for scores. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ..core.errors import ModelError
from ..core.values import Vector

Ids = npt.NDArray[np.int64]


def open_session(path: Path, threads: int = 1) -> Any:
    """The graph in `path`, ready to run.

    Args:
        path: of an `.onnx` file.
        threads: that one call may take.

    Raises:
        ModelError: the file is damaged, or holds what this runtime does not know.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own errors have no common class but this
        raise ModelError(
            f"{path} cannot be opened by onnxruntime {onnxruntime.__version__}: {error}. Export "
            "the release again, or use the version that the artefact's card names."
        ) from error


def padded(rows: Sequence[Sequence[int]]) -> Mapping[str, Ids]:
    """The inputs of a batch: ids and mask, int64 [b, t], padded with 0 to the longest row."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def by_length(tokens: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Positions of `tokens` in batches of at most `size`, texts of like length together."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def scores(
    session: Any,
    tokens: Sequence[Sequence[int]],
    size: int,
    batches: Iterable[Sequence[int]] | None = None,
    options: Any = None,
) -> Vector:
    """Logits float32 [n, labels] in the order of `tokens`.

    Args:
        session: of `open_session`.
        tokens: ids of each text, one or more.
        size: of a batch.
        batches: positions of the texts that are asked together; by length without.
        options: of the runtime, such as an active adapter.
    """
    found: Vector | None = None
    for batch in by_length(tokens, size) if batches is None else batches:
        (logits,) = session.run(["logits"], padded([tokens[i] for i in batch]), options)
        if found is None:
            found = np.empty((len(tokens), logits.shape[1]), np.float32)
        found[list(batch)] = logits
    return np.zeros((0, 0), np.float32) if found is None else found
