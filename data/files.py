"""Splits from files: paths to tables to records, the same for every format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from ..core.errors import DataError
from ..core.parts import Source
from ..core.values import Records, Splits
from .split import Rates, split
from .table import Columns, Origin, Rows, to_records

Paths: TypeAlias = "str | Mapping[str, str]"
"""One path, or domain name -> path; relative to the current folder, `~` allowed."""

Open: TypeAlias = Callable[[Path], Rows]
"""A file format: (an existing file) -> its rows, streamed."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a data set.

    Attributes:
        train: training records.
        validation: validation records, or None.
        test: test records, or None to hold some of the training records out.
    """

    train: Paths
    validation: Paths | None = None
    test: Paths | None = None


def source(rows: Open, files: Files, columns: Columns, rates: Rates) -> Source:
    """A source of `files` in the format that `rows` reads; nothing is opened before `read`.

    Without a test file, test records (and validation records, where there is no file of them)
    are held out of the training file by a seeded split.
    """

    def read() -> Splits:
        train = _read(rows, files.train, "train", columns)
        validation = _read(rows, files.validation, "validation", columns)
        if files.test is not None:
            return Splits(train, validation, _read(rows, files.test, "test", columns))
        given = files.validation is not None
        held_out = Rates(rates.test, 0.0 if given else rates.validation, rates.seed)
        parts = split(train, held_out, by_target=not columns.causal)
        return Splits(parts.train, validation if given else parts.validation, parts.test)

    return Source(read)


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, without a byte order mark, streamed.

    Raises:
        DataError: a line is not UTF-8.
    """
    # Decoding line by line costs a little and lets the message name the very line.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: must be UTF-8; got byte "
                    f"0x{raw[error.start]:02x} ({error.reason}); save the file as UTF-8"
                ) from error


def stamps(options: Mapping[str, object]) -> tuple[tuple[str, int, int], ...]:
    """Path, time of the last change in ns and bytes of each file that `[data]` options name."""
    found = []
    for value in options.values():
        for path in value.values() if isinstance(value, Mapping) else (value,):
            try:
                seen = Path(str(path)).expanduser().stat()
            except (OSError, ValueError, RuntimeError):  # no file, or no path at all
                continue
            found.append((str(path), seen.st_mtime_ns, seen.st_size))
    return tuple(found)


def _read(rows: Open, paths: Paths | None, name: str, columns: Columns) -> Records:
    if paths is None:
        return Records()
    if isinstance(paths, str):
        path = _existing(paths, name)
        return to_records(rows(path), columns, Origin(name, str(path)))
    if not paths:
        raise DataError(f"[data.{name}]: must name at least one file; got an empty table")
    parts = [_of_domain(rows, paths[d], name, d, columns).columns for d in paths]
    found = Records(*(tuple(chain.from_iterable(column)) for column in zip(*parts, strict=True)))
    if len(set(found.ids)) < len(found):
        (twice, _), *_ = Counter(found.ids).most_common(1)
        raise DataError(
            f"[data.{name}]: column {columns.id!r} must name each record once; "
            f"got {twice!r} in two files; mend one or name another column in [data] id"
        )
    return found


def _of_domain(rows: Open, given: str, name: str, domain: str, columns: Columns) -> Records:
    path = _existing(given, f"{name}.{domain}")
    return to_records(rows(path), columns, Origin(name, str(path), domain))


def _existing(given: str, key: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise DataError(
            f"data.{key}: there must be a file {given!r}; got {what} at {path.absolute()}; "
            "relative paths start at the current folder"
        )
    if not os.access(path, os.R_OK):
        raise DataError(f"data.{key}: {path.absolute()} must be readable; see its permissions")
    return path
