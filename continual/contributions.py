"""What a client added to sums that only grow, on its own disk, so that it can take it back.

For each record that was added: its id, its label, at which domain's end, and its pooled features
on the grid, which say exactly what was added. A record that is withdrawn stays here, as numbers
without its text, until the server has counted the sum it is taken away in; then it goes in
the next round that the client takes part in.

Which ends were counted is the server's to say, so an end that was tried twice, or whose answer
was lost, adds nothing twice.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.files import DAMAGED, write_atomically
from .random_features import Grid

FILE = "analytic.npz"
"""File name in a client's folder."""

NEVER = -1
"""Instead of the index of a domain: not taken back."""

_SCHEMA = 2
_UNCHECKED = 1
"""Schema of files without a checksum, which are read all the same."""

_MARK = b"\nsha256:"
_TAIL = len(_MARK) + hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Contributions:
    """Records whose statistics were given to the server, one column each.

    Attributes:
        source: what the features depend on: the base and how they were taken.
        ends: indices of the domains at whose end this client gave a sum.
        ids: of the records.
        labels: of the records.
        added: index of the domain at whose end each was added.
        removed: index of the domain at whose end each was taken away, or `NEVER`.
        grid: their pooled features [n, m].
    """

    source: str
    ends: frozenset[int]
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    added: npt.NDArray[np.int32]
    removed: npt.NDArray[np.int32]
    grid: Grid

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, chosen: npt.NDArray[np.intp]) -> Contributions:
        """Those at the positions `chosen`, in that order."""
        return Contributions(
            self.source,
            self.ends,
            tuple(self.ids[i] for i in chosen),
            tuple(self.labels[i] for i in chosen),
            self.added[chosen],
            self.removed[chosen],
            self.grid[chosen],
        )


def none(source: str, width: int) -> Contributions:
    """Nothing was added yet.

    Args:
        source: what the features depend on.
        width: number of pooled features.
    """
    empty = np.zeros(0, np.int32)
    return Contributions(source, frozenset(), (), (), empty, empty, np.zeros((0, width), np.int8))


def joined(
    before: Contributions, ids: tuple[str, ...], labels: tuple[str, ...], grid: Grid, end: int
) -> Contributions:
    """`before` and new records, added at the end of the domain of index `end`."""
    count = len(ids)
    return Contributions(
        before.source,
        before.ends,
        before.ids + ids,
        before.labels + labels,
        np.concatenate([before.added, np.full(count, end, np.int32)]),
        np.concatenate([before.removed, np.full(count, NEVER, np.int32)]),
        np.concatenate([before.grid, grid]),
    )


def counted(folder: Path, source: str, width: int, ends: Collection[int]) -> Contributions:
    """What stands in the server's sums: added in a counted sum, and taken away in none.

    Args:
        folder: the client's.
        source: what features depend on now.
        width: number of pooled features.
        ends: indices of the domains whose end the server counted this client in.

    Raises:
        RunError: the file is missing, damaged, of another base or older than what was counted.
    """
    if not ends:  # another run's, or sums that never arrived: nothing of it stands
        return none(source, width)
    path = folder / FILE
    found = _read(path)
    if found.source != source:
        raise RunError(
            f"{path} must hold features of {source}; it holds those of {found.source}. Go on with "
            "the base and the options that the run began with, or start it anew."
        )
    missing = sorted(set(ends) - found.ends)
    if missing:
        raise RunError(
            f"{path} must say what this client added at the end of domain {missing[0]}, which "
            "the server counted; it is older than that. Put the newer file back: without it "
            "records would be added twice."
        )
    ends_ = np.array(sorted(ends), np.int32)
    stands = np.isin(found.added, ends_) & ~np.isin(found.removed, ends_)
    return found.take(np.flatnonzero(stands))


def purge(folder: Path, line: str, ends: Collection[int]) -> None:
    """Drop the features of records that were taken away in a sum that the server counted.

    Args:
        folder: the client's.
        line: what `source` begins with in the run that the ends are of.
        ends: indices of the domains whose end the server counted this client in.

    Raises:
        RunError: the file is damaged, or cannot be written; it is as it was.
    """
    path = folder / FILE
    if not ends or not path.exists():
        return
    found = _read(path)
    if not found.source.startswith(line):  # another run's ends: these say nothing of it
        return
    stays = ~np.isin(found.removed, np.array(sorted(ends), np.int32))
    if not stays.all():
        write(folder, found.take(np.flatnonzero(stays)))


def held(folder: Path) -> dict[str, bool]:
    """Whose features lie in a client's folder: id -> whether it was already given to subtract.

    Args:
        folder: the client's.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    found = _read(path)
    return {name: bool(end != NEVER) for name, end in zip(found.ids, found.removed, strict=True)}


def write(folder: Path, contributions: Contributions) -> None:
    """Write the file, synced; a process that dies leaves the old one.

    Raises:
        RunError: the disk is full or the folder cannot be written; nothing may leave the client.
    """
    content = io.BytesIO()
    np.savez(
        content,
        schema=np.array(_SCHEMA),
        source=np.array(contributions.source),
        ends=np.array(sorted(contributions.ends), np.int32),
        ids=np.array(contributions.ids, str),
        labels=np.array(contributions.labels, str),
        added=contributions.added,
        removed=contributions.removed,
        grid=contributions.grid,
    )
    path = folder / FILE
    arrays = content.getvalue()
    try:
        write_atomically(path, arrays + _MARK + hashlib.sha256(arrays).digest(), 0o600)
    except OSError as error:
        raise RunError(
            f"{path} must be written before the sums of its records leave this client; it cannot: "
            f"{error}. Nothing was sent. Make room and run the client again."
        ) from error


def _checked(data: bytes) -> tuple[bytes, bool]:
    """The arrays in a file, and whether a checksum stands behind them: zip allows for a tail."""
    arrays, tail = data[:-_TAIL], data[-_TAIL:]
    if not tail.startswith(_MARK):
        return data, False
    if tail != _MARK + hashlib.sha256(arrays).digest():
        raise ValueError("its checksum is wrong")
    return arrays, True


def _read(path: Path) -> Contributions:
    try:
        arrays, checked = _checked(path.read_bytes())
        with np.load(io.BytesIO(arrays), allow_pickle=False) as file:
            if int(file["schema"]) != (_SCHEMA if checked else _UNCHECKED):
                raise ValueError(f"it must be of schema {_SCHEMA}")
            found = Contributions(
                str(file["source"]),
                frozenset(int(end) for end in file["ends"]),
                tuple(str(name) for name in file["ids"]),
                tuple(str(name) for name in file["labels"]),
                file["added"],
                file["removed"],
                file["grid"],
            )
        columns = (found.labels, found.added, found.removed, found.grid)
        if any(len(column) != len(found.ids) for column in columns):
            raise ValueError("its columns have other lengths")
    except DAMAGED as error:
        raise RunError(
            f"{path} must say which records this client added to the server's sums: {error}. Put "
            "back a good copy, or start the run anew: without it they would be added twice."
        ) from error
    return found
