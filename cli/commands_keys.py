"""`perennial keys ...`: the arguments of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .configs import File, Settings, settled

keys = typer.Typer(no_args_is_help=True, help="Make, renew and list the keys of encrypted sums.")

Keys = Annotated[Path, typer.Argument(help="A folder of keys.", metavar="DIR")]


@keys.command("init")
def keys_init(file: File, folder: Keys, settings: Settings = None) -> None:
    """Make the keys of a config's encrypted sums."""
    from .keys import make

    make(settled(file, settings), folder)


@keys.command("identity")
def keys_identity(
    folder: Annotated[Path, typer.Argument(help="A client's own folder.", metavar="FOLDER")],
) -> None:
    """Print a client's identity, for the file that `identities` names; made on first use."""
    from .keys import identity

    identity(folder)


@keys.command("verify")
def keys_verify(
    log: Annotated[Path, typer.Argument(help="A key holder's audit log.", metavar="LOG")],
) -> None:
    """Check that no line of an audit log was changed or taken out, and count its openings."""
    from .keys import verify

    verify(log)


@keys.command("rotate")
def keys_rotate(folder: Keys) -> None:
    """Make new keys of the same scheme; the old ones are kept and no longer used."""
    from .keys import renew

    renew(folder)


@keys.command("show")
def keys_show(
    folder: Keys,
    json: Annotated[bool, typer.Option("--json", help="Show them as JSON.")] = False,
) -> None:
    """List the keys in a folder, and who may read their files."""
    from .keys import show

    show(folder, as_json=json)
