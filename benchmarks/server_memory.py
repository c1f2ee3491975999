"""The server's peak memory with 10 and with 400 clients of 4 MB each.

Ours adds each reply as it comes and drops it. The peer is Flower's own FedAvg on the same grid,
with the same clients and one array of the same size. Each cell is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from table import Row, progress, run

HERE = Path(__file__).resolve().parent
SIZE = 1_000_000  # float32 values: 4 MB

OURS = """
import resource, sys; sys.path.insert(0, {here!r})
from perennial.simulations.grid import Nodes, SimulatedGrid
from flwr.app import Context, RecordDict
from trivial import server
with SimulatedGrid(Nodes("trivial:client", {clients}, 1, {{}})) as grid:
    server(grid, Context(1, 1, {{}}, RecordDict(), {{}}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
STOCK = """
import logging, resource, sys; sys.path.insert(0, {here!r})
logging.disable(logging.CRITICAL)
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from perennial.simulations.grid import Nodes, SimulatedGrid
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
app = ClientApp()
@app.train()
def train(message, context):
    arrays = ArrayRecord({{"w": Array(np.ones({size}, np.float32))}})
    metrics = MetricRecord({{"num-examples": 1}})
    return Message(RecordDict({{"arrays": arrays, "metrics": metrics}}), reply_to=message)
import types
module = types.ModuleType("stock"); module.app = app; sys.modules["stock"] = module
with SimulatedGrid(Nodes("stock:app", {clients}, 1, {{}})) as grid:
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    start = ArrayRecord({{"w": Array(np.zeros({size}, np.float32))}})
    strategy.start(grid=grid, initial_arrays=start, num_rounds=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(code: str, clients: int) -> float:
    """Peak resident MiB of one process with `clients` clients, two rounds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "TRIVIAL_OUT": str(Path(folder) / "out.json"),
            "TRIVIAL_SIZE": str(SIZE),
            "TRIVIAL_ROUNDS": "2",
            "TRIVIAL_CLIENTS": str(clients),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        script = code.format(here=str(HERE), clients=clients, size=SIZE)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(quick: bool) -> list[Row]:
    """Peaks, and the ratio of many clients to few."""
    many = 100 if quick else 400
    found = {}
    for name, code in (("ours", OURS), ("Flower's FedAvg", STOCK)):
        for clients in (10, many):
            found[name, clients] = peak(code, clients)
            progress(f"{name}, {clients} clients: {found[name, clients]:.0f} MiB")
    rows = [
        Row(f"{name}, {clients} clients: peak", value, "MiB")
        for (name, clients), value in found.items()
    ]
    ratio = found["ours", many] / found["ours", 10]
    stock = found["Flower's FedAvg", many] / found["Flower's FedAvg", 10]
    return [
        Row(f"ours, {many} clients / 10 clients", ratio, "x", 1.3),
        Row(f"Flower's FedAvg, {many} clients / 10 clients", stock, "x"),
        *rows,
    ]


if __name__ == "__main__":
    run("Server memory, 4 MB a client", measure)
