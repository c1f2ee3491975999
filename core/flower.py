"""Flower's own programs as this package starts them: where they are, and what they are told."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import sys
from pathlib import Path

from .errors import RunError
from .files import write_atomically

SECRET = "tasks.secret"
"""File of what a node or server asks of whoever takes its tasks."""

RUN = "flower-run.json"
"""File, in a run's folder, with the id of the Flower run that works on it; empty from the moment
in which one is asked for until it is known."""

_SECRET_BYTES = 48


def program(name: str) -> str:
    """Path of a program of this environment.

    Raises:
        RunError: it is not there.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RunError(f"{name} must be installed beside python; it is not. Install flwr.")
    return found


def environment(home: Path) -> dict[str, str]:
    """What Flower's programs find in their environment.

    Args:
        home: folder of their own settings.
    """
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        # Flower starts its apps by name.
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    }


def secret(folder: Path) -> Path:
    """The file with the secret of a service; made for its owner alone on first use."""
    path = folder / SECRET
    if not path.exists():
        write_atomically(path, secrets.token_hex(_SECRET_BYTES), 0o600)
    return path


def run_of(folder: Path) -> str | None:
    """Id of the Flower run that works on a run's folder.

    Empty where one was asked for and its id is not known; None where none was asked for.
    """
    path = folder / RUN
    return str(json.loads(path.read_bytes())["run-id"]) if path.exists() else None


def note_run(folder: Path, found: str) -> None:
    """Write down which Flower run works on a run's folder."""
    write_atomically(folder / RUN, json.dumps({"run-id": found}))


def answers(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def dial(address: str) -> str:
    """Where this machine itself reaches a service that listens at `address`."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]", "") else address


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
