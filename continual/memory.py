"""A client's memory on its own disk: records that it replays, with their embeddings.

The store is one file, written whole and renamed; the index beside it is made from the store,
carries the store's digest, and is made again whenever it is not this store's. So a process may
die at any moment: the store is the old one or the new one, and the two never disagree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.files import claim, sync_folder, write_atomically
from ..core.values import Records

STORE, INDEX = "memory.bin", "memory.index"
"""File names in a client's folder."""

_MAGIC = b"perennial memory 1\n"
_DIGEST = hashlib.sha256().digest_size
_PRIVATE = 0o600
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """What a client remembers; never changed in place.

    Attributes:
        base: identity of the base that made the embeddings.
        seed: of all that is drawn and must be repeatable.
        secret: 32 random bytes that nobody but this client knows.
        records: each id once.
        classes: label of each record, or its domain where the model has no labels.
        ranks: place of each record within its class when it was kept, 0 the best, int64 [n].
        kept: when each was first kept, seconds since 1970, float64 [n].
        embeddings: of the frozen base, L2 norm 1, float16 [n, d].
        seen: all classes that ever had a record here.
        forgotten: ids that were forgotten and may not come back.
        alone: whether each record is here for what it is itself, whatever other records are.
    """

    base: str
    seed: int
    secret: bytes = field(repr=False)
    records: Records = Records()  # noqa: RUF009 - frozen
    classes: tuple[str, ...] = ()
    ranks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    kept: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    embeddings: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), "<f2"))
    seen: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    alone: bool = True

    def __len__(self) -> int:
        return len(self.records)

    def where(self, keep: Callable[[int], bool]) -> Store:
        """The store with the records whose position passes `keep`, in order."""
        rows = [i for i in range(len(self)) if keep(i)]
        return self if len(rows) == len(self) else self.take(rows)

    def take(self, rows: Collection[int]) -> Store:
        """The store with the records at `rows`, in that order."""
        at = np.fromiter(rows, np.intp, len(rows))
        return replace(
            self,
            records=self.records.take(at),
            classes=tuple(self.classes[i] for i in at),
            ranks=self.ranks[at],
            kept=self.kept[at],
            embeddings=self.embeddings[at],
        )

    def without(self, ids: Collection[str]) -> Store:
        """The store without the records of `ids`."""
        return self.where(lambda i: self.records.ids[i] not in ids)

    def __add__(self, other: Store) -> Store:
        if not len(other) or not len(self):
            rows = other if len(other) else self
            columns = {name: getattr(rows, name) for name in _COLUMNS}
        else:
            columns = {
                name: _joined(getattr(self, name), getattr(other, name)) for name in _COLUMNS
            }
        return replace(self, **columns)


_COLUMNS = ("records", "classes", "ranks", "kept", "embeddings")


def _joined(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, np.ndarray):
        return np.concatenate([mine, theirs])
    return mine + theirs


def fresh(base: str, seed: int) -> Store:
    """An empty memory with a secret of its own."""
    return Store(base, seed, secrets.token_bytes(32))


def packed(store: Store) -> bytes:
    """`store` as bytes with a checksum; the same for equal stores."""
    head = {
        "base": store.base,
        "seed": store.seed,
        "secret": store.secret.hex(),
        "columns": [list(column) for column in store.records.columns],
        "classes": list(store.classes),
        "ranks": store.ranks.tolist(),
        "kept": store.kept.tolist(),
        "width": store.embeddings.shape[1],
        "seen": sorted(store.seen),
        "forgotten": sorted(store.forgotten),
        "alone": store.alone,
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    rows = np.ascontiguousarray(store.embeddings, "<f2").tobytes()
    content = len(text).to_bytes(8, "big") + text + rows
    return _MAGIC + hashlib.sha256(content).digest() + content


def unpacked(data: bytes) -> Store:
    """The store in `data`.

    Raises:
        ValueError: `data` is damaged, or of another version.
    """
    start = len(_MAGIC)
    if data[:start] != _MAGIC:
        raise ValueError("it does not begin as one of this version does")
    content = data[start + _DIGEST :]
    if _digest(data) != hashlib.sha256(content).digest():
        raise ValueError("its checksum is wrong")
    end = 8 + int.from_bytes(content[:8], "big")
    head = json.loads(content[8:end])
    rows = np.frombuffer(content[end:], "<f2").reshape(len(head["classes"]), head["width"])
    return Store(
        base=head["base"],
        seed=head["seed"],
        secret=bytes.fromhex(head["secret"]),
        records=Records(*(tuple(column) for column in head["columns"])),
        classes=tuple(head["classes"]),
        ranks=np.array(head["ranks"], np.int64),
        kept=np.array(head["kept"], np.float64),
        embeddings=rows,
        seen=frozenset(head["seen"]),
        forgotten=frozenset(head["forgotten"]),
        alone=head["alone"],
    )


def read(folder: Path, base: str | None = None) -> Store | None:
    """The memory in a client's folder; None where there is none.

    Args:
        folder: the client's own.
        base: identity that its embeddings must be of; None for any.

    Raises:
        RunError: it is damaged, cannot be read, or is of another base.
    """
    path = folder / STORE
    try:
        store = unpacked(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} must be a client's memory; {error}. Put back a good copy of it, or delete it "
            "to begin with an empty memory: nothing of earlier domains is then replayed here."
        ) from error
    if base is not None and store.base != base:
        raise RunError(
            f"{path} must be of the base {base}, for its embeddings are; it is of {store.base}. "
            "Use the base it was made with, or delete it to begin with an empty memory."
        )
    return store


