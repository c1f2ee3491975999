"""Rows "warm" and "rollback": what a round takes beyond its training, and how fast one goes back.

A loopback fleet of `perennial init`: server, key holder and three clients as processes of their
own, TLS, node keys, encrypted sums, the embedded MiniLM. A round's overhead is its seconds, from
the server's log, less the longest training that a client told. The peer is the same fleet with
Flower's own executor behind each SuperNode, which starts a process for each message.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from table import Row, median, progress

from perennial.core.fleet import read_client, read_server

PERENNIAL = (sys.executable, "-m", "perennial")
STOCK = str(Path(__file__).resolve().parent / "service_stock.py")
CLIENTS = 3
_PATIENCE_S = 400.0
_CONFIG = """
[run]
name = "warm"
seed = 3
[data]
name = "sample"
[shards]
split = "iid"
[model]
layers = 1
[train]
epochs = 2
batch_size = 16
lr = 5e-3
[round]
rounds = {rounds}
max_weight = 1000.0
min_replies = 3
deadline_s = 300.0
[evaluate]
every = 0
[continual]
name = "none"
[secure_sum]
name = "bfv"
bits = 16
clip = 1.0
capacity = 16
[update]
min_accuracy = 0.0
"""


def warm(quick: bool) -> list[Row]:
    """Median overhead of a round beyond training, and how often the model was loaded."""
    sides = {"ours": PERENNIAL} if quick else {"ours": PERENNIAL, "stock": (sys.executable, STOCK)}
    seconds, loads = {}, 0.0
    for side, command in sides.items():
        rounds = 3 if quick else 8 if side == "ours" else 3
        with tempfile.TemporaryDirectory() as name, _fleet(Path(name), rounds, command) as home:
            progress(f"{side}: {CLIENTS} clients are up, an update of {rounds} rounds")
            _update(home)
            seconds[side] = _overheads(home)
            loads = max(_loads(home)) if side == "ours" else loads
            progress(f"{side}: " + ", ".join(f"{s:.1f}" for s in seconds[side]) + " s")
    # The first round finds workers that never loaded a model.
    rows = [
        Row("warm round: beyond its training, median", median(seconds["ours"][1:]), "s", 7.0),
        Row("warm round: models loaded by a client in the update", loads, "", 1.0),
        Row("first round of an update: beyond its training", seconds["ours"][0], "s"),
    ]
    if "stock" in seconds:
        stock = median(seconds["stock"])
        rows.append(Row("round with a process for each message (Flower's executor)", stock, "s"))
    return rows


def rollback(quick: bool) -> list[Row]:
    """Seconds of `perennial releases rollback`, as a process of its own, over two releases."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "service"
        text = (
            _CONFIG.format(rounds=1).split("[secure_sum]")[0].replace("layers = 1", 'name="tiny"')
        )
        config = Path(name) / "update.toml"
        config.write_text(
            f'{text}[update]\nhome = "{home}"\nmin_accuracy = 0.0\nmin_gain = 0.0\n'
            "max_loss = 100.0\n"
        )
        for _ in range(2):
            _done(*PERENNIAL, "update", config, "--quiet")
        spent = []
        for _ in range(3 if quick else 9):
            before, started = _children(), time.perf_counter()
            _done(*PERENNIAL, "releases", "rollback", "--home", home)
            spent.append((time.perf_counter() - started, _children() - before))
            _done(*PERENNIAL, "releases", "promote", "2", "--home", home)
        started = _children()
        _done(sys.executable, "-c", "import typer, rich")
        limit = _children() - started
    wall, cpu = min(s for s, _ in spent), median([s for _, s in spent])
    return [
        Row("rollback: the command, fastest", wall, "s", 1.0),
        Row("rollback: the command, CPU", cpu, "s"),
        Row("python that imports typer and rich and ends, CPU (limit)", limit, "s"),
    ]


@contextmanager
def _fleet(folder: Path, rounds: int, command: Sequence[str]) -> Iterator[Path]:
    """The home of a fleet whose parties are all up; `command` starts its clients."""
    (folder / "text.toml").write_text(_CONFIG.format(rounds=rounds))
    home, running = folder / "fleet", []
    _done(*PERENNIAL, "init", home, "--loopback", "--clients", CLIENTS,
          "--config", folder / "text.toml")  # fmt: skip
    environment = {
        **os.environ,
        "PERENNIAL_KEY_PASSPHRASE_FILE": str(home / "keyholder" / "passphrase"),
    }
    server = home / "server" / "server.toml"
    clients = sorted(home.glob("client-*/client.toml"))
    try:
        for words in (
            (*PERENNIAL, "keyholder", home / "keyholder" / "keyholder.toml"),
            (*PERENNIAL, "server", server),
            *((*command, "client", path) for path in clients),
        ):
            with (folder / f"{Path(str(words[-1])).parent.name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [str(word) for word in words],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            if words[-1] == server:
                _wait(read_server(server).status, folder)
        for path in clients:
            _wait(read_client(path).status, folder)
        yield home
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(60)


def _wait(status: str, folder: Path) -> None:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{status}/readyz", timeout=5) as answer:
                if json.loads(answer.read())["ready"]:
                    return
        except OSError:
            pass
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    raise SystemExit(f"not ready within {_PATIENCE_S:g} s:\n{logs}")


def _update(home: Path) -> None:
    _done(*PERENNIAL, "update", home / "update.toml", "--quiet")


def _overheads(home: Path) -> list[float]:
    """Seconds of each round less the longest training in it."""
    events = next((home / "server" / "service" / "updates").glob("*/events.jsonl"))
    trained, found = list[float](), []
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "reply" and event["ok"]:
            trained.append(event["seconds"])
        elif event["event"] == "round_finished":
            found.append(event["seconds"] - max(trained))
            trained = []
    return found


def _loads(home: Path) -> list[float]:
    found = []
    for path in home.glob("client-*/client.toml"):
        with urllib.request.urlopen(f"http://{read_client(path).status}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found += [float(li.split()[-1]) for li in lines if li.startswith("perennial_loads_total")]
    return found


def _done(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stdout}{done.stderr}")


def _children() -> float:
    """CPU seconds of processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
