"""CSV files with a header line (RFC 4180: commas, double quotes), UTF-8."""

from __future__ import annotations

import csv
from pathlib import Path

from ..core.errors import DataError
from ..core.parts import Source
from .files import Files, lines, source
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
    """A source of CSV files.

    Args:
        train: path of the training records, or domain name -> path.
        validation: the same for validation; none by default.
        test: the same for test; by default some training records are held out.
        text: column of the text.
        label: column of the label.
        domain: column of the domain. A file may lack the column `domain` when `train` is a
            table or the config has `[domains.groups]`; the domain is then "".
        group: column that shards go by; empty for none.
        prompt: for a causal model, column of the prompt, instead of `text`.
        completion: for a causal model, column of the completion, instead of `label`.
        id: column of what names a record, for withdrawals; by default a hash of what it says.
        test_rate: share of the training records held out for test, 0..1, without `test`.
        validation_rate: share held out for validation, 0..1, without `test` and `validation`.
        split_seed: seed of that split.

    Raises:
        ConfigError: `prompt` without `completion` or the reverse, or rates that do not fit.
    """
    columns = Columns(text, label, domain, group, prompt, completion, id)
    rates = Rates(test_rate, validation_rate, split_seed)
    return source(rows, Files(train, validation, test), columns, rates)


def rows(path: Path) -> Rows:
    """The rows under the header of a CSV file, streamed; empty lines are passed over.

    Raises:
        DataError: a line that is not UTF-8 or not CSV, or has more or fewer fields than the
            header.
    """
    reader = csv.reader(lines(path), strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            if not header:
                header = _header(row, path)
            elif row:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {line}: must have the header's {len(header)} fields; "
                        f"got {len(row)}; put fields with commas in double quotes"
                        + (", and separate by commas, not ';'" if ";" in header[0] else "")
                    )
                yield line, dict(zip(header, row, strict=True))
            line = reader.line_num + 1  # a quoted field may span lines: where the next row starts
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: must be CSV; got: {error}; mend the line") from error


def _header(row: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in row]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: column names must differ; got twice: {twice}")
    return names
