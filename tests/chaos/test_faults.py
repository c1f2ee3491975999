"""The faults themselves: what a schedule draws, and that each does what it says."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from clock import Clock, compiled
from network import CUT, STALL, Network
from schedules import KINDS, drawn


def test_a_schedule_is_its_seed_s_and_fifty_hold_every_fault():
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    all_ = [fault for seed in range(50) for fault in drawn(seed).faults]
    assert all(1 <= len(drawn(seed).faults) <= 4 for seed in range(50))
    kinds = Counter(fault.kind for fault in all_)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 10
    for kind in ("kill", "pause"):
        hit = {fault.target.split()[0] for fault in all_ if fault.kind == kind}
        parties = {"superlink", "executor", "serverapp", "server", "keyholder", "node", "worker"}
        assert parties | {"client"} <= hit
    assert {f.how for f in all_ if f.kind == "network"} == {"cut", "stall", "reset"}
    assert {f.target.split("-")[0] for f in all_ if f.kind == "disk"} == {"server", "client"}


def test_a_clock_jumps_for_those_who_look_at_it_and_no_other(tmp_path):
    library = compiled(tmp_path)
    if library is None:
        pytest.skip("no compiler here: clocks stand still")
    clock = Clock(tmp_path / "clock", library)
    code = (
        "import datetime, sys, time\n"
        "while sys.stdin.readline():\n"
        "    now = datetime.datetime.now().timestamp()\n"
        "    print(time.time(), now, time.monotonic(), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def asked():
        process.stdin.write("\n")
        process.stdin.flush()
        return [float(word) for word in process.stdout.readline().split()]

    for jump in (0.0, 86400.0, -3600.25, 0.0):
        clock.jump(jump)
        told, day, monotonic = asked()
        assert told == pytest.approx(time.time() + jump, abs=5.0)
        assert day == pytest.approx(told, abs=5.0)
        assert monotonic == pytest.approx(time.monotonic(), abs=5.0)
    process.stdin.close()
    assert process.wait(20) == 0


@pytest.fixture
def echo():
    """A port that gives back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def _echo(connection):
    with connection:
        try:
            while data := connection.recv(1024):
                connection.sendall(data)
        except OSError:
            return


def test_a_line_is_cut_held_still_reset_and_sound_again(echo):
    network = Network()
    line = network.line(echo)

    def through():
        with socket.create_connection(("127.0.0.1", line.port), timeout=5) as end:
            end.settimeout(1.0)
            end.sendall(b"word")
            return end.recv(16)

    assert through() == b"word"
    network.tell(line, CUT)
    with pytest.raises(OSError, match=r"reset|refused|Broken"):
        assert through() == b"word"
    network.tell(line, STALL)
    with pytest.raises(TimeoutError):
        through()
    network.tell(line, "")
    assert through() == b"word"
    with socket.create_connection(("127.0.0.1", line.port), timeout=5) as end:
        end.sendall(b"word")
        assert end.recv(16) == b"word"
        network.reset(line)
        with pytest.raises(ConnectionResetError):
            end.recv(16)
    assert through() == b"word"
    network.close()
