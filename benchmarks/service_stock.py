"""A client whose tasks Flower's own executor takes: `python service_stock.py client FILE`.

All is as `perennial client` starts it, but for the worker: in its place stands `flower-superexec`,
which starts a process for each message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from perennial.cli.main import run
from perennial.client import service
from perennial.core import flower
from perennial.core.fleet import Client
from perennial.core.processes import Program

_programs = service.programs


def _stock(client: Client, bundle: str) -> Sequence[Program]:
    node, worker = _programs(client, bundle)
    address = worker.command[worker.command.index("--address") + 1]
    secret = worker.command[worker.command.index("--secret") + 1]
    command = [
        flower.program("flower-superexec"),
        *("--runtime-api-address", address, "--insecure"),
        *("--superexec-auth-secret-file", secret),
    ]
    return node, replace(worker, command=command, ready=lambda: True)


service.programs = _stock

if __name__ == "__main__":
    run()
