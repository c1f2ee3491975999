"""Whole runs for the tests: a tiny config, changes to it, kills and resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from perennial.simulations.simulate import simulate

TINY = """
[run]
seed = 11
name = "tiny"
[data]
name = "sample"
[domains]
order = ["bank", "clinic", "shop"]
[shards]
split = "dirichlet"
num_clients = 3
[model]
name = "tiny"
[train]
lr = 2e-2
epochs = 4
[round]
rounds = 3
[continual]
name = "none"
"""
# Half the console script's own start; the same entry point.
COMMAND = [sys.executable, "-m", "perennial"]


def changed(text, **tables):
    """`text` with keys set: `round__rounds=1` is `[round] rounds = 1`."""
    from perennial.cli.overrides import override

    return override(text, [f"{k.replace('__', '.')}={json.dumps(v)}" for k, v in tables.items()])


def run(folder, text):
    simulate(text, folder)
    return json.loads((folder / "report.json").read_text())


def start(folder, *arguments):
    environment = {**os.environ, "PERENNIAL_TEST": "1"}
    return subprocess.Popen(
        [*COMMAND, "simulate", *arguments, "--quiet"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_events(path: Path, count: int, process, pause: float):
    """Until the run has written `count` events, then `pause` seconds more."""
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            time.sleep(pause)
            return
        time.sleep(0.005)


def broken_run(tmp_path, kills, text=TINY, seed=0):
    """A run that is killed `kills` times at seeded points and resumed each time."""
    rng = np.random.default_rng(seed)
    (tmp_path / "c.toml").write_text(changed(text, run__folder=str(tmp_path / "runs")))
    process = start(tmp_path, "c.toml")
    while not (found := list((tmp_path / "runs").glob("*/events.jsonl"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    events = found[0]
    for _ in range(kills):
        written = events.read_bytes().count(b"\n")
        aim = written + int(rng.integers(1, 25))
        wait_for_events(events, aim, process, float(rng.uniform(0, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start(tmp_path, "--resume", str(events.parent))
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    return events.parent, json.loads((events.parent / "report.json").read_text())
