"""`perennial up`: all parties of a fleet on this machine, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import typer

from ..core.errors import DataError, RunError
from ..core.fleet import read_client, read_server
from ..core.processes import Program, Watch
from ..privacy.keys import PASSPHRASE, PASSPHRASE_FILE
from .provisioning import KEYHOLDER, SERVER, UPDATE
from .stopping import stopping
from .updating import GATED_OUT

_STOP_S = 90.0  # a service stops parts of its own


def up(home: Path, updates: int) -> None:
    """Run key holder, server and clients of `home` until stopped, or until so many updates.

    Args:
        home: as `perennial init --loopback` made it.
        updates: how many to make before all are stopped; 0 to run until SIGTERM or Ctrl-C.

    Raises:
        PerennialError: it is no fleet, a party does not come up, or an update fails.
    """
    watch = Watch(_parties(home.resolve()), home / "logs")
    made = _Updates(home / UPDATE, updates)
    try:
        with stopping() as stopped:
            watch.run(lambda: stopped() or made.over(), made.begin)
    finally:
        made.stop()
    if made.failed == GATED_OUT:
        typer.echo("an update was gated out; what was in service before stays there")
        raise typer.Exit(GATED_OUT)
    if made.failed > 0:
        raise RunError(f"an update failed with code {made.failed}; logs are in {home / 'logs'}")


def _parties(home: Path) -> Sequence[Program]:
    server = home / SERVER / "server.toml"
    if not server.exists() or not (home / UPDATE).exists():
        raise DataError(
            f"{home} must be a fleet; it is none. Make one: perennial init {home} --loopback"
        )
    clients = sorted(home.glob("client-*/client.toml"))
    return [
        *_keyholder(home),
        _service(server, "server", read_server(server).status),
        *(_service(path, "client", read_client(path).status) for path in clients),
    ]


def _keyholder(home: Path) -> Sequence[Program]:
    file, ready = home / KEYHOLDER / "keyholder.toml", home / KEYHOLDER / "ready"
    if not file.exists():
        return ()
    secret = home / KEYHOLDER / "passphrase"
    known = {PASSPHRASE_FILE: str(secret)} if secret.exists() else {}
    if not known and not {PASSPHRASE, PASSPHRASE_FILE} & os.environ.keys():
        raise DataError(f"the key holder's passphrase must be in {PASSPHRASE_FILE}")
    ready.unlink(missing_ok=True)
    return (Program(KEYHOLDER, _perennial(KEYHOLDER, file), ready.exists, home, known),)


def _service(file: Path, word: str, status: str) -> Program:
    name = file.parent.name
    if not status:
        raise DataError(f"{file} must have a status address, so that it can be told to be ready")
    return Program(
        name,
        _perennial(word, file),
        lambda: _is_ready(status),
        file.parent,
        start_s=180.0,
        stop_s=_STOP_S,
    )


def _perennial(word: str, file: Path) -> Sequence[str]:
    return (sys.executable, "-m", "perennial", word, str(file))


def _is_ready(status: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{status}/readyz", timeout=2.0):
            return True
    except (OSError, urllib.error.URLError):
        return False


class _Updates:
    """Updates made one after another in a thread, once all parties are up."""

    def __init__(self, file: Path, count: int) -> None:
        self.failed = 0
        self._file, self._left, self._done = file, count, threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """All parties are up: say so, and make the updates."""
        typer.echo(f"all parties are up; update with: perennial update {self._file}")
        if self._left:
            threading.Thread(target=self._make, daemon=True).start()

    def over(self) -> bool:
        """Whether all updates were made, or one failed."""
        return self._done.is_set()

    def stop(self) -> None:
        """End the update that is under way; the next call goes on with it."""
        self._left = 0
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _make(self) -> None:
        try:
            while self._left and not self.failed:
                self._left -= 1
                self._process = subprocess.Popen(_perennial("update", self._file))
                self.failed = self._process.wait()
        finally:
            self._done.set()
