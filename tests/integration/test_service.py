"""A server, a key holder and three clients as services over TLS: updates, kills, strangers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import COMMAND, changed

from perennial.core.fleet import read_client, read_server
from perennial.core.flower import free_port
from perennial.privacy.keys import PASSPHRASE_FILE
from perennial.privacy.node_keys import make_node_key
from perennial.server import releases, service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TEXT = """
[run]
name = "fleet"
seed = 5
[data]
name = "sample"
[shards]
split = "dirichlet"
[model]
name = "tiny"
[train]
lr = 2e-2
[round]
rounds = 2
max_weight = 1000.0
min_replies = 3
deadline_s = 120.0
[continual]
name = "chain"
methods = [{name = "replay", per_class = 5}, {name = "analytic_head", layers = 1}]
[secure_sum]
name = "bfv"
bits = 16
clip = 1.0
capacity = 16
[update]
min_accuracy = 0.0
min_gain = 0.0
max_loss = 100.0
"""


class Fleet:
    """The services of a folder that `perennial init --loopback` made."""

    def __init__(self, folder, text=TEXT):
        self.folder, self.home = folder, folder / "fleet"
        (folder / "text.toml").write_text(text)
        self.perennial("init", self.home, "--loopback", "--config", folder / "text.toml")
        self.server = read_server(self.home / "server" / "server.toml")
        self.clients = [self.home / f"client-{i:02d}" for i in (1, 2, 3)]
        self.running = {}

    def perennial(self, *words, code=0):
        done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr + self.logs()
        return done.stdout

    def start(self, name, *words):
        environment = {**os.environ, PASSPHRASE_FILE: str(self.home / "keyholder" / "passphrase")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*COMMAND, *map(str, words)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_all(self):
        self.start("keyholder", "keyholder", self.home / "keyholder" / "keyholder.toml")
        self.start("server", "server", self.home / "server" / "server.toml")
        self.wait(lambda: self.ready(self.server.status), "the server")
        for folder in self.clients:
            self.start(folder.name, "client", folder / "client.toml")
        for folder in self.clients:
            status = read_client(folder / "client.toml").status
            self.wait(lambda status=status: self.ready(status), folder.name)

    def ready(self, status):
        try:
            with urllib.request.urlopen(f"http://{status}/readyz", timeout=5) as answer:
                return json.loads(answer.read())["ready"]
        except OSError:
            return False

    def metrics(self, status):
        with urllib.request.urlopen(f"http://{status}/metrics", timeout=5) as answer:
            return parsed(answer.read())

    def wait(self, until, what, seconds=180):
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"{what} within {seconds} s\n{self.logs()}"
            time.sleep(0.2)

    def update(self, *words, code=0):
        said = self.perennial("update", self.home / "update.toml", "--json", *words, code=code)
        return json.loads(said.splitlines()[-1])

    def logs(self):
        paths = [*self.folder.glob("*.log"), *self.folder.glob("fleet/*/state/logs/*.log")]
        return "\n".join(f"--- {path}\n{path.read_text()[-2500:]}" for path in paths)

    def log(self, *parts):
        return self.home.joinpath(*parts).read_text()

    def stop(self):
        codes = {}
        for name, process in reversed(self.running.items()):
            process.send_signal(signal.SIGTERM)
            try:
                codes[name] = process.wait(40)
            except subprocess.TimeoutExpired:
                codes[name] = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.running = {}
        return codes


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path)
    yield made
    made.stop()


def parsed(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def processes_of(folder):
    """Command lines, by process, that name the folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if str(folder) in line:
                found[int(path.parent.name)] = line
    return found


