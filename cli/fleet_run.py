"""A run on a server's own clients: given to its SuperLink, followed to its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import tomli_w

from ..core import wire
from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.fleet import Server
from ..server.service import flwr

RUN = "flower-run.json"
"""File, in the run's folder, with the id of the Flower run that works on it."""

_POLL_S = 2.0
_PATIENCE_S = 300.0  # with a server that does not answer
_OVER = "finished"
_WELL = "finished:completed"
_UNKNOWN = "finished:unknown"  # of a run that the SuperLink's database has not, or not any more


def run_on(server: Server, text: str, folder: Path) -> None:
    """Have the clients of `server` run the config in `text`, and wait for the end.

    A run that is under way in this folder, from a call that was cut short, is followed, not begun
    again.

    Args:
        server: which runs on this machine.
        text: the TOML text.
        folder: of the run; the server's own process writes to it.

    Raises:
        RunError: the server cannot be reached, or the run failed.
    """
    found = _under_way(server, folder) or _begun(server, text, folder)
    while not (status := _patiently(server, found)).startswith(_OVER):
        time.sleep(_POLL_S)
    if status != _WELL:
        raise RunError(
            f"the run on the server's clients ended as {status!r}; the log of the executor, below "
            f"{Path(server.state) / 'logs'}, says why. The same command goes on with it."
        )


def _under_way(server: Server, folder: Path) -> str:
    path = folder / RUN
    if not path.exists():
        return ""
    found = str(json.loads(path.read_bytes())["run-id"])
    return found if not _status(server, found).startswith(_OVER) else ""


def _begun(server: Server, text: str, folder: Path) -> str:
    overrides = {wire.CONFIG_KEY: text, wire.FOLDER_KEY: str(folder.resolve())}
    path = folder / "flower-run.toml"
    write_atomically(path, tomli_w.dumps(overrides), 0o600)
    bundle = str(Path(server.state) / "bundle")
    told = _json(server, "run", bundle, "here", "--run-config", str(path.resolve()))
    write_atomically(folder / RUN, json.dumps({"run-id": str(told["run-id"])}))
    return str(told["run-id"])


def _patiently(server: Server, run_id: str) -> str:
    """The run's status; a server that is away for a while, to start again, is waited for."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _status(server, run_id)
        except RunError:
            if time.monotonic() > end:
                raise
            time.sleep(_POLL_S)


def _status(server: Server, run_id: str) -> str:
    told = _json(server, "list", "here", "--run-id", run_id)
    runs = told.get("runs") or [{}]
    return str(runs[0].get("status", _UNKNOWN))


def _json(server: Server, *words: str) -> dict[str, Any]:
    done = flwr(server, *words, "--format", "json")
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = {}
    if isinstance(told, dict) and "run id not found" in str(told).lower():
        return {}
    if done.returncode or not isinstance(told, dict) or not told.get("success"):
        why = (done.stderr or done.stdout).strip()[-400:] or f"code {done.returncode}"
        raise RunError(
            f"the server at {server.address} must answer `flwr {words[0]}`: {why}. Is `perennial "
            "server` running?"
        )
    return told
