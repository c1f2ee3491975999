"""An append-only log of JSON lines, each bound to the one before by its hash.

A line is on disk before `append` returns. Whoever changes, drops or inserts a line breaks the
chain from there on, and the log is refused; cutting lines off its end leaves a sound chain, so
keep `head` elsewhere where that matters.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from ..core.errors import DataError, RunError
from ..core.files import claim, sync_folder

Entry: TypeAlias = Mapping[str, Any]
"""One line: `time` (UTC), `event`, its fields, `previous` and `hash`."""

_START = "0" * 64
_OURS = {"time", "event", "previous", "hash"}


class AuditLog:
    """The log at `path`, open to this process alone until it is closed or the process dies.

    A last line that a crash tore is cut off: nobody was told what it says. Not for several
    threads at once.

    Args:
        path: made if missing, with mode 0600.

    Raises:
        DataError: the chain is broken, or the file cannot be opened.
        RunError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            # Closed with the object, so that a second one of the same process finds it free.
            self._close = weakref.finalize(self, os.close, file)
            _lock(file, path)
            sync_folder(path.parent)
        except OSError as error:
            raise DataError(f"{path} must be a file that can be written: {error}") from error
        self._file, self._size, self._head = file, 0, _START
        for entry, end in _walk(path):
            self._size, self._head = end, entry["hash"]
        os.ftruncate(file, self._size)

    @property
    def head(self) -> str:
        """Hash of the last line; 64 zeros when there is none."""
        return self._head

    def append(self, event: str, **fields: Any) -> Entry:
        """One more line, on disk when this returns.

        Args:
            event: what happened.
            fields: JSON values; the names `time`, `event`, `previous` and `hash` are taken.

        Raises:
            RunError: the line cannot be written; the log is as it was.
        """
        if _OURS & set(fields):
            raise ValueError(f"the names {sorted(_OURS)} are taken; got {sorted(fields)}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "event": event, **fields, "previous": self._head}
        entry["hash"] = _hash(entry)
        line = _line(entry)
        try:
            # What a failed write left behind must not come before this line.
            os.ftruncate(self._file, self._size)
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            raise RunError(
                f"the audit log {self._path} must take every event; it cannot be written: "
                f"{error.strerror}. Nothing was done."
            ) from error
        self._size, self._head = self._size + len(line), entry["hash"]
        return entry

    def entries(self) -> Iterator[Entry]:
        """Every line, the oldest first.

        Raises:
            DataError: somebody else changed the file meanwhile.
        """
        return (entry for entry, _ in _walk(self._path))

    def close(self) -> None:
        """Free the log for others; nothing can be appended any more."""
        self._close()
        self._file = -1


def verify(path: Path) -> int:
    """The number of lines of a log whose chain holds; a torn last line does not count.

    Raises:
        DataError: the chain is broken, or there is no such file.
    """
    return len(entries_of(path))


def entries_of(path: Path) -> list[Entry]:
    """The lines of a log whose chain holds, in order.

    Raises:
        DataError: the chain is broken, or there is no such file.
    """
    try:
        return [entry for entry, _ in _walk(path)]
    except OSError as error:
        raise DataError(f"{path} must be an audit log that can be read: {error}") from error


def _walk(path: Path) -> Iterator[tuple[Entry, int]]:
    """Each whole line and where it ends, in bytes."""
    previous, end = _START, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            entry = _checked(line, previous, f"{path}, line {number}")
            previous, end = entry["hash"], end + len(line)
            yield entry, end


def _checked(line: bytes, previous: str, place: str) -> dict[str, Any]:
    remedy = "Somebody changed the log: keep it as it is and find out who."
    try:
        entry = json.loads(line)
        rest = {name: value for name, value in entry.items() if name != "hash"}
        sound = entry["hash"] == _hash(rest) and _line(entry) == line
        follows = entry["previous"] == previous
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{place} must be an entry of an audit log; it is none. {remedy}"
        ) from error
    if not sound:
        raise DataError(f"{place} must have the hash that it says; it has not. {remedy}")
    if not follows:
        raise DataError(f"{place} must follow the line before it; it does not. {remedy}")
    return dict(entry)


def _hash(entry: Entry) -> str:
    return hashlib.sha256(_line(entry)).hexdigest()


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _lock(file: int, path: Path) -> None:
    try:
        claim(file)
    except BlockingIOError as error:
        raise RunError(
            f"{path} must belong to one key holder; another process has it open. Stop that one, "
            "or give this one a log of its own."
        ) from error
