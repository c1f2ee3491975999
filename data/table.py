"""Rows of any table as Records, each cell checked and each fault named with file and line."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from ..core.errors import ConfigError, DataError, Fault
from ..core.values import Records

Rows: TypeAlias = Iterator[tuple[int, Mapping[str, Any]]]
"""(line number from 1, column -> cell) per row, streamed."""

_DEFAULT_DOMAIN = "domain"

# JSON can say one half of a UTF-16 pair, and no UTF-8 can hold it: not the log, not a message.
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read.

    Attributes:
        text: the text.
        label: the label.
        domain: the domain's name. Only the default name may be missing from a file, whose
            records then have the domain "".
        group: the sharding column; empty for none.
        prompt: for a causal model, instead of `text`; given with `completion` or not at all.
        completion: for a causal model, instead of `label`.
        id: of what names the record, unlike any other of its table; empty for none.
    """

    text: str = "text"
    label: str = "label"
    domain: str = _DEFAULT_DOMAIN
    group: str = ""
    prompt: str = ""
    completion: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if bool(self.prompt) != bool(self.completion):
            missing = "completion" if self.prompt else "prompt"
            problem = "prompt and completion must be given together; got one of them"
            raise ConfigError([Fault(f"data.{missing}", problem, "name its column, or drop both")])

    @property
    def causal(self) -> bool:
        """Whether the targets are completions, not labels."""
        return bool(self.prompt)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table comes from.

    Attributes:
        split: the option that names it: `train`, `validation` or `test`.
        name: the file's path or the hub's name, for messages.
        domain: the domain of every row; empty to read the domain's column.
    """

    split: str
    name: str
    domain: str = ""


def to_records(rows: Rows, columns: Columns, origin: Origin) -> Records:
    """The records of `rows`, in order.

    A record's id is what its column says, or `<split>:<hash of text, target and domain>`, and then
    `-2` for a second one that says the same: rows may move, come and go between two updates, and
    what was counted, kept or withdrawn is still known again.

    Labels, domains, groups and ids lose white space at their ends; texts, prompts and completions
    are kept as they are.

    Raises:
        DataError: no row at all, a missing column, a cell that is empty or no text, or an id that
            two rows have.
    """
    first = next(rows, None)
    if first is None:
        raise DataError(f"{origin.name}: must hold at least one record; got none")
    column = _domain_column(columns, origin, first[1])
    gathered: tuple[list[str], ...] = ([], [], [], [], [])
    seen: Counter[str] = Counter()
    for line, row in chain([first], rows):
        place = f"{origin.name}, line {line}"
        record = _record(row, columns, column, origin, place)
        if columns.id:
            name = _cell(row, columns.id, place).strip()
            if name in seen:
                raise DataError(
                    f"{place}: column {columns.id!r} must name each record once; got {name!r} "
                    "again; mend the file or name another column in [data] id"
                )
            seen[name] += 1
        else:
            name = f"{origin.split}:{_digest(*record[:3])}"
            seen[name] += 1
            name += f"-{seen[name]}" * (seen[name] > 1)
        for cells, cell in zip(gathered, (name, *record), strict=True):
            cells.append(cell)
    return Records(*(tuple(cells) for cells in gathered))


def _digest(*cells: str) -> str:
    """16 hex digits: two of a million records have one with a chance of 3e-8."""
    joined = "".join(f"{len(cell)}:{cell}" for cell in cells)
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()


def _domain_column(columns: Columns, origin: Origin, row: Mapping[str, Any]) -> str:
    """The column to read the domain from; empty where there is none to read."""
    absent = columns.domain == _DEFAULT_DOMAIN and _DEFAULT_DOMAIN not in row
    return "" if origin.domain or absent else columns.domain


def _record(
    row: Mapping[str, Any], columns: Columns, domain: str, origin: Origin, place: str
) -> tuple[str, str, str, str]:
    """Text, target, domain and group of one row."""
    if columns.causal:
        text = _cell(row, columns.prompt, place)
        target = _cell(row, columns.completion, place)
    else:
        text = _cell(row, columns.text, place)
        target = _cell(row, columns.label, place).strip()
    name = _cell(row, domain, place).strip() if domain else origin.domain
    # A record may belong to no group; one without text, target or domain cannot be learnt.
    group = _cell(row, columns.group, place, may_be_empty=True).strip() if columns.group else ""
    return text, target, name, group


def _cell(row: Mapping[str, Any], column: str, place: str, *, may_be_empty: bool = False) -> str:
    try:
        value = row[column]
    except KeyError:
        there = ", ".join(repr(name) for name in row)
        raise DataError(
            f"{place}: there must be a column {column!r}; got {there}; "
            "name the right one in [data] or mend the file"
        ) from None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # label and group columns are often numbers outside CSV
    text = "" if value is None else value
    if not isinstance(text, str):
        raise DataError(
            f"{place}: column {column!r} must hold text; got {type(text).__name__} "
            f"{text!r:.60}; mend the line"
        )
    if not text.isascii() and (half := _HALF.search(text)):
        raise DataError(
            f"{place}: column {column!r} must be Unicode text; got half a character, "
            f"{half.group()!a}; mend the line"
        )
    if "\0" in text:  # arrays of text lose it at an end
        raise DataError(f"{place}: column {column!r} must hold no NUL character; mend the line")
    if not may_be_empty and not text.strip():
        raise DataError(f"{place}: column {column!r} must not be empty; fill in or drop the line")
    return text
