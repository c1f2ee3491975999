"""Row "load": many edge clients over real HTTPS on loopback against `perennial server`.

The clients have keys of their own, which the server was told, and speak Flower's node protocol
(`edge_clients`); each is sent and sends 300 KB a round. The peer is Flower's own FedAvg as the
server app, on the same SuperLink with the same clients, in turns; the limit is the same bytes from
as many connections to a bare HTTPS server, without a store behind it.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from table import Row, median, progress

from perennial.core import flower
from perennial.core.fleet import Server, read_server
from perennial.privacy.node_keys import make_node_key
from perennial.server.bundle import write_service_bundle

HERE = Path(__file__).resolve().parent
SIZE = 75_000  # float32 values: 300 KB
PROCESSES = 4
_MOST_S, _ASK_S = 3600.0, 30.0
_WARM = 3  # rounds in which allocators, caches and connections fill
_CONFIG = '[run]\nname = "load"\n[data]\nname = "sample"\n[model]\nname = "tiny"\n[update]\n'

BARE = """
import sys, uvicorn
async def app(scope, receive, send):
    assert scope["type"] == "http"
    more, size = True, 0
    while more:
        event = await receive()
        size, more = size + len(event.get("body", b"")), event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(size)})
uvicorn.run(app, port=int(sys.argv[1]), ssl_certfile=sys.argv[2], ssl_keyfile=sys.argv[3],
            log_level="error", lifespan="off")
