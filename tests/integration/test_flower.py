"""`flwr run .` with the thin bundle: real SuperLink, SuperNodes and app processes on loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perennial.server.bundle import write_bundle
from perennial.simulations.simulate import simulate

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

BIN = Path(sys.executable).parent
TEXT = """
[run]
seed = 11
name = "tiny"
folder = "{folder}"
[data]
name = "sample"
[domains]
order = ["bank"]
[shards]
num_clients = 2
[model]
name = "tiny"
[train]
lr = 2e-2
[round]
rounds = 1
min_replies = 2
"""


def free_ports(count):
    """Ports that nobody uses now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def fleet(tmp_path):
    """Starts Flower processes in a session of their own, so that all of them end with the test."""
    home = tmp_path / "flwr"
    home.mkdir()
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PERENNIAL_STATE": str(tmp_path / "state"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    started = []

    def start(name, *arguments):
        with (tmp_path / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [BIN / arguments[0], *arguments[1:]],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start, environment, home
    for process in reversed(started):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def wait_for(ready, seconds, what):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what} within {seconds} s"
        time.sleep(0.25)


def logs(folder):
    return "\n".join(
        f"--- {path.name}\n{path.read_text()[-3000:]}" for path in folder.glob("*.log")
    )


SEALED = """
[secure_sum]
name = "bfv"
clip = 0.5
[keyholder]
name = "service"
address = "{address}"
ca = "{tls}/ca.pem"
certificate = "{tls}/server.pem"
key = "{tls}/server.key"
"""
HOLDER = """
keys = "keys"
ready = "ready"
[tls]
ca = "tls/ca.pem"
certificate = "tls/keyholder.pem"
key = "tls/keyholder.key"
allow = ["server"]
"""


def with_key_holder(text, start, environment, folder):
    """`text` with encrypted sums, and the clients' key file; the key holder runs."""
    from perennial.privacy.tls import make_certificates

    text = text.replace("num_clients = 2", "num_clients = 3").replace("min_replies = 2", "")
    text = text.replace("rounds = 1", "rounds = 1\nmax_weight = 200.0")
    environment["PERENNIAL_KEY_PASSPHRASE"] = "a passphrase for tests"
    home = folder / "holder"
    home.mkdir()
    make_certificates(home / "tls", ["server", "keyholder"])
    (home / "holder.toml").write_text(HOLDER)
    (home / "run.toml").write_text(text + '[secure_sum]\nname = "bfv"\nclip = 0.5\n')
    made = [BIN / "perennial", "keys", "init", home / "run.toml", home / "keys"]
    subprocess.run(made, env=environment, check=True, capture_output=True)
    start("holder", "perennial", "keyholder", str(home / "holder.toml"))
    wait_for((home / "ready").exists, 60, "the key holder")
    address = (home / "ready").read_text().strip()
    sealed = text + SEALED.format(address=address, tls=home / "tls")
    return sealed, home / "keys" / "0001" / "client.key"


@pytest.mark.parametrize(
    "sealed",
    [pytest.param(False, id="plain"), pytest.param(True, id="sealed", marks=pytest.mark.slow)],
)
def test_flwr_run_ends_with_the_bits_of_a_simulation(sealed, fleet, tmp_path, monkeypatch):
    start, environment, home = fleet
    text, key, count = TEXT.format(folder=tmp_path / "runs"), "", 2
    if sealed:
        text, path = with_key_holder(text, start, environment, tmp_path)
        key, count = f' key-file="{path}"', 3
        monkeypatch.setenv("PERENNIAL_KEY_FILE", str(path))
    bundle = write_bundle(tmp_path / "bundle", text)
    port, *nodes = free_ports(1 + count)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    start("link", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
          "--disable-runtime-dependency-installation")  # fmt: skip
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 60, "the SuperLink")
    for index, own in enumerate(nodes):
        config = f"partition-id={index} num-partitions={count}{key}"
        start(f"node{index}", "flower-supernode", "--insecure", "--superlink",
              f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(own),
              "--node-config", config)  # fmt: skip
    done = subprocess.run(
        [BIN / "flwr", "run", "."], cwd=bundle, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path)
    assert re.search(r"[Ss]uccessfully", done.stdout), done.stdout

    def report():
        return list((tmp_path / "runs").glob("tiny-*/report.json"))

    wait_for(
        lambda: report() and json.loads(report()[0].read_text())["finished"],
        300,
        f"a finished run\n{logs(tmp_path)}",
    )
    found = json.loads(report()[0].read_text())
    simulate(text, tmp_path / "simulated")
    same = json.loads((tmp_path / "simulated" / "report.json").read_text())
    assert found["adapter_hash"] == same["adapter_hash"]
    assert found["accuracy_matrix"] == same["accuracy_matrix"]
