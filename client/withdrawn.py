"""Whose records a client must forget: a list on its own disk that only grows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import RunError
from ..core.files import claim, write_atomically

WITHDRAWN = "withdrawn.json"
"""File name of the list in a client's folder."""

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Records that a client must forget, everywhere and for ever.

    Attributes:
        ids: of records whose people withdrew.
        everything: the client as a whole withdrew: all of its records, present and to come.
    """

    ids: frozenset[str] = frozenset()
    everything: bool = False


def read(folder: Path) -> Withdrawn:
    """What was withdrawn from the client of `folder`; nothing without a list.

    Raises:
        RunError: the list is damaged or cannot be read; what it held may not be guessed.
    """
    path = folder / WITHDRAWN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Withdrawn()
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
        raise _damaged(path, f"it must be of schema {_SCHEMA}")
    ids, everything = found.get("ids"), found.get("all")
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise _damaged(path, "`ids` must be a list of record ids")
    if not isinstance(everything, bool):
        raise _damaged(path, "`all` must be true or false")
    return Withdrawn(frozenset(ids), everything)


def write(folder: Path, ids: Iterable[str], *, everything: bool = False) -> Withdrawn:
    """Add to what was withdrawn, synced; what the list holds from now on.

    Args:
        folder: the client's own folder, which must be there.
        ids: of records.
        everything: the client as a whole withdraws.

    Raises:
        RunError: the list is damaged, or cannot be written; it is then as it was.
    """
    path = folder / WITHDRAWN
    try:
        with _alone(folder):
            before = read(folder)
            after = Withdrawn(before.ids | frozenset(ids), before.everything or everything)
            if after != before:
                content = {"schema": _SCHEMA, "ids": sorted(after.ids), "all": after.everything}
                write_atomically(path, json.dumps(content, indent=1) + "\n", 0o600)
    except OSError as error:
        raise RunError(
            f"{path} must be written before anything counts as withdrawn: {error}. Nothing was "
            "withdrawn; make room on its disk, or the folder writable, and withdraw again."
        ) from error
    return after


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two that withdraw at once must not lose one another's ids."""
    handle = os.open(folder / ".withdrawn.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        claim(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _damaged(path: Path, problem: str) -> RunError:
    return RunError(
        f"{path} must list what was withdrawn; {problem}. Put back a good copy: without it this "
        "client might learn from records that it must forget."
    )