def test_two_domains_over_a_fleet_end_with_the_bits_of_a_simulation(fleet, tmp_path):
    fleet.start_all()
    first, second = fleet.update(), fleet.update()
    assert [first["state"], second["state"]] == ["released", "released"], fleet.logs()
    assert second["in_service"] == 2
    assert list(second["accuracy"]) == ["bank", "clinic"]
    found = releases.in_service(fleet.home / "server" / "service")
    assert found.card["clients"] == 3
    assert len(found.card["took_part"]) == 3

    alone = changed(
        (fleet.home / "update.toml").read_text(),
        update__server="",
        update__home=str(tmp_path / "alone"),
        keyholder__name="in_process",
    )
    lines = alone.split("[keyholder]")[0] + '[keyholder]\nname = "in_process"\n'
    (tmp_path / "alone.toml").write_text(lines)
    for _ in range(2):
        fleet.perennial("update", tmp_path / "alone.toml", "--quiet")
    same = releases.in_service(tmp_path / "alone")
    assert found.card["adapter_hash"] == same.card["adapter_hash"]
    assert found.card["accuracy"] == same.card["accuracy"]

    told = fleet.metrics(fleet.server.status)
    assert told["perennial_rounds_total",] == 6.0
    assert told["perennial_replies_total",] == 18.0
    assert told["perennial_run_finished",] == 1.0
    assert told["perennial_up", "superlink"] == told["perennial_up", "executor"] == 1.0
    for folder in fleet.clients:
        assert fleet.log(folder.name, "state", "logs", "worker.log").count("Traceback") == 0
        told = fleet.metrics(read_client(folder / "client.toml").status)
        assert told["perennial_tasks_total", "completed", "train"] == 6.0
        assert told["perennial_loads_total",] == 2.0  # once for each update's config
        assert told["perennial_starts_total", "worker"] == 1.0
    codes = fleet.stop()
    assert set(codes.values()) == {0}, codes
    assert processes_of(fleet.home) == {}


