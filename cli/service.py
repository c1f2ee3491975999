"""`perennial server`, `perennial client` and the worker behind a client, until they are stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..core.errors import DataError, PerennialError
from ..core.fleet import read_client, read_server
from ..core.log import to_stderr
from ..core.processes import UP, Program, Watch
from ..core.reach import Reach
from ..core.status import showing
from ..server.tally import Tally
from .stopping import stopping

if TYPE_CHECKING:
    from ..server.roll import Change
    from .metrics import Source

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_GRACE_S = 15.0  # less than its supervisor gives it before the kill


def serve(file: Path) -> None:
    """Run a server until SIGTERM or Ctrl-C.

    Raises:
        PerennialError: its file has faults, or it does not come up.
    """
    from ..server import roll, service

    server = read_server(file)
    parts = service.programs(server)
    service.prepare(server)

    seen: dict[str, str] = {}
    fault = ""

    def up() -> None:
        change = roll.update(server, service.flwr)
        seen.update(roll.keys(server))
        typer.echo(f"server up at {server.address}; {len(change.let_in)} clients newly let in")
        _say_out(change)

    def often() -> None:
        nonlocal fault
        try:
            if (found := roll.keys(server)) == seen:
                return
            change = roll.update(server, service.flwr)
        except PerennialError as error:  # no reason to stop serving those who are in
            if str(error) != fault:
                logger.error("%s", error)
            fault = str(error)
            return
        fault = ""
        seen.clear()
        seen.update(found)
        for name in change.let_in:
            typer.echo(f"client {name} is let in")
        _say_out(change)

    from .metrics import runs

    source = runs(Tally(service.runs_of(server)))
    _watched(parts, Path(server.state) / "logs", server.status, up, source, often)


def _say_out(change: Change) -> None:
    for name in change.let_out:
        typer.echo(f"client {name} is let out")


def attend(file: Path) -> None:
    """Run a client until SIGTERM or Ctrl-C.

    Raises:
        PerennialError: its file has faults, or it does not come up.
    """
    from ..client import service
    from .metrics import work as figures

    client = read_client(file)
    parts = service.programs(client, own_bundle())
    reach = Reach(client.server, client.tls.ca)

    def up() -> None:
        reach.look()
        where = f"its server, {client.server}, is {'reached' if reach.state == UP else 'away'}"
        typer.echo(f"client up; {where}")

    _watched(
        parts,
        Path(client.state) / "logs",
        client.status,
        up,
        figures(service.work_of(client)),
        reach.look,
        lambda: {"server": reach.state},
    )


def work(address: str, secret: Path, ready: Path, allowed: Sequence[str]) -> None:
    """Take a node's tasks until SIGTERM."""
    from ..client.worker import Desk, work

    to_stderr()
    with stopping() as stopped:
        threading.Thread(target=_end_late, args=(stopped,), daemon=True).start()
        desk = Desk(address, secret.read_bytes(), frozenset(allowed))
        work(desk, stopped, ready, ready.with_suffix(".json"))


def _end_late(stopped: Callable[[], bool]) -> None:
    """End this process some time after it was told to stop, whatever it is in the middle of.

    Flower's client asks a node that is gone for ever. Whoever told the worker to stop may be gone
    too, and nobody left to kill it: it would live on beside the next one.
    """
    while not stopped():
        time.sleep(_LOOK_S)
    time.sleep(_GRACE_S)
    logger.warning("the worker did not stop in %g s; it ends now", _GRACE_S)
    os._exit(1)


def own_bundle() -> str:
    """SHA-256 of the bundle of this package's services, 64 hex digits."""
    from ..server.bundle import write_service_bundle
    from ..simulations.compat import packed

    with tempfile.TemporaryDirectory() as folder:
        return hashlib.sha256(packed(write_service_bundle(Path(folder) / "app"))).hexdigest()


def _watched(
    parts: Sequence[Program],
    logs: Path,
    status: str,
    up: Callable[[], None],
    source: Source,
    often: Callable[[], None] = lambda: None,
    beside: Callable[[], Mapping[str, str]] = dict,
) -> None:
    from .metrics import parts as of_parts
    from .metrics import text_of

    to_stderr()
    watch = Watch(parts, logs)
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{logs} must be a folder to write to: {error}") from error

    def shown_to() -> bytes:
        return text_of(of_parts(watch), source)

    def states() -> Mapping[str, str]:
        return {**watch.states(), **beside()}

    shown = showing(status, states, UP, shown_to) if status else nullcontext("")
    with stopping() as stopped, shown as where:
        if where:
            typer.echo(f"status: http://{where}/readyz")
        watch.run(stopped, up, often)
    typer.echo("stopped")
