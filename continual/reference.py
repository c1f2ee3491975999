"""What a client's records looked like so far: a bounded sample of embeddings, in one file.

A record is in the sample for its rank, a keyed hash of its id, and its rank alone: the sample is
the same in whatever order records came, and in whatever order they are asked for again. Labels and
domains are kept beside the embeddings, and no text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.parts import Indices
from ..core.values import Records

FILE = "drift.bin"
"""File name in a client's folder."""

_MAGIC = b"perennial drift reference 1\n"
_DIGEST = hashlib.sha256().digest_size
_PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class Reference:
    """A sample of a client's records; never changed in place.

    Attributes:
        base: identity of the base that made the embeddings.
        key: of the ranks; each client has its own.
        parts: into how many parts the sample is drawn apart.
        ends: the ends of domains that records were taken at, in order, each by a name.
        ids: of the records, in the order in which they were met, each once.
        classes: label of each.
        domains: domain of each.
        turns: at which of `ends` each was taken; -1 where that is no longer known.
        rows: embeddings, L2 norm 1, float16 [n, d].
    """

    base: str
    key: str
    parts: int = 1
    ends: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    turns: tuple[int, ...] = ()
    rows: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), "<f2"))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def records(self) -> Records:
        """Who is in it, as records without texts."""
        none = ("",) * len(self)
        return Records(self.ids, none, self.classes, self.domains, none)

    def take(self, positions: Sequence[int] | Indices) -> Reference:
        """The records at `positions`, in that order."""
        at = np.asarray(positions, np.intp)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in at),
            classes=tuple(self.classes[i] for i in at),
            domains=tuple(self.domains[i] for i in at),
            turns=tuple(self.turns[i] for i in at),
            rows=self.rows[at],
        )

    def at(self, end: str) -> Reference:
        """As it stands at the end that `end` names: the last one, if it was not there before."""
        return self if self.ends[-1:] == (end,) else replace(self, ends=(*self.ends, end))

    def without(self, ids: Collection[str]) -> Reference:
        """The reference without the records of `ids`."""
        kept = [i for i, name in enumerate(self.ids) if name not in ids]
        return self if len(kept) == len(self) else self.take(kept)

    def joined(self, records: Records, rows: npt.NDArray[np.floating]) -> Reference:
        """With `records` after its own, taken at the last end, and their embeddings [n, d]."""
        if not len(records):
            return self
        mine = self.rows if len(self) else np.zeros((0, rows.shape[1]), "<f2")
        return replace(
            self,
            ids=self.ids + records.ids,
            classes=self.classes + records.targets,
            domains=self.domains + records.domains,
            turns=self.turns + (len(self.ends) - 1,) * len(records),
            rows=np.concatenate([mine, rows.astype("<f2")]),
        )


def ranks(ids: Sequence[str], key: str, purpose: str) -> npt.NDArray[np.uint64]:
    """A number per id that depends on it, on `key` and on `purpose` alone, uint64 [n]."""
    secret = hashlib.sha256(key.encode()).digest()
    person = purpose.encode()[:16]
    digests = (
        hashlib.blake2b(name.encode(), digest_size=8, key=secret, person=person).digest()
        for name in ids
    )
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)


def part_of(ids: Sequence[str], key: str, parts: int) -> Indices:
    """In which of `parts` parts each id is, whoever else is there, [n]."""
    return np.asarray(ranks(ids, key, "part") % np.uint64(parts), np.intp)


