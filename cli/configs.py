"""The config file that a command is given, as text: read, changed by `--set`, its noise planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..core.errors import DataError

File = Annotated[Path, typer.Argument(help="A config in TOML; see examples/.", metavar="FILE")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this form at run time
    typer.Option(
        "--set",
        help="Change the config: table.key=value; may be repeated. In an array of tables, by "
        "place or name: continual.methods.0.per_class=5, continual.methods.replay.per_class=5.",
    ),
]


def settled(file: Path, settings: list[str] | None, *, quiet: bool = False) -> str:
    """The config with the noise that its promise needs, and what was filled in said.

    What clients would refuse for the records that they hold is refused here, as `plan` does.
    """
    from .settling import is_private, settle

    text, lines = settle(text_of(file, settings))
    if is_private(text):
        from ..core import check
        from .planning import against_data

        lines += against_data(check.read(text))
    for line in [] if quiet else lines:
        typer.echo(line, err=True)
    return text


def text_of(file: Path, settings: list[str] | None) -> str:
    """The text of a config file with the settings of the command line in it.

    Raises:
        DataError: there is no such file, or it is no text.
    """
    from .overrides import override

    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{file} must be a config file; there is none. See examples/.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file} must be a readable UTF-8 text file: {error}") from error
    return override(text, settings or [])
