"""`perennial releases ...`: the arguments of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

releases = typer.Typer(
    no_args_is_help=True, help="What was released, what is in service, and whether it is sound."
)

Home = Annotated[Path, typer.Option(help="The home that `perennial update` writes to.")]
Json = Annotated[bool, typer.Option("--json", help="Show it as JSON.")]
Number = Annotated[int, typer.Argument(min=1, help="A release's number.", metavar="N")]
Chosen = Annotated[
    int, typer.Argument(min=0, help="A release's number; the one in service without.", metavar="N")
]

HOME = Path("service")
"""Where an update keeps its releases when its file does not say."""


@releases.command("list")
def releases_list(home: Home = HOME, json: Json = False) -> None:
    """List the releases; a star marks the one in service."""
    from .releasing import show_all

    show_all(home, as_json=json)


@releases.command("show")
def releases_show(number: Chosen = 0, home: Home = HOME, json: Json = False) -> None:
    """Say what a release is: its accuracy by domain, its epsilon, its files."""
    from .releasing import show

    show(home, number, as_json=json)


@releases.command("diff")
def releases_diff(one: Number, other: Number, home: Home = HOME, json: Json = False) -> None:
    """Say what changed from one release to another."""
    from .releasing import compare

    compare(home, one, other, as_json=json)


@releases.command("promote")
def releases_promote(number: Number, home: Home = HOME) -> None:
    """Put a release in service, if its files are those that were released."""
    from .releasing import promote

    promote(home, number)


@releases.command("rollback")
def releases_rollback(home: Home = HOME) -> None:
    """Put the release in service again that was in service before."""
    from .releasing import rollback

    rollback(home)


@releases.command("verify")
def releases_verify(
    number: Chosen = 0,
    home: Home = HOME,
    keys: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="Public keys to trust, one a line; the home's own without."),
    ] = None,
) -> None:
    """Check a release's hashes, its signature and its line of descent."""
    from .releasing import verify

    verify(home, number, keys)


@releases.command("mirror")
def releases_mirror(
    uri: Annotated[str, typer.Argument(help="MLflow's tracking server.", metavar="URI")],
    name: Annotated[str, typer.Option(help="Of the registered model.")] = "perennial",
    home: Home = HOME,
) -> None:
    """Bring a model in an MLflow registry up to the releases."""
    from .releasing import mirrored

    mirrored(home, uri, name)
