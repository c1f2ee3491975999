"""Programs under watch: order, restarts, faults, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from perennial.core.errors import RunError
from perennial.core.processes import DOWN, STARTING, UP, Program, Watch
from perennial.core.status import showing

pytestmark = pytest.mark.integration  # programs that start, hang and die

SLEEP = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def sleeper(name, folder, **options):
    mark = folder / f"{name}.up"
    command = [sys.executable, "-c", SLEEP, str(mark)]
    return Program(name, command, mark.exists, **options)


def until(ready, seconds=20.0):
    """A `stopped` that ends the watch when `ready()`, and fails after a while."""
    end = time.monotonic() + seconds

    def stopped():
        assert time.monotonic() < end
        return ready()

    return stopped


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_programs_start_in_order_and_all_are_stopped(tmp_path):
    order = []

    def ready(name):
        def asked():
            there = (tmp_path / f"{name}.up").exists()
            if there and name not in order:
                order.append(name)
            return there

        return asked

    parts = [
        Program(name, [sys.executable, "-c", SLEEP, str(tmp_path / f"{name}.up")], ready(name))
        for name in ("one", "two")
    ]
    watch, seen = Watch(parts, tmp_path / "logs"), []

    def up():
        seen.append((watch.states(), [life.process.pid for life in watch._lives]))

    watch.run(until(lambda: bool(seen)), up)
    states, pids = seen[0]
    assert states == {"one": UP, "two": UP}
    assert order == ["one", "two"]
    assert watch.states() == {"one": DOWN, "two": DOWN}
    assert watch.starts() == {"one": 1, "two": 1}
    assert not any(map(alive, pids))


def test_the_second_waits_for_the_first(tmp_path):
    first = Program("one", [sys.executable, "-c", "import time; time.sleep(60)"], lambda: False)
    watch = Watch([first, sleeper("two", tmp_path)], tmp_path / "logs")
    end = time.monotonic() + 1.0
    watch.run(lambda: time.monotonic() > end)
    assert watch.starts() == {"one": 1}
    assert not (tmp_path / "two.up").exists()


def test_a_program_that_dies_is_started_again_and_the_others_live_on(tmp_path):
    watch = Watch([sleeper("one", tmp_path), sleeper("two", tmp_path)], tmp_path / "logs")
    killed, pids = [], []

    def up():
        pids.extend(life.process.pid for life in watch._lives)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(True)

    def back():
        there = watch.starts().get("one") == 2 and watch.states() == {"one": UP, "two": UP}
        if there:
            assert alive(pids[1])
        return bool(killed) and there

    watch.run(until(back), up)
    assert watch.starts() == {"one": 2, "two": 1}


@pytest.mark.parametrize("deaf", [False, True])
def test_what_a_dead_program_started_ends_before_it_is_started_again(deaf, tmp_path):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    parent = (
        "import os, pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import signal, time; {ignore}"
        "print(flush=True); time.sleep(600)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "with open(sys.argv[1], 'a') as file: file.write(f'{os.getpid()} {child.pid}\\n')\n"
        "time.sleep(600)\n"
    )
    mark = tmp_path / "pids"
    part = Program("parent", [sys.executable, "-c", parent, str(mark)], mark.exists)
    watch = Watch([part], tmp_path / "logs")

    def pids():
        return [tuple(map(int, line.split())) for line in mark.read_text().splitlines()]

    watch.run(until(lambda: mark.exists() and len(pids()) == 2), lambda: os.kill(pids()[0][0], 9))
    end = time.monotonic() + 10
    while any(alive(pid) for life in pids() for pid in life):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_program_that_never_comes_up_ends_the_watch_with_its_last_words(tmp_path):
    broken = Program("broken", [sys.executable, "-c", "raise SystemExit('no such key')"], bool)
    with pytest.raises(RunError, match=r"(?s)broken must come up.*code 1.*no such key"):
        Watch([broken], tmp_path / "logs").run(until(lambda: False))


def test_a_program_that_hangs_before_it_is_up_is_stopped_and_counted(tmp_path):
    hung = Program(
        "hung", [sys.executable, "-c", "import time; time.sleep(60)"], lambda: False, start_s=0.3
    )
    watch = Watch([hung], tmp_path / "logs")
    with pytest.raises(RunError, match="hung must come up; it ended 3 times"):
        watch.run(until(lambda: False))


def test_one_that_does_not_stop_is_killed_with_what_it_started(tmp_path):
    stubborn = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    mark = tmp_path / "child"
    part = Program(
        "stubborn",
        [sys.executable, "-c", stubborn, str(mark)],
        lambda: mark.exists() and bool(mark.read_text()),
        stop_s=0.5,
    )
    watch, up = Watch([part], tmp_path / "logs"), []
    watch.run(until(lambda: bool(up)), lambda: up.append(True))
    child = int(mark.read_text())
    end = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells children of a parent's death")
def test_when_the_watcher_is_killed_its_programs_end(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from perennial.core.processes import Program, Watch\n"
        "home = Path(sys.argv[1])\n"
        "mark = home / 'up'\n"
        f"command = [sys.executable, '-c', {SLEEP!r}, str(mark)]\n"
        "watch = Watch([Program('one', command, mark.exists)], home / 'logs')\n"
        "pid = lambda: (home / 'pid').write_text(str(watch._lives[0].process.pid))\n"
        "watch.run(lambda: False, pid)\n"
    )
    watcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    end = time.monotonic() + 30
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    watcher.kill()
    watcher.wait()
    while alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)


def asked(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_status_tells_health_and_readiness():
    states = {}
    with showing("127.0.0.1:0", lambda: states, UP) as where:
        assert asked(f"http://{where}/healthz") == (200, {"status": "alive"})
        assert asked(f"http://{where}/readyz") == (503, {"ready": False, "parts": {}})
        states.update(one=UP, two=STARTING)
        assert asked(f"http://{where}/readyz")[0] == 503
        states["two"] = UP
        assert asked(f"http://{where}/readyz") == (200, {"ready": True, "parts": states})
        assert asked(f"http://{where}/etc/passwd")[0] == 404
        with (
            pytest.raises(RunError, match="must be an address that is free"),
            showing(where, lambda: states, UP),
        ):
            pass
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{where}/healthz", timeout=1)