def lowest(ids: Sequence[str], key: str, capacity: int, parts: int = 1) -> Indices:
    """Positions of a sample of at most `capacity` of `ids`, in order.

    Args:
        ids: each once.
        key: of the client.
        capacity: most records over all parts.
        parts: the sample of each part is drawn by itself, whatever the other parts hold.
    """
    order, of = np.argsort(ranks(ids, key, "sample"), kind="stable"), part_of(ids, key, parts)
    room = max(1, capacity // parts)
    chosen = [order[of[order] == part][:room] for part in range(parts)]
    return np.sort(np.concatenate(chosen))


def packed(reference: Reference) -> bytes:
    """`reference` as bytes with a checksum; the same for equal ones."""
    head = {
        "base": reference.base,
        "key": reference.key,
        "parts": reference.parts,
        "ends": reference.ends,
        "ids": reference.ids,
        "classes": reference.classes,
        "domains": reference.domains,
        "turns": reference.turns,
        "width": reference.rows.shape[1],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    rows = np.ascontiguousarray(reference.rows, "<f2").tobytes()
    content = len(text).to_bytes(8, "big") + text + rows
    return _MAGIC + hashlib.sha256(content).digest() + content


def unpacked(data: bytes) -> Reference:
    """The reference in `data`.

    Raises:
        ValueError: it is damaged, or of another version; the message says which.
    """
    start = len(_MAGIC)
    if data[:start] != _MAGIC:
        raise ValueError("it does not begin as one of this version does")
    content = data[start + _DIGEST :]
    if data[start : start + _DIGEST] != hashlib.sha256(content).digest():
        raise ValueError("its checksum is wrong")
    end = 8 + int.from_bytes(content[:8], "big")
    head = json.loads(content[8:end])
    rows = np.frombuffer(content[end:], "<f2").reshape(len(head["ids"]), head["width"])
    return Reference(
        base=head["base"],
        key=head["key"],
        parts=head["parts"],
        ends=tuple(head["ends"]),
        ids=tuple(head["ids"]),
        classes=tuple(head["classes"]),
        domains=tuple(head["domains"]),
        turns=tuple(head["turns"]),
        rows=rows,
    )


def load(folder: Path, base: str, mend: Callable[[str], Reference]) -> Reference | None:
    """The reference in a client's folder; None where there is none yet.

    Args:
        folder: of the client.
        base: identity of the frozen base.
        mend: (what is wrong) -> another one in the place of a damaged file.

    Raises:
        RunError: it was made by another base, or cannot be read.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} must be readable: {error}; mend its permissions") from error
    try:
        found = unpacked(data)
    except ValueError as error:
        return mend(str(error))
    if found.base != base:
        raise RunError(
            f"{path} must hold embeddings of the base {base!r}; it holds those of {found.base!r}, "
            "which say nothing about this one. Use the base that it was made with, or move the "
            "file away: drift is then told from this domain on."
        )
    return found


def save(folder: Path, reference: Reference) -> None:
    """Write `reference` to a client's folder, whole or not at all.

    Raises:
        RunError: it cannot be written; the old one stays.
    """
    path = folder / FILE
    try:
        write_atomically(path, packed(reference), _PRIVATE)
    except OSError as error:
        raise RunError(f"{path} must be writable: {error}; the old one is kept") from error


def forget(folder: Path, ids: Collection[str], *, everything: bool = False) -> frozenset[str]:
    """Take records out of a client's reference at once; the ids of those that were in it.

    A damaged file is emptied, and drawn anew at the next update from what the client holds; with
    `everything` it is deleted.

    Args:
        folder: of the client.
        ids: of records.
        everything: all of them.

    Raises:
        RunError: it cannot be read or written; it is as it was.
    """
    path = folder / FILE
    try:
        found = unpacked(path.read_bytes())
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise RunError(f"{path} must be readable: {error}; mend its permissions") from error
    except ValueError:
        if everything:
            path.unlink()
        else:
            _empty(path)
        return frozenset()
    left = found.take([]) if everything else found.without(ids)
    if len(left) < len(found):
        save(folder, left)
    return frozenset(found.ids).difference(left.ids)


def _empty(path: Path) -> None:
    """Nothing of anybody's is left in the file; that it is there has another one drawn."""
    try:
        write_atomically(path, b"", _PRIVATE)
    except OSError as error:
        raise RunError(f"{path} must be writable: {error}; it is as it was") from error
