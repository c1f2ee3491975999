"""A client as a service: the SuperNode that speaks to the server, and the worker behind it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core import flower
from ..core.errors import DataError
from ..core.fleet import Client
from ..core.plugins import ALLOWED
from ..core.processes import Program
from ..core.signed import NODE_KEY


def programs(client: Client, bundle: str) -> Sequence[Program]:
    """What runs for a client, in the order in which it starts; its folders are made.

    Args:
        client: its file.
        bundle: SHA-256 of this package's own bundle.

    Raises:
        DataError: a file that it needs is not there.
    """
    for path, what in ((client.tls.ca, "[tls] ca"), (client.key, "key")):
        if not Path(path).is_file():
            raise DataError(f"{path} must be the file of {what}; there is none")
    state = Path(client.state)
    home = state / "flower"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    own, ready = f"127.0.0.1:{flower.free_port()}", state / "worker.ready"
    ready.unlink(missing_ok=True)
    secret = str(flower.secret(state))
    node = [
        flower.program("flower-supernode"),
        *("--superlink", client.server, "--root-certificates", client.tls.ca),
        *("--auth-supernode-private-key", client.key),
        *("--host", "127.0.0.1", "--port", own.rpartition(":")[2]),
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--node-config", _told(client)),
    ]
    allowed = [word for value in (bundle, *client.bundles) for word in ("--allow", value)]
    worker = [
        *(sys.executable, "-m", "perennial", "worker", "--address", own, "--secret", secret),
        *("--ready", str(ready), *allowed),
    ]
    environment = flower.environment(home)
    return (
        Program("node", node, lambda: flower.answers(own), home, environment),
        Program(
            "worker",
            worker,
            ready.exists,
            Path(client.home),
            {
                **environment,
                "OMP_NUM_THREADS": "1",
                ALLOWED: ",".join(client.plugins),
                NODE_KEY: client.key,
            },
        ),
    )


def work_of(client: Client) -> Path:
    """The file in which the worker says what it did."""
    return Path(client.state) / "worker.json"


def _told(client: Client) -> str:
    """The node's config in Flower's own words."""
    own: Mapping[str, str | int | float] = {
        "partition-id": client.index,
        **({"num-partitions": client.clients} if client.clients else {}),
        "state-folder": str(Path(client.state) / "client"),
        **client.node,
    }
    return " ".join(f"{name}={json.dumps(value)}" for name, value in own.items())
