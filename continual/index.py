"""Exact nearest neighbours of embeddings, by FAISS, in memory and as bytes for a file.

Johnson, Douze and Jegou 2017 (arXiv:1702.08734). Flat indices only: a client's memory is small
enough that nothing approximate is worth its error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..core.parts import Indices
from ..core.values import Vector

_MAGIC = b"perennial index 1\n"
_DIGEST = hashlib.sha256().digest_size


def nearest(reference: Vector, queries: Vector, k: int = 1) -> tuple[Vector, Indices]:
    """The `k` rows of `reference` nearest to each query, the nearest first.

    Args:
        reference: float32 [n, d].
        queries: float32 [m, d].
        k: how many; at most n are given.

    Returns:
        Euclidean distances float32 [m, min(k, n)] and positions in `reference`, of that shape.

    Raises:
        ValueError: the widths differ, a value is not finite, or `k` is below 1.
    """
    reference, queries = _rows(reference), _rows(queries)
    index = faiss.IndexFlatL2(reference.shape[1])
    index.add(reference)
    return _search(index, queries, k)


def class_means(vectors: Vector, classes: Indices, count: int) -> Vector:
    """Mean vector of each class, float32 [count, d]; zeros where a class has none.

    Args:
        vectors: float32 [n, d].
        classes: class of each vector, 0..count - 1, [n].
        count: number of classes.
    """
    vectors = _rows(vectors)
    sums = np.zeros((count, vectors.shape[1]), np.float64)
    np.add.at(sums, classes, vectors)
    sizes = np.bincount(classes, minlength=count)
    return (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Index:
    """Vectors that were indexed, by their positions; each value is rounded to float16.

    Attributes:
        searcher: the FAISS index.
    """

    searcher: Any

    def __len__(self) -> int:
        return int(self.searcher.ntotal)

    def nearest(self, queries: Vector, k: int = 1) -> tuple[Vector, Indices]:
        """As the function `nearest`, with what was indexed as reference."""
        return _search(self.searcher, _rows(queries), k)


def indexed(vectors: Vector) -> Index:
    """An index of `vectors` [n, d], for float16 on disk.

    Raises:
        ValueError: a value is not finite.
    """
    vectors = _rows(vectors)
    kind = faiss.ScalarQuantizer.QT_fp16
    searcher = faiss.IndexScalarQuantizer(vectors.shape[1], kind, faiss.METRIC_L2)
    searcher.add(vectors)
    return Index(searcher)


def packed(index: Index, of: bytes) -> bytes:
    """`index` as bytes with a checksum.

    Args:
        index: to pack.
        of: SHA-256 digest of what it indexes, 32 bytes.
    """
    content = of + bytes(faiss.serialize_index(index.searcher))
    return _MAGIC + hashlib.sha256(content).digest() + content


def unpacked(data: bytes, of: bytes) -> Index:
    """The index in `data`.

    Args:
        data: of `packed`.
        of: SHA-256 digest of what it must index.

    Raises:
        ValueError: `data` is damaged, or indexes something else; the message says which.
    """
    start = len(_MAGIC)
    content = data[start + _DIGEST :]
    # FAISS trusts what it reads: damaged bytes must not reach it.
    if data[:start] != _MAGIC or data[start : start + _DIGEST] != hashlib.sha256(content).digest():
        raise ValueError("its checksum is wrong")
    if content[:_DIGEST] != of:
        raise ValueError("it indexes other records")
    return Index(faiss.deserialize_index(np.frombuffer(content[_DIGEST:], np.uint8)))


def _rows(vectors: npt.NDArray[Any]) -> Vector:
    rows = np.ascontiguousarray(vectors, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"embeddings must be finite rows [n, d]; got shape {rows.shape}")
    return rows


def _search(searcher: Any, queries: Vector, k: int) -> tuple[Vector, Indices]:
    if queries.shape[1] != searcher.d:
        raise ValueError(f"queries must be {searcher.d} wide; got {queries.shape[1]}")
    if k < 1:
        raise ValueError(f"k must be 1 or more; got {k}")
    k = min(k, int(searcher.ntotal))
    if not k or not len(queries):
        empty = np.zeros((len(queries), k), np.float32)
        return empty, empty.astype(np.intp)
    squares, found = searcher.search(queries, k)
    # Rounding may leave a square of a distance of 0 a little below it.
    return np.sqrt(np.maximum(squares, 0.0)), found.astype(np.intp)
