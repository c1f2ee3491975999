"""`perennial releases`: what was released, what is in service, and whether it is what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import DataError, RunError
from ..privacy import signing
from ..server import releases
from ..server.release_differences import differences
from ..server.release_proofs import Trust
from ..server.release_proofs import verify as verified
from ..server.releases import Release, Signer
from ..server.units import DASH, percent, points, size

if TYPE_CHECKING:
    from rich.table import Table


def show_all(home: Path, *, as_json: bool) -> None:
    """List the releases of `home`, the oldest first; a star marks the one in service."""
    found, present = releases.all_of(home), releases.in_service(home)
    if as_json:
        typer.echo(json.dumps([_pack(r, present) for r in found], indent=2))
        return
    if not found:
        typer.echo(f"no releases in {home}; `perennial update` makes them")
        return
    from rich.console import Console

    Console().print(_table(found, present))


def show(home: Path, number: int, *, as_json: bool) -> None:
    """Say what a release is; 0 means the one in service."""
    release, present = _one(home, number), releases.in_service(home)
    if as_json:
        typer.echo(json.dumps(_pack(release, present), indent=2))
        return
    card, parent = release.card, release.card["parent"]
    state = "in service" if present and present.number == release.number else "not in service"
    typer.echo(f"release {release.name}, {state}")
    typer.echo(f"  made      {card['created']}, parent {_parent(parent)}")
    typer.echo(f"  domain    {card.get('domain', DASH)} ({len(card.get('accuracy', {}))} so far)")
    for name, accuracy in card.get("accuracy", {}).items():
        typer.echo(f"  accuracy  {percent(accuracy)} {name}")
    typer.echo(f"  epsilon   {_epsilon(card)}")
    typer.echo(f"  clients   {card.get('clients', DASH)}")
    typer.echo(f"  base      {card.get('base', DASH)}")
    for name, told in card["files"].items():
        typer.echo(f"  file      {size(told['bytes'])} {name} {told['sha256'][:16]}")
    typer.echo(f"  digest    {release.digest}")


def compare(home: Path, one: int, other: int, *, as_json: bool) -> None:
    """Say what changed from a release to another."""
    found = differences(releases.read(home, one), releases.read(home, other))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"release {one:04d} to {other:04d}")
    for name, (before, after) in found["accuracy"].items():
        change = "" if None in (before, after) else f" ({points(after - before)})"
        typer.echo(f"  accuracy  {name}: {percent(before)} to {percent(after)}{change}")
    if found["epsilon"][0] != found["epsilon"][1]:
        typer.echo(f"  epsilon   {found['epsilon'][0]} to {found['epsilon'][1]}")
    for key, (before, after) in found["settings"].items():
        typer.echo(f"  setting   {key}: {before!r} to {after!r}")
    for name, what in found["files"].items():
        moved = found["moved"].get(name)
        typer.echo(f"  file      {what} {name}{f', moved by {moved:.3g}' if moved else ''}")


def promote(home: Path, number: int) -> None:
    """Put a release in service."""
    typer.echo(f"release {releases.promote(home, number).name} is in service")


def rollback(home: Path) -> None:
    """Put the release before in service again."""
    typer.echo(f"release {releases.rollback(home).name} is in service again")


def verify(home: Path, number: int, keys: Path | None) -> None:
    """Check hashes, signature and line of descent of a release; 0 means the one in service.

    Raises:
        RunError: something does not hold.
    """
    release = _one(home, number)
    faults = verified(home, release.number, trust(keys or home / f"{releases.KEY}.pub"))
    if faults:
        raise RunError(
            f"release {release.name} does not hold: " + "; ".join(faults) + ". Put the folder back "
            "from a backup, or roll back to another release."
        )
    files = len(release.card["files"])
    typer.echo(f"release {release.name} holds: {files} files, its signature, its line of descent")


def signer(home: Path) -> Signer:
    """Who signs the releases of `home`; the key is made on first use."""
    key = signing.key(home / releases.KEY)
    return Signer(signing.public(key), partial(signing.sign, key))


def trust(keys: Path) -> Trust:
    """Trust in the public keys in a file."""
    return Trust(signing.trusted(keys), signing.signed)


def _one(home: Path, number: int) -> Release:
    if number:
        return releases.read(home, number)
    present = releases.in_service(home)
    if present is None:
        raise DataError(f"no release of {home} is in service; name one by its number")
    return present


def _pack(release: Release, present: Release | None) -> dict[str, Any]:
    serving = present is not None and present.number == release.number
    return {**release.card, "digest": release.digest, "in_service": serving}


def _table(found: list[Release], present: Release | None) -> Table:
    from rich.table import Table

    heads = ("release", "made", "domain", "accuracy", "worst", "epsilon", "parent")
    table = Table(*heads, box=None, header_style="dim")
    for release in found:
        card, scores = release.card, list(release.card.get("accuracy", {}).values())
        star = " *" if present is not None and present.number == release.number else ""
        table.add_row(
            release.name + star,
            str(card["created"])[:16].replace("T", " "),
            str(card.get("domain", DASH)),
            percent(sum(scores) / len(scores)) if scores else DASH,
            percent(min(scores)) if scores else DASH,
            _epsilon(card),
            _parent(card["parent"]),
        )
    return table


def _parent(parent: Mapping[str, Any] | None) -> str:
    return DASH if parent is None else f"{parent['number']:04d}"


def _epsilon(card: Mapping[str, Any]) -> str:
    spent = card.get("epsilon")
    return DASH if spent is None else f"{spent:.3g}"


def mirrored(home: Path, uri: str, name: str) -> None:
    """Bring a registered model of MLflow up to the releases."""
    from ..server.mlflow_mirror import mirror

    fresh = ", ".join(f"{number:04d}" for number in mirror(home, uri, name))
    typer.echo(f"{name} at {uri}: {f'new {fresh}' if fresh else 'nothing new'}")