"""


def load(quick: bool) -> list[Row]:
    """Failed replies, the server's memory over the rounds, and seconds a round beside peers."""
    clients, rounds, turns = (40, 3, 1) if quick else (200, 8, 1)
    with tempfile.TemporaryDirectory() as name, _server(Path(name), clients, rounds) as server:
        with _clients(server, Path(name), clients):
            wanted = {"ours": rounds, "stock": max(2, rounds // 4)}
            told: dict[str, list[dict[str, Any]]] = {"ours": [], "stock": []}
            for turn in range(turns):
                for side in told:
                    told[side] += _rounds(server, Path(name), side, wanted[side])
                    seconds = median([line["seconds"] for line in told[side]])
                    progress(f"turn {turn + 1}, {side}: {seconds:.1f} s a round")
        bare = _bare(server, clients, rounds)
        progress(f"bare HTTPS: {bare:.1f} s a round")
    return _rows(told, bare, clients, rounds)


def _rows(
    told: dict[str, list[dict[str, Any]]], bare: float, clients: int, rounds: int
) -> list[Row]:
    ours, stock = told["ours"], told["stock"]
    failed = sum(line["failed"] for line in ours)
    seconds = {side: median([line["seconds"] for line in lines]) for side, lines in told.items()}
    a_round = clients * SIZE * 4 / 2**20
    flat = 2.0 if rounds > _WARM + 3 else None  # of fewer rounds a slope says nothing
    name = f"load, {clients} clients, 300 KB each way: "
    return [
        Row(f"{name}failed of {sum(line['accepted'] for line in ours) + failed} replies", failed,
            "", 0.0),
        # What is kept of each round would grow on and on.
        Row(f"{name}server app grows by, of a round's bytes, a round",
            100.0 * _slope([line["mib"] for line in ours[:rounds]]) / a_round, "%", flat),
        Row(f"{name}SuperLink grows by, of a round's bytes, a round",
            100.0 * _slope([line["link_mib"] for line in ours[:rounds]]) / a_round, "%", flat),
        Row(f"{name}a round / Flower's FedAvg on the same SuperLink",
            seconds["ours"] / seconds["stock"], "x", 1.1),
        Row(f"{name}a round", seconds["ours"], "s"),
        Row(f"{name}a round, Flower's FedAvg", seconds["stock"], "s"),
        Row(f"{name}a round's bytes to a bare HTTPS server (limit)", bare, "s"),
        Row(f"{name}both ways together", 2 * a_round / seconds["ours"], "MiB/s"),
        Row(f"{name}server app, peak", max(line["mib"] for line in ours), "MiB"),
        Row(f"{name}Flower's FedAvg, peak", max(line["mib"] for line in stock), "MiB"),
        Row(f"{name}SuperLink, peak", max(line["link_mib"] for line in ours + stock), "MiB"),
    ]  # fmt: skip


def _slope(values: Sequence[float]) -> float:
    """MiB a round, by least squares over the rounds after the first ones."""
    rest = values[_WARM:]
    return float(np.polyfit(np.arange(len(rest)), rest, 1)[0]) if len(rest) > 1 else 0.0


@contextmanager
def _server(folder: Path, clients: int, rounds: int) -> Iterator[Server]:
    """`perennial server`, up, that knows the keys of `clients`."""
    (folder / "text.toml").write_text(_CONFIG)
    command = [sys.executable, "-m", "perennial"]
    made = (*command, "init", folder / "fleet", "--loopback", "--clients", "1", "--config")
    subprocess.run([*made, folder / "text.toml"], check=True, capture_output=True)
    file = folder / "fleet" / "server" / "server.toml"
    server = read_server(file)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{HERE}",
        "EDGE_SIZE": str(SIZE),
        "EDGE_ROUNDS": str(rounds),
        "EDGE_CLIENTS": str(clients),
        "EDGE_OUT": str(folder / "rounds.jsonl"),
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "server", file], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait(lambda: httpx.get(f"http://{server.status}/readyz").is_success, process)
        _let_in(server, folder / "keys", clients)
        yield server
    except BaseException:
        for path in (folder / "server.log", *(Path(server.state) / "logs").glob("*.log")):
            print(f"--- {path.name}\n{path.read_text()[-6000:]}", file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def _wait(ready: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300.0
    while True:
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > end or process.poll() is not None:
            raise SystemExit("the server did not come up")
        time.sleep(0.5)


def _let_in(server: Server, folder: Path, clients: int) -> None:
    folder.mkdir()
    control = ControlHttpClient.from_server_address(
        server.address,
        insecure=False,
        root_certificates=server.tls.ca,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    for number in range(clients):
        private, public = folder / f"{number:04d}", folder / f"{number:04d}.pub"
        make_node_key(private, public, private.name)
        key: Any = load_ssh_public_key(public.read_bytes())
        control.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key)))
    control.close()
    progress(f"{clients} clients are let in")


@contextmanager
def _clients(server: Server, folder: Path, clients: int) -> Iterator[None]:
    """The clients, in a few processes; they end with this one."""
    keys = [folder / "keys" / f"{number:04d}" for number in range(clients)]
    processes = []
    with (folder / "clients.log").open("w") as log:
        for first in range(PROCESSES):
            command = [sys.executable, HERE / "edge_clients.py", server.address, server.tls.ca]
            processes.append(
                subprocess.Popen(
                    [*command, *keys[first::PROCESSES]], stdin=subprocess.PIPE, stderr=log
                )
            )
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
        said = (folder / "clients.log").read_text().splitlines()
        progress(f"clients said {len(said)} lines{': ' + said[0][:200] if said else ''}")


def _rounds(
    server: Server, folder: Path, side: str, wanted: int, tries: int = 3
) -> list[dict[str, Any]]:
    """One run of a server app: its lines, each with the SuperLink's MiB at that moment.

    Flower gives an app 30 s to start, which a busy machine may miss: then it is run again.
    """
    out = folder / "rounds.jsonl"
    out.unlink(missing_ok=True)
    bundle = write_service_bundle(folder / f"{side}-{tries}")
    project = bundle / "pyproject.toml"
    text = project.read_text().replace("perennial.server.app:app", f"edge_server:{side}")
    project.write_text(text)
    run = str(_flwr(server, "run", str(bundle), "here")["run-id"])
    lines, end = list[dict[str, Any]](), time.monotonic() + _MOST_S
    asked = time.monotonic()
    while len(lines) < wanted:
        new = out.read_text().splitlines()[len(lines) :] if out.exists() else []
        lines += [{**json.loads(line), "link_mib": _link_mib(server)} for line in new]
        for line in lines[len(lines) - len(new) :]:
            progress(f"{side}: {line}")
        if time.monotonic() > asked + _ASK_S:
            status, why = _status(server, run)
            if status.startswith("finished") and not lines and tries:
                progress(f"{side}: {status}, {why}; again")
                return _rounds(server, folder, side, wanted, tries - 1)
            if status.startswith("finished") and status != "finished:completed":
                raise SystemExit(f"{side}: {status}: {why}")
            asked = time.monotonic()
        if time.monotonic() > end:
            raise SystemExit(f"{side}: no end after {_MOST_S:g} s, {len(lines)} rounds")
        time.sleep(0.2)
    while not _status(server, run)[0].startswith("finished"):
        time.sleep(1.0)
    return lines


def _status(server: Server, run: str) -> tuple[str, str]:
    """The run's status and why; empty where a busy server does not say."""
    try:
        found = _flwr(server, "list", "here", "--run-id", run)["runs"][0]
    except SystemExit as error:
        progress(str(error)[:200])
        return "", ""
    return str(found["status"]), str(found.get("status-details"))


def _flwr(server: Server, *words: str) -> dict[str, Any]:
    """What `flwr` says; it must find the server apps of this folder, too."""
    paths = f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{HERE}"
    known = flower.environment(Path(server.state) / "flower")
    done = subprocess.run(
        [flower.program("flwr"), *words, "--format", "json"],
        env={**os.environ, **known, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, Any] = json.loads(done.stdout or "{}")
    if not told.get("success"):
        raise SystemExit(f"flwr {words[0]}: {done.stdout}{done.stderr}")
    return told


def _link_mib(server: Server) -> float:
    """Resident MiB of the SuperLink."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
            if "perennial.server.superlink" in line and server.tls.ca in line:
                pages = int((path.parent / "statm").read_text().split()[1])
                return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        except OSError:
            continue
    return float("nan")


def _bare(server: Server, clients: int, rounds: int) -> float:
    """Median seconds for one post of the same bytes by each of as many connections."""
    port, body = flower.free_port(), os.urandom(SIZE * 4)
    command = [sys.executable, "-c", BARE, str(port), server.tls.certificate, server.tls.key]
    process = subprocess.Popen(command)
    context = ssl.create_default_context(cafile=server.tls.ca)
    try:
        doors = [httpx.Client(verify=context, timeout=120.0) for _ in range(clients)]
        url = f"https://127.0.0.1:{port}/"
        _wait(lambda: doors[0].post(url, content=b"").is_success, process)

        def some(mine: Sequence[httpx.Client]) -> None:
            for door in mine:
                assert len(door.post(url, content=body).content) == len(body)

        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            threads = [
                threading.Thread(target=some, args=(doors[first::PROCESSES],))
                for first in range(PROCESSES)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds.append(time.perf_counter() - start)
        return median(seconds[1:] or seconds)
    finally:
        process.kill()
        process.wait()
