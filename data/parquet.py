"""Parquet files, read batch by batch through pyarrow, an optional package."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import DataError
from ..core.parts import Source
from .files import Files, source
from .split import Rates
from .table import Columns, Rows


def build(
    *,
    train: str | dict[str, str],
    validation: str | dict[str, str] | None = None,
    test: str | dict[str, str] | None = None,
    text: str = "text",
    label: str = "label",
    domain: str = "domain",
    group: str = "",
    prompt: str = "",
    completion: str = "",
    id: str = "",
    test_rate: float = 0.2,
    validation_rate: float = 0.1,
    split_seed: int = 0,
) -> Source:
    """A source of Parquet files; the options are those of `csv`, and a line is a row from 1.

    Raises:
        ConfigError: `prompt` without `completion` or the reverse, or rates that do not fit.
    """
    columns = Columns(text, label, domain, group, prompt, completion, id)
    rates = Rates(test_rate, validation_rate, split_seed)
    return source(_rows, Files(train, validation, test), columns, rates)


def _rows(path: Path) -> Rows:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; "
            "in the project's folder, run pip install '.[hub]'"
        ) from error
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowInvalid as error:
        raise DataError(f"{path}: must be a Parquet file; got: {error}") from error
