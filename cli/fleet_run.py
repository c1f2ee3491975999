"""A run on a server's own clients: given to its SuperLink, followed to its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import tomli_w

from ..core import flower, wire
from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.fleet import Server
from ..server.service import flwr

_POLL_S = 10.0  # asking takes a process of its own, and a second of a core
_LOOK_S = 0.5
_RETRY_S = 2.0
_START_S = 120.0  # for the process of a run to say that it begins
_PATIENCE_S = 300.0  # with a server that does not answer
_OVER = "finished"
_NO_WORD = "its process died before it could say why"
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
    while not (told := _patiently(server, found))[0].startswith(_OVER):
        _rest(folder / "events.jsonl")
    status, why = told
    if status != _WELL:
        raise RunError(
            f"the run on the server's clients ended as {status!r}: {why or _NO_WORD}. The same "
            "command goes on with it."
        )


def _rest(log: Path) -> None:
    """Wait until it is worth to ask: the log says that the run is over, or some time is gone."""
    end = time.monotonic() + _POLL_S
    start = log.stat().st_size if log.exists() else 0
    while time.monotonic() < end:
        time.sleep(_LOOK_S)
        if log.exists() and log.stat().st_size > start:
            with log.open("rb") as file:
                file.seek(start)
                if b'"event":"run_finished"' in file.read():
                    time.sleep(_RETRY_S)  # for the process that wrote it to end
                    return


def _under_way(server: Server, folder: Path) -> str:
    found = flower.run_of(folder)
    if found == "":
        found = _asked_for(server, folder)
    if not found:
        return ""
    return found if not _status(server, found)[0].startswith(_OVER) else ""


def _asked_for(server: Server, folder: Path) -> str:
    """The run that a call asked for which died before it knew its id; empty where there is none.

    Its process says so itself when it begins; until then no second one may be asked for.
    """
    end = time.monotonic() + _START_S
    while not flower.run_of(folder) and time.monotonic() < end:
        runs = _json(server, "list", "here").get("runs") or ()
        if all(str(run.get("status", _UNKNOWN)).startswith(_OVER) for run in runs):
            break
        time.sleep(_RETRY_S)
    return flower.run_of(folder) or ""


def _begun(server: Server, text: str, folder: Path) -> str:
    overrides = {wire.CONFIG_KEY: text, wire.FOLDER_KEY: str(folder.resolve())}
    path = folder / "flower-run.toml"
    write_atomically(path, tomli_w.dumps(overrides), 0o600)
    bundle = str(Path(server.state) / "bundle")
    flower.note_run(folder, "")
    told = _json(server, "run", bundle, "here", "--run-config", str(path.resolve()))
    flower.note_run(folder, str(told["run-id"]))
    return str(told["run-id"])


def _patiently(server: Server, run_id: str) -> tuple[str, str]:
    """As `_status`; a server that is away for a while, to start again, is waited for."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _status(server, run_id)
        except RunError:
            if time.monotonic() > end:
                raise
            time.sleep(_RETRY_S)


def _status(server: Server, run_id: str) -> tuple[str, str]:
    """The run's status, and what its process said when it ended."""
    told = _json(server, "list", "here", "--run-id", run_id)
    found = (told.get("runs") or [{}])[0]
    return str(found.get("status", _UNKNOWN)), str(found.get("status-details") or "").strip(". ")


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
