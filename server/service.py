"""A server as a service: the SuperLink that nodes speak to, and the executor of server apps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from ..core import flower
from ..core.errors import DataError, RunError
from ..core.files import write_atomically
from ..core.fleet import Server
from ..core.processes import Program
from ..core.signed import NODES
from . import roll
from .bundle import write_service_bundle
from .roll import DATABASE
from .tally import RUNS

_PATIENCE_S = 120.0
_TIDY = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Has libc give back what the bodies of requests took; otherwise its threads hold on to pieces."""


def programs(server: Server) -> Sequence[Program]:
    """What runs for a server, in the order in which it starts; its folders are made.

    Raises:
        DataError: a file that it needs is not there.
    """
    for path in (server.tls.ca, server.tls.certificate, server.tls.key):
        if not Path(path).is_file():
            raise DataError(f"{path} must be a file of [tls]; there is none. See `perennial init`.")
    state = Path(server.state)
    home = state / "flower"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    host, _, port = server.address.rpartition(":")
    secret = str(flower.secret(state))
    link = [
        *(sys.executable, "-m", f"{__package__}.superlink"),
        *("--host", host.strip("[]"), "--port", port),
        *("--ssl-ca-certfile", server.tls.ca),
        *("--ssl-certfile", server.tls.certificate, "--ssl-keyfile", server.tls.key),
        *("--enable-supernode-auth", "--database", str(state / DATABASE)),
        # Not of the SuperLink's own making: what it starts dies with it, and the run with that.
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        "--disable-runtime-dependency-installation",
    ]
    executor = [
        flower.program("flower-superexec"),
        *(
            "--runtime-api-address",
            flower.dial(server.address),
            "--root-certificates",
            server.tls.ca,
        ),
        *("--superexec-auth-secret-file", secret),
    ]
    environment = flower.environment(home)
    return (
        Program(
            "superlink",
            link,
            lambda: flower.answers(flower.dial(server.address)),
            home,
            {**environment, **_TIDY},
        ),
        Program(
            "executor",
            executor,
            lambda: True,
            Path(server.home),
            {**environment, RUNS: str(runs_of(server)), NODES: str(state / roll.NODES)},
        ),
    )


def runs_of(server: Server) -> Path:
    """The file in which the folders of the server's runs stand."""
    return Path(server.state) / "runs.jsonl"


def prepare(server: Server) -> Path:
    """What `flwr` needs to speak to the server, and the bundle of all its runs; its folder."""
    state = Path(server.state)
    connection = {"address": flower.dial(server.address), "root-certificates": server.tls.ca}
    settings = {"superlink": {"default": "here", "here": connection}}
    write_atomically(state / "flower" / "config.toml", tomli_w.dumps(settings), 0o600)
    return write_service_bundle(state / "bundle")


def flwr(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `flwr` against the server, as its operator.

    Raises:
        RunError: it does not end.
    """
    environment = flower.environment(Path(server.state) / "flower")
    try:
        return subprocess.run(
            [flower.program("flwr"), *words],
            env={**environment, "HOME": server.state},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"`flwr {words[0]}` must answer within {_PATIENCE_S:g} s; is the server running?"
        ) from error
