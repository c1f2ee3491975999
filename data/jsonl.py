"""JSON lines: one JSON object a line, UTF-8; empty lines are passed over."""

from __future__ import annotations

import json
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
    """A source of JSON lines files; the options are those of `csv`, with keys for columns.

    Raises:
        ConfigError: `prompt` without `completion` or the reverse, or rates that do not fit.
    """
    columns = Columns(text, label, domain, group, prompt, completion, id)
    rates = Rates(test_rate, validation_rate, split_seed)
    return source(_rows, Files(train, validation, test), columns, rates)


def _rows(path: Path) -> Rows:
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: must be one JSON object; got: {error.msg} at column "
                f"{error.colno}; write one object a line"
            ) from error
        except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
            raise DataError(
                f"{path}, line {number}: must be one JSON object; got: {error}; mend the line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: must be one JSON object; got {type(row).__name__}; "
                "write one object a line"
            )
        yield number, row
