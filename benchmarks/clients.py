"""Many trivial clients on this machine: seconds a round, and from start to the first round's end.

The same two apps run on the simulated grid (in process, with protobuf bytes, in two processes)
and on Flower's own engine, which is Ray with two actors. Each cell is a process of its own, so
that starts count; sides are interleaved.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import Row, median, progress, run

HERE = Path(__file__).resolve().parent
SIZE = 25_000  # float32 values: 100 KB

OURS = """
import sys; sys.path.insert(0, {here!r})
from perennial.simulations.grid import Nodes, SimulatedGrid
from flwr.app import Context, RecordDict
if __name__ == "__main__":
    with SimulatedGrid(Nodes("trivial:client", {clients}, 1, {{}}), {options}) as grid:
        from trivial import server
        server(grid, Context(1, 1, {{}}, RecordDict(), {{}}))
"""
RAY = """
import sys; sys.path.insert(0, {here!r})
from flwr.simulation import run_simulation
from trivial import client, server
if __name__ == "__main__":
    run_simulation(server, client, {clients}, backend_config={{
        "client_resources": {{"num_cpus": 1, "num_gpus": 0.0}},
        "init_args": {{"include_dashboard": False, "num_cpus": 2}}}})
"""
SIDES = {
    "in process": (OURS, ""),
    "in process, protobuf bytes": (OURS, "strict_wire=True"),
    "two processes": (OURS, "workers=2"),
    "Flower's engine (Ray, 2 actors)": (RAY, ""),
}


def cell(side: str, clients: int, rounds: int) -> tuple[list[float], float]:
    """Seconds of each round, and seconds from the start of the process to its first round's end."""
    code, options = SIDES[side]
    with tempfile.TemporaryDirectory() as folder:
        out, script = Path(folder) / "out.json", Path(folder) / "side.py"
        script.write_text(code.format(here=str(HERE), clients=clients, options=options))
        environment = {
            **os.environ,
            "TRIVIAL_OUT": str(out),
            "TRIVIAL_SIZE": str(SIZE),
            "TRIVIAL_ROUNDS": str(rounds),
            "TRIVIAL_CLIENTS": str(clients),
            "PYTHONPATH": str(HERE),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        start = time.time()
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = json.loads(out.read_text())
    first = found["ended"] - start - sum(found["seconds"][1:])
    return found["seconds"], first


def measure(quick: bool) -> list[Row]:
    """Medians over the rounds after the first, and of the starts."""
    rows = []
    counts = [10, 100] if quick else [10, 100, 1000]
    for clients in counts:
        rounds: dict[str, list[float]] = {side: [] for side in SIDES}
        starts: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(1 if quick else 3):
            for side in SIDES:
                if "Ray" in side and not _has_ray():
                    continue
                number = 3 if "Ray" in side else 6
                seconds, first = cell(side, clients, number)
                rounds[side] += seconds[1:]
                starts[side].append(first)
                progress(
                    f"{clients} clients, {side}: {median(seconds[1:]):.4f} s, first {first:.2f} s"
                )
        for side in SIDES:
            if not rounds[side]:
                continue
            bar = clients == 1000 and side == "in process"
            rows.append(
                Row(
                    f"{clients} clients, {side}: a round",
                    median(rounds[side]),
                    "s",
                    0.3 if bar else None,
                )
            )
            rows.append(
                Row(
                    f"{clients} clients, {side}: start to first round's end",
                    median(starts[side]),
                    "s",
                    2.0 if bar else None,
                )
            )
    return rows


def _has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


if __name__ == "__main__":
    run("Trivial clients, 100 KB each", measure)
