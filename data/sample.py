"""The embedded sample: short requests in six domains of six intents; see embedded/README.md."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from ..core.parts import Source
from ..core.values import Records, Splits
from .csv import rows
from .table import Columns, Origin, to_records

_PARTS = ("train", "validation", "test")


def build() -> Source:
    """A source of the embedded sample, with its fixed split: the same in every run."""
    return Source(_read)


def _read() -> Splits:
    with as_file(files(__package__) / "embedded" / "requests.csv") as path:
        return Splits(*(_part(path, name) for name in _PARTS))


def _part(path: Path, name: str) -> Records:
    chosen = ((line, row) for line, row in rows(path) if row["split"] == name)
    return to_records(chosen, Columns(), Origin(name, str(path)))