def write(folder: Path, store: Store) -> None:
    """Put `store` and its index on disk, readable by this user alone; held under `alone_in`.

    Raises:
        RunError: the disk is full or cannot be written; the old store is there, whole.
    """
    path, data = folder / STORE, packed(store)
    try:
        # First, or a crash would leave what is dropped now in an index that nobody reads.
        _drop_index(folder)
        write_atomically(path, data, _PRIVATE)
    except OSError as error:
        raise RunError(
            f"{path} must hold {len(data)} bytes; they could not be written: {error}. What was "
            "remembered before is there, whole. Make room on its disk, or the folder writable, "
            "and go on."
        ) from error
    _write_index(folder, store, _digest(data))


def open_index(folder: Path, store: Store) -> Any:
    """The index of `store`, an `index.Index`; made again, and on disk, where it is not its own.

    None where nothing is remembered.
    """
    from . import index

    if not len(store):
        return None
    path, digest = folder / INDEX, _digest(packed(store))
    try:
        return index.unpacked(path.read_bytes(), digest)
    except FileNotFoundError:
        problem = "there is none"
    except (OSError, ValueError) as error:
        problem = str(error)
    _log.warning("%s must index the memory beside it; %s. It is made again.", path, problem)
    return _write_index(folder, store, digest)


def _drop_index(folder: Path) -> None:
    """Take the index away; a folder in its place only where it is empty.

    Such a folder is what a container makes of a file to mount that was not there. None of ours
    lies in it, so nothing that is forgotten stays behind with it.
    """
    path = folder / INDEX
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError):  # what cannot be written in its place is said then
        path.rmdir()
        _log.warning("%s was an empty folder; it is taken away, for a file comes there.", path)


def _write_index(folder: Path, store: Store, digest: bytes) -> Any:
    from . import index

    if not len(store):
        return None
    found = index.indexed(store.embeddings.astype(np.float32))
    try:
        _drop_index(folder)
        write_atomically(folder / INDEX, index.packed(found, digest), _PRIVATE)
    except OSError as error:
        # The store is what counts, and it is there.
        _log.warning("%s could not be written: %s. It is made when needed.", folder / INDEX, error)
    return found


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process changes this memory while this is open; half-written files are removed.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        handle = os.open(folder / ".memory.lock", os.O_RDWR | os.O_CREAT, _PRIVATE)
    except OSError as error:
        raise RunError(f"{folder} must be a folder that can be written: {error}.") from error
    try:
        claim(handle, wait=True)
        for name in (STORE, INDEX):  # raw records that a process left when it was killed
            for left in folder.glob(f".{name}.*"):
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def forget(folder: Path, ids: Collection[str], *, everything: bool = False) -> frozenset[str]:
    """Take records out of a client's memory and index at once; the ids of those that were there.

    Ids that are not in it are noted all the same: an update that is just ending, and read what
    was withdrawn before, must not bring them back.

    Args:
        folder: the client's own.
        ids: of records.
        everything: the memory as a whole, damaged or not.

    Raises:
        RunError: the memory is damaged, or the disk cannot be written.
    """
    with alone_in(folder):
        if everything:
            return _delete(folder)
        store = read(folder)
        if store is None:
            return frozenset()
        left = replace(store.without(ids), forgotten=store.forgotten | frozenset(ids))
        if len(left) < len(store) or left.forgotten != store.forgotten:
            write(folder, left)
        return frozenset(store.records.ids).difference(left.records.ids)


def _delete(folder: Path) -> frozenset[str]:
    found = None
    with contextlib.suppress(RunError):  # damaged or not, it goes
        found = read(folder)
    try:
        _drop_index(folder)
        (folder / STORE).unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise RunError(f"{folder / STORE} must be deleted; it cannot be: {error}.") from error
    return frozenset(found.records.ids if found else ())


def describe(folder: Path) -> dict[str, Any]:
    """What a client's memory holds and takes, in plain values.

    Returns:
        `records`, `classes` and `bytes` (store and index on disk), `bytes_per_class` on average,
        and `per_class`: records by class.

    Raises:
        RunError: the memory is damaged.
    """
    store = read(folder)
    per_class = Counter(store.classes if store else ())
    paths = [folder / name for name in (STORE, INDEX)]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return {
        "records": sum(per_class.values()),
        "classes": len(per_class),
        "bytes": size,
        "bytes_per_class": size / max(len(per_class), 1),
        "per_class": dict(sorted(per_class.items())),
    }


def _digest(data: bytes) -> bytes:
    """The checksum that a packed store carries: its digest."""
    return data[len(_MAGIC) : len(_MAGIC) + _DIGEST]
