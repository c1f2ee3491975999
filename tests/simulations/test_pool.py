"""Clients in processes: each in its own for good, replies for the dead, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict

from perennial.server.app import exchange
from perennial.simulations.grid import Nodes, SimulatedGrid

pytestmark = pytest.mark.integration


@pytest.fixture
def grid(monkeypatch):
    # Spawned workers import the app by name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with SimulatedGrid(Nodes("pool_app:app", 5, 1, {}), workers=2) as it:
        yield it


def ask(grid, **task):
    content = RecordDict({"task": ConfigRecord({"round": 1, **task})})
    nodes = list(grid.get_node_ids())
    messages = [grid.create_message(content, "train", node, "g", ttl=60.0) for node in nodes]
    return {reply.metadata.src_node_id: reply for reply in exchange(grid, messages, 60.0)}


def test_each_client_lives_in_one_process_and_keeps_its_context(grid):
    first, second = ask(grid), ask(grid)
    pids = {node: reply.content["metrics"]["pid"] for node, reply in first.items()}
    assert len(set(pids.values())) == 2
    assert os.getpid() not in pids.values()
    assert {n: r.content["metrics"]["pid"] for n, r in second.items()} == pids
    assert [r.content["metrics"]["count"] for r in second.values()] == [2] * 5


def test_a_worker_that_is_killed_costs_one_reply(grid):
    replies = ask(grid, die=2)
    errors = [reply.error.reason for reply in replies.values() if reply.has_error()]
    assert errors == ["client process died"]
    assert len(replies) == 5
    assert not any(reply.has_error() for reply in ask(grid).values())


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from perennial.simulations.grid import Nodes, SimulatedGrid\n"
        "if __name__ == '__main__':\n"
        "    grid = SimulatedGrid(Nodes('pool_app:app', 2, 1, {}), workers=2)\n"
        "    print(*[p.pid for p, _ in grid._pool._workers], flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def test_an_interrupt_is_the_parent_s_to_answer(grid):
    pids = {reply.content["metrics"]["pid"] for reply in ask(grid).values()}
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert {reply.content["metrics"]["pid"] for reply in ask(grid).values()} == pids
