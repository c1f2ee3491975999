"""Releases of a model: numbered folders, written whole, hashed, signed, and one pointer to them.

`releases/NNNN/` holds the files of a release, `release.json` (what it is, the hash of each file,
its parent) and `release.sig`. `releases/current` is a link to the one in service; each change of it
is a line of `releases/history.jsonl`. A release names its parent by number and by the hash of the
parent's `release.json`, so that a line of descent cannot be rewritten without it being seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import claim, sync_folder, write_atomically

FOLDER, CARD, SIGNATURE = "releases", "release.json", "release.sig"
KEY = "release.key"
"""The signer's private key, beside the folder of releases; `.pub` is what others check with."""

_CURRENT, _HISTORY, _LOCK = "current", "history.jsonl", ".lock"
_SCHEMA = 1
_CHUNK = 1 << 20
_MOST = 9999


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs releases.

    Attributes:
        public: its public key, by which others know it.
        sign: (text) -> the signature.
    """

    public: str
    sign: Callable[[bytes], str]


@dataclass(frozen=True, slots=True)
class Release:
    """One release as it lies on disk; nothing of it was checked but its card's shape.

    Attributes:
        number: 1, 2, ...
        folder: of its files.
        card: what `release.json` says.
        digest: SHA-256 of `release.json`, 64 hex digits.
    """

    number: int
    folder: Path
    card: Mapping[str, Any]
    digest: str

    @property
    def name(self) -> str:
        """Four digits, as the folder."""
        return f"{self.number:04d}"


def cut(
    home: Path,
    files: Mapping[str, Path],
    card: Mapping[str, Any],
    signer: Signer,
    parent: int | None = None,
) -> Release:
    """A new release of copies of `files`; it is whole or not there, and not in service yet.

    Args:
        home: its `releases` folder is made if missing.
        files: what stands in it -> where it is now; no path may leave the folder.
        card: what is said of it; number, parent, time and hashes are added here.
        signer: signs the card.
        parent: number of the release it was made from; None for none.

    Raises:
        DataError: a file is missing, or its name leaves the folder; nothing is left behind.
        OSError: the disk is full; nothing is left behind.
    """
    releases = home / FOLDER
    releases.mkdir(parents=True, exist_ok=True)
    with _locked(releases):
        for left in releases.glob(".new-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        origin = None if parent is None else read(home, parent)
        number = max((r.number for r in all_of(home)), default=0) + 1
        if number > _MOST:
            raise DataError(f"{releases} holds {_MOST} releases; begin a new home")
        fresh = releases / f".new-{secrets.token_hex(4)}"
        try:
            fresh.mkdir()
            hashes = {name: _copied(files[name], fresh, name) for name in sorted(files)}
            whole = {
                **card,
                "schema": _SCHEMA,
                "number": number,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "parent": origin and {"number": origin.number, "digest": origin.digest},
                "files": hashes,
            }
            text = json.dumps(whole, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
            write_atomically(fresh / CARD, text)
            mark = {"signer": signer.public, "signature": signer.sign(text)}
            write_atomically(fresh / SIGNATURE, json.dumps(mark) + "\n")
            sync(fresh)
            os.rename(fresh, releases / f"{number:04d}")
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        sync_folder(releases)
    return read(home, number)


def read(home: Path, number: int) -> Release:
    """The release `number`.

    Raises:
        DataError: there is none, or its card cannot be read.
    """
    folder = home / FOLDER / f"{number:04d}"
    try:
        text = (folder / CARD).read_bytes()
        card = json.loads(text)
        sound = card["schema"] == _SCHEMA and card["number"] == number
        sound = sound and _has_shape(card)
    except (OSError, NotADirectoryError) as error:
        there = ", ".join(_numbers(home)) or "none"
        raise DataError(f"{folder} must be a release; there are: {there}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / CARD} is damaged: {error!r}. Restore the release.") from error
    if not sound:
        raise DataError(
            f"{folder / CARD} must be of schema {_SCHEMA} and number {number}; it is not. Use the "
            "version of the package that wrote it, or restore the release."
        )
    return Release(number, folder, card, hashlib.sha256(text).hexdigest())


def _has_shape(card: Mapping[str, Any]) -> bool:
    """Whether what everybody reads in a card is there, and is what it should be."""
    files, parent, accuracy = card["files"], card["parent"], card.get("accuracy", {})
    return (
        isinstance(files, dict)
        and all(isinstance(f["sha256"], str) and type(f["bytes"]) is int for f in files.values())
        and isinstance(card["created"], str)
        and (
            parent is None or (type(parent["number"]) is int and isinstance(parent["digest"], str))
        )
        and isinstance(accuracy, dict)
        and isinstance(card.get("domains", []), list)
    )


def all_of(home: Path) -> list[Release]:
    """All releases, the oldest first.

    Raises:
        DataError: a card cannot be read.
    """
    return [read(home, int(name)) for name in _numbers(home)]


def in_service(home: Path) -> Release | None:
    """The release that `current` points to; None before the first was promoted.

    Raises:
        DataError: the pointer leads to no release.
    """
    pointer = home / FOLDER / _CURRENT
    if not pointer.is_symlink():
        if pointer.exists():
            raise DataError(f"{pointer} must be a link to a release; it is something else")
        return None
    target = os.readlink(pointer)
    if not _is_number(target):
        raise DataError(f"{pointer} must lead to a release beside it; it leads to {target}")
    return read(home, int(target))


def promote(home: Path, number: int, why: str = "promoted") -> Release:
    """Put a release in service, by one rename; readers see the one before or this one.

    The files are held against their hashes first: what is damaged does not go into service.

    Args:
        home: with the releases.
        number: of the release.
        why: for the history.

    Raises:
        DataError: there is no such release, or it is damaged.
    """
    with _locked(home / FOLDER):
        release = read(home, number)
        if faults := damage(release):
            raise DataError(f"release {release.name} must not go into service: {faults[0]}")
        before = in_service(home)
        _point(home, number)
        _note(home, before.number if before else None, number, why)
    return release


def rollback(home: Path) -> Release:
    """Put the release back in service that was in service before the present one.

    Raises:
        DataError: there is none before it.
    """
    present = in_service(home)
    earlier = _before(home, present.number) if present else None
    if earlier is None:
        raise DataError("there is no release before the one in service; nothing was changed")
    return promote(home, earlier, "rolled back")


def history(home: Path) -> list[dict[str, Any]]:
    """Changes of what is in service, the oldest first: time, from, to, why."""
    path = home / FOLDER / _HISTORY
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            change = json.loads(line)
        except ValueError:
            continue  # cut off by a power cut: the pointer itself is what counts
        if isinstance(change, dict) and isinstance(change.get("to"), int):
            found.append(change)
    return found


def damage(release: Release) -> list[str]:
    """What is wrong with the files of a release: missing, changed, or in nobody's list."""
    faults, listed = list[str](), release.card["files"]
    for name, told in listed.items():
        path = release.folder / name
        if path.is_symlink() or not path.is_file():
            faults.append(f"{release.name}/{name} is missing")
        elif _hash(path) != told["sha256"]:
            faults.append(f"{release.name}/{name} is not the file that was released")
    there = {
        str(p.relative_to(release.folder)) for p in release.folder.rglob("*") if not p.is_dir()
    }
    unknown = sorted(there - set(listed) - {CARD, SIGNATURE})
    return faults + [f"{release.name}/{name} does not belong to the release" for name in unknown]