@pytest.mark.slow
def test_a_call_that_dies_before_it_knows_its_run_is_followed_by_one_that_finds_it(fleet):
    fleet.start_all()
    command = [*COMMAND, "update", fleet.home / "update.toml", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    updates = fleet.home / "server" / "service" / "updates"

    def asked_for():
        found = list(updates.glob("0001-*/flower-run.json"))
        return found and json.loads(found[0].read_bytes())["run-id"]

    fleet.wait(asked_for, "a run", 300)
    first.kill()
    first.wait()
    # As if the call had died a moment before: the run is there, and nobody knows its id.
    (found,) = updates.glob("0001-*/flower-run.json")
    found.write_text('{"run-id": ""}')
    assert fleet.update()["state"] == "released"
    runs = json.loads(service.flwr(fleet.server, "list", "here", "--format", "json").stdout)["runs"]
    assert [run["status"] for run in runs] == ["finished:completed"]


@pytest.mark.slow
def test_services_that_are_killed_come_back_and_the_update_completes(fleet):
    fleet.start_all()
    command = [*COMMAND, "update", fleet.home / "update.toml", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    events = fleet.home / "server" / "service" / "updates"

    def rounds(wanted):
        found = list(events.glob("0001-*/events.jsonl"))
        return found and found[0].read_text().count('"round_finished"') >= wanted

    fleet.wait(lambda: rounds(1), "a first round")
    for name in ("perennial worker", "perennial.server.superlink"):
        found = [process for process, line in processes_of(fleet.home).items() if name in line]
        assert found, name
        os.kill(found[0], signal.SIGKILL)
    out, _ = first.communicate(timeout=400)
    assert first.returncode == 0, fleet.logs()
    told = json.loads(out.splitlines()[-1])
    assert told["state"] == "released"
    report = json.loads(next(events.glob("0001-*/report.json")).read_text())
    assert len(report["rounds"]) == 3  # none twice: two, and one of tuning
    again = fleet.update()
    assert again["in_service"] == 2


@pytest.mark.slow
def test_a_stranger_and_a_wrong_authority_are_kept_out(fleet, tmp_path):
    fleet.start_all()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    make_node_key(stranger / "node.key", stranger / "node.pub", "stranger")
    text = (fleet.clients[0] / "client.toml").read_text()
    status = read_client(fleet.clients[0] / "client.toml").status
    text = text.replace(status, "").replace("seal.key", str(fleet.clients[0] / "seal.key"))
    (stranger / "ca.pem").write_bytes((fleet.clients[0] / "ca.pem").read_bytes())
    (stranger / "client.toml").write_text(text)
    fleet.start("stranger", "client", stranger / "client.toml")

    other = Fleet(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
    deceived = tmp_path / "deceived"
    deceived.mkdir()
    for name in ("node.key", "seal.key"):
        (deceived / name).write_bytes((fleet.clients[1] / name).read_bytes())
    (deceived / "ca.pem").write_bytes((other.clients[0] / "ca.pem").read_bytes())
    text = (fleet.clients[1] / "client.toml").read_text()
    status = read_client(fleet.clients[1] / "client.toml").status
    (deceived / "client.toml").write_text(text.replace(status, ""))
    fleet.start("deceived", "client", deceived / "client.toml")

    assert fleet.update()["state"] == "released"
    found = releases.in_service(fleet.home / "server" / "service")
    assert len(found.card["took_part"]) == 3
    node = (stranger / "state" / "logs" / "node.log").read_text().lower()
    assert "authentic" in node or "unauth" in node or "permission" in node, node
    node = (deceived / "state" / "logs" / "node.log").read_text().lower()
    assert "certificate" in node, node


@pytest.mark.slow
def test_a_bundle_that_is_not_on_the_list_is_refused_by_name(fleet):
    from perennial.server.bundle import write_bundle

    fleet.start_all()
    text = changed(TEXT, shards__num_clients=3, round__deadline_s=20.0)
    text = text.split("[secure_sum]")[0] + "[evaluate]\nevery = 0\n"
    bundle = write_bundle(fleet.folder / "app", text, str(fleet.folder / "run"))
    done = service.flwr(fleet.server, "run", str(bundle), "here", "--format", "json")
    assert json.loads(done.stdout)["success"], done.stdout
    log = fleet.clients[0] / "state" / "logs" / "worker.log"
    fleet.wait(lambda: "is not on this node's list" in log.read_text(), "a refusal")
    assert fleet.update()["state"] == "released"  # the fleet is unharmed


def test_what_is_wrong_with_a_fleet_is_said_before_anything_starts(fleet, tmp_path):
    def failed(*words, code=2):
        done = subprocess.run(
            [sys.executable, "-m", "perennial", *map(str, words)], capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    assert "must be new or empty" in failed("init", fleet.home, "--loopback")
    assert "readable file" in failed("server", tmp_path / "none.toml")
    path = tmp_path / "server.toml"
    path.write_text('address = "nowhere"\nmore = 1\n')
    said = failed("server", path)
    for words in ("[address]", "[more] unknown key", "[tls] must be given"):
        assert words in said
    (fleet.home / "server" / "tls" / "server.key").unlink()
    assert "must be a file of [tls]" in failed("server", fleet.home / "server" / "server.toml")
    client = fleet.clients[0] / "client.toml"
    client.write_text(client.read_text().replace("[node]", "[node]\npartition-id = 3"))
    assert "[node.partition-id] unknown key" in failed("client", client)
    said = failed("update", fleet.home / "update.toml", code=1)
    assert "Is `perennial server` running?" in said


def test_a_server_that_listens_everywhere_lets_its_clients_in(tmp_path):
    fleet = Fleet.__new__(Fleet)
    fleet.folder, fleet.home, fleet.running = tmp_path, tmp_path / "fleet", {}
    plain = TEXT.split("[secure_sum]")[0] + "[update]" + TEXT.split("[update]")[1]
    (tmp_path / "text.toml").write_text(plain)
    words = ("--host", "localhost", "--clients", 3)
    fleet.perennial("init", fleet.home, "--config", tmp_path / "text.toml", *words)
    file = fleet.home / "server" / "server.toml"
    status = f"127.0.0.1:{free_port()}"
    text = file.read_text().replace("127.0.0.1:9091", status)
    file.write_text(text.replace("127.0.0.1:9093", f"0.0.0.0:{free_port()}"))
    try:
        fleet.start("server", "server", file)
        fleet.wait(lambda: "3 clients newly let in" in fleet.logs(), "the server")
        assert fleet.ready(status)
    finally:
        assert fleet.stop() == {"server": 0}


@pytest.mark.slow
def test_a_worker_whose_node_is_gone_ends_when_it_is_told_to(tmp_path):
    (tmp_path / "secret").write_text("00" * 48)
    words = ("--address", f"127.0.0.1:{free_port()}", "--secret", tmp_path / "secret")
    more = ("--ready", tmp_path / "ready", "--allow", "0" * 64)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [*COMMAND, "worker", *words, *more], stdout=log, stderr=subprocess.STDOUT
        )
    end = time.monotonic() + 120
    while "onnection" not in (tmp_path / "log").read_text():  # it asks, and asks again
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.2)
    worker.terminate()
    try:
        assert worker.wait(40) == 1
    finally:
        worker.kill()
    assert "did not stop" in (tmp_path / "log").read_text()
