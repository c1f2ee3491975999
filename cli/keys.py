"""`perennial keys`: make, renew and list the keys of encrypted sums."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

import typer

from ..core import check
from ..core.errors import ConfigError, DataError, Fault
from ..core.sums import Scheme
from ..privacy import keys
from .keyholder import passphrase_of


def make(text: str, folder: Path) -> None:
    """Make the first key of the config in `text`, in `folder`.

    Raises:
        ConfigError: the config has faults, or its sum needs no key.
        DataError: the folder holds keys already, or the passphrase is short.
    """
    config = check.read(text)
    scheme: Scheme | None = check.build(config, "secure_sum").scheme
    if scheme is None:
        problem = f"{config.secure_sum.name!r} needs no key"
        raise ConfigError([Fault("secure_sum.name", problem, "name a sum that is encrypted")])
    _tell(keys.create(folder, scheme, passphrase_of(new=True)), folder)


def renew(folder: Path) -> None:
    """Make a new generation of the keys in `folder`, from now on the current one.

    Raises:
        DataError: there are none, or the passphrase does not open them.
    """
    _tell(keys.rotate(folder, passphrase_of()), folder)
    typer.echo("restart the key holder, so that it takes the new key")


def show(folder: Path, *, as_json: bool) -> None:
    """Print the generations in `folder`, the oldest first.

    Raises:
        DataError: there are none, or a card is damaged.
    """
    current = keys.card(folder)
    rows = [_row(folder, number, current) for number in keys.generations(folder)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console

    Console().print(_table(rows))


def identity(folder: Path) -> None:
    """Print the identity of the client whose folder this is."""
    from ..privacy.vault import identity as identity_of

    try:
        typer.echo(identity_of(folder))
    except OSError as error:
        raise DataError(f"{folder} must be a folder that can be written: {error}") from error


def verify(log: Path) -> None:
    """Check the chain of an audit log and say what it holds.

    Raises:
        DataError: the chain is broken, or there is no log.
    """
    from ..privacy import audit_log

    events = [entry["event"] for entry in audit_log.entries_of(log)]
    counts = {name: events.count(name) for name in ("opened", "repeated", "refused")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    typer.echo(f"{len(events)} lines, chain unbroken: {told}")


def words(scheme: Scheme) -> str:
    """A scheme in one line, as `bfv, degree 4096, q 58 bits, t 48 bits, symmetric`."""
    chain = "+".join(str(prime.bit_length()) for prime in scheme.primes)
    plain = f"t {scheme.modulus.bit_length()} bits"
    if scheme.name != "bfv":
        plain = f"scale 2^{math.log2(scheme.scale):g}"
    return f"{scheme.name}, degree {scheme.degree}, q {chain} bits, {plain}, {scheme.model}"


def _tell(made: keys.Card, folder: Path) -> None:
    holder = keys.generation_folder(folder, made.generation) / keys.HOLDER
    given = keys.client_path(folder)
    secret = made.scheme.model == "symmetric"
    typer.echo(f"fingerprint  {made.fingerprint}")
    typer.echo(f"scheme       {words(made.scheme)}")
    typer.echo(f"key holder   {holder}  (encrypted)")
    typer.echo(f"clients      {given}  ({'SECRET' if secret else 'public'})")
    if secret:
        typer.echo("hand that file to each client over a channel you trust, then delete it here")


def _row(folder: Path, number: int, current: keys.Card) -> dict[str, Any]:
    card, home = keys.card(folder, number), keys.generation_folder(folder, number)
    try:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sorted(home.iterdir())}
    except OSError as error:
        raise DataError(f"{home} must be a folder that can be read: {error}") from error
    return {
        "generation": number,
        "current": number == current.generation,
        "fingerprint": card.fingerprint,
        "scheme": words(card.scheme),
        "created": card.created,
        "files": {name: f"{mode:04o}" for name, mode in modes.items()},
    }


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim")
    table.add_column("generation", no_wrap=True)
    table.add_column("fingerprint, scheme, made, files")
    for row in rows:
        mark = " (current)" if row["current"] else ""
        files = ", ".join(f"{name} {mode}" for name, mode in row["files"].items())
        lines = (row["fingerprint"], row["scheme"], row["created"], files)
        table.add_row(Text(f"{row['generation']:04d}{mark}"), Text("\n".join(lines)))
    return table