def _copied(source: Path, folder: Path, name: str) -> dict[str, Any]:
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()) or name in (CARD, SIGNATURE):
        raise DataError(f"a release's file must have a name inside its folder; got {name!r}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise DataError(f"a release needs {source}; there is no such file") from error
    return {"sha256": _hash(target), "bytes": target.stat().st_size}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(folder: Path) -> None:
    """Have all files below `folder` on the disk, and their names."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _point(home: Path, number: int) -> None:
    releases = home / FOLDER
    fresh = releases / f".current-{secrets.token_hex(4)}"
    os.symlink(f"{number:04d}", fresh)
    os.replace(fresh, releases / _CURRENT)
    sync_folder(releases)


def _note(home: Path, before: int | None, after: int, why: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"time": stamp, "from": before, "to": after, "why": why})
    with (home / FOLDER / _HISTORY).open("a+b") as file:
        torn = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _before(home: Path, number: int) -> int | None:
    """What was in service before `number` came there for good: rollbacks do not count as coming."""
    stack = list[int]()
    for change in history(home):
        if isinstance(change.get("from"), int) and change["from"] not in stack:
            stack.append(change["from"])  # its own line was lost
        if change["to"] in stack:
            del stack[stack.index(change["to"]) + 1 :]
        else:
            stack.append(change["to"])
    if number not in stack:
        stack.append(number)
    place = stack.index(number)
    return stack[place - 1] if place else None


def _numbers(home: Path) -> Sequence[str]:
    releases = home / FOLDER
    names = (p.name for p in releases.iterdir()) if releases.is_dir() else ()
    return sorted(name for name in names if _is_number(name))


def _is_number(name: str) -> bool:
    return len(name) == 4 and name.isascii() and name.isdigit()


@contextmanager
def _locked(releases: Path) -> Iterator[None]:
    """One process at a time changes the folder."""
    if not releases.is_dir():
        raise DataError(f"{releases} must be a folder of releases; there is none")
    with (releases / _LOCK).open("a+b") as file:
        claim(file.fileno(), wait=True)
        yield
