"""`perennial init`: a working set of files for a server, its clients and a key holder."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import typer

from .. import __version__
from ..core import check, flower
from ..core.config import Config
from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.sums import Scheme
from ..privacy import keys
from ..privacy.keys import PASSPHRASE, PASSPHRASE_FILE, passphrase_from
from ..privacy.node_keys import make_node_key
from ..privacy.tls import make_certificates
from . import hosting
from .overrides import override
from .settling import settle

UPDATE, SERVER, KEYHOLDER = "update.toml", "server", "keyholder"
"""What stands in the folder, beside one folder a client."""

_PORTS = {"server": 9092, "status": 9091, "link": 9093, "keyholder": 9095, "client": 9096}
_PASSPHRASE_BYTES = 24
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_DEFAULT = """\
# One more domain for the model in service: perennial update update.toml
[run]
name = "fleet"

[data]                # what the server needs of it: the test records that the gate looks at
name = "sample"

[shards]
split = "iid"

[model]
layers = 1

[train]
epochs = 2
batch_size = 16
lr = 5e-3
loss_over = "seen"

[round]
rounds = 2
max_weight = 1000.0   # records of one client that count

[secure_sum]
name = "bfv"          # nobody but the key holder opens a sum, and it sees nothing but sums
bits = 16
clip = 1.0
capacity = 16

[update]
min_accuracy = 0.3
"""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is made.

    Attributes:
        home: of all files.
        clients: how many.
        host: by which clients reach the server.
        ports: of the server, its status, the SuperLink behind its proxy, the key holder, and a
            client's status.
        days: for which certificates hold.
        loopback: whether all of it is for one machine, to try it.
    """

    home: Path
    clients: int
    host: str
    ports: Mapping[str, int]
    days: int
    loopback: bool

    @property
    def dialled(self) -> str:
        """The host as it stands before a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def names(self) -> list[str]:
        """Of the clients."""
        return [f"client-{index + 1:02d}" for index in range(self.clients)]


def make(
    home: Path, text: str, *, clients: int, host: str, port: int, days: int, loopback: bool
) -> None:
    """Write the files of a fleet to `home`, and say what to do with them.

    Args:
        home: must be new or empty.
        text: a config to begin with; empty for the embedded sample with encrypted sums.
        clients: how many, 1 or more.
        host: by which clients reach the server; ignored on loopback.
        port: of the server; 0 for a free one on loopback, else 9092.
        days: for which certificates hold.
        loopback: for this machine alone, with free ports.

    Raises:
        PerennialError: the folder holds files, or the config has faults; nothing is written.
    """
    if home.exists() and any(home.iterdir()):
        raise DataError(f"{home} must be new or empty; it holds files. Name another folder.")
    if not (_is_address(host) if ":" in host else _HOST.fullmatch(host)):
        raise DataError(f"--host must be a host name or an address; got {host!r}")
    ports = {name: flower.free_port() if loopback else given for name, given in _PORTS.items()}
    ports["server"] = port or ports["server"]
    host = "127.0.0.1" if loopback else host
    fleet = Fleet(home.resolve(), clients, host, ports, days, loopback)
    if not text:
        text = _DEFAULT if loopback else override(_DEFAULT, _own_records(fleet))
    config = check.read(settle(_config(fleet, text, None), domains=1)[0])
    scheme: Scheme | None = check.build(config, "secure_sum").scheme
    passphrase = _passphrase(fleet) if scheme else ""
    fresh = home.with_name(f".{home.name}.new-{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True, mode=0o700)
        _server(fleet, fresh, keyed=scheme is not None)
        key = _keyholder(fleet, fresh, scheme, passphrase) if scheme else None
        for index, name in enumerate(fleet.names):
            _client(fleet, fresh, index, name, config, key)
        final = _config(fleet, text, scheme)
        write_atomically(fresh / UPDATE, final)
        if not loopback:
            _hosted(fleet, fresh, keyed=scheme is not None)
        check.read(settle(final, domains=1)[0])
        if home.exists():
            home.rmdir()
        fresh.rename(home)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    for line in _next(fleet, keyed=scheme is not None):
        typer.echo(line)


def _config(fleet: Fleet, text: str, scheme: Scheme | None) -> str:
    """The update's config with all that is the fleet's."""
    home = fleet.home
    settings: dict[str, Any] = {
        "shards.num_clients": fleet.clients,
        "update.home": str(home / SERVER / "service"),
        "update.server": str(home / SERVER / "server.toml"),
    }
    if not fleet.loopback and not _dealt(text):
        settings["shards.split"] = "local"
    if scheme is not None:
        settings |= {
            "keyholder.name": "service",
            "keyholder.address": f"{fleet.dialled}:{fleet.ports['keyholder']}",
            "keyholder.ca": str(home / SERVER / "tls" / "ca.pem"),
            "keyholder.certificate": str(home / SERVER / "tls" / "server.pem"),
            "keyholder.key": str(home / SERVER / "tls" / "server.key"),
        }
    return override(text, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _own_records(fleet: Fleet) -> list[str]:
    """Settings of a fleet whose clients have records of their own, and whose server tests."""
    found = {name: str(fleet.home / SERVER / f"{name}.csv") for name in ("train", "test")}
    return ['data.name="csv"', *(f"data.{name}={json.dumps(p)}" for name, p in found.items())]


def _dealt(text: str) -> bool:
    """Whether the records are the embedded sample, of which every client takes its part."""
    return bool(tomllib.loads(text).get("data", {}).get("name") == "sample")


def _server(fleet: Fleet, fresh: Path, *, keyed: bool) -> None:
    folder = fresh / SERVER
    (folder / "nodes").mkdir(parents=True)
    names = [SERVER, KEYHOLDER] if keyed else [SERVER]
    names += [] if fleet.loopback else [hosting.OPERATOR]
    hosts = [] if fleet.loopback else [fleet.host]
    make_certificates(folder / "tls", names, hosts, fleet.days)
    written = {
        # Elsewhere a proxy stands before it: who reaches the SuperLink itself may do anything.
        "address": f"127.0.0.1:{fleet.ports['server' if fleet.loopback else 'link']}",
        "status": f"127.0.0.1:{fleet.ports['status']}",
        "tls": {"ca": "tls/ca.pem", "certificate": "tls/server.pem", "key": "tls/server.key"},
    }
    write_atomically(folder / "server.toml", tomli_w.dumps(written))


def _hosted(fleet: Fleet, fresh: Path, *, keyed: bool) -> None:
    """What the machines of a fleet need besides: proxy, units, compose."""
    folder, operator = fresh / SERVER, fresh / hosting.OPERATOR
    operator.mkdir(mode=0o700)
    shutil.copyfile(folder / "tls" / "ca.pem", operator / "ca.pem")
    for ending in ("pem", "key"):
        name = f"{hosting.OPERATOR}.{ending}"
        (folder / "tls" / name).rename(operator / name)
    (folder / "proxy").mkdir()
    link = f"127.0.0.1:{fleet.ports['link']}"
    proxy = hosting.nginx(fleet.home / SERVER, fleet.ports["server"], link)
    write_atomically(folder / hosting.PROXY, proxy)
    units = fresh / "systemd"
    units.mkdir()
    command = flower.program("perennial")
    for name, text in hosting.units(fleet.home, fleet.names, command, keyed=keyed).items():
        write_atomically(units / name, text)
    composed = hosting.compose(fleet.home, fleet.names, fleet.ports, __version__, keyed=keyed)
    for name, text in composed.items():
        write_atomically(fresh / name, text)


def _keyholder(fleet: Fleet, fresh: Path, scheme: Scheme, passphrase: str) -> Path:
    """The key holder's folder; the path of the key that clients seal with."""
    folder, tls = fresh / KEYHOLDER, fresh / SERVER / "tls"
    (folder / "tls").mkdir(parents=True, mode=0o700)
    shutil.copyfile(tls / "ca.pem", folder / "tls" / "ca.pem")
    for ending in ("pem", "key"):
        moved = folder / "tls" / f"{KEYHOLDER}.{ending}"
        (tls / f"{KEYHOLDER}.{ending}").rename(moved)
    written = {
        "keys": "keys",
        "ready": "ready",
        "address": f"{fleet.host if fleet.loopback else '0.0.0.0'}:{fleet.ports['keyholder']}",
        "tls": {
            "ca": "tls/ca.pem",
            "certificate": f"tls/{KEYHOLDER}.pem",
            "key": f"tls/{KEYHOLDER}.key",
            "allow": [SERVER],
        },
    }
    write_atomically(folder / "keyholder.toml", tomli_w.dumps(written))
    keys.create(folder / "keys", scheme, passphrase)
    if fleet.loopback:  # elsewhere it belongs in the head of whoever starts the key holder
        write_atomically(folder / "passphrase", passphrase, 0o600)
    return keys.client_path(folder / "keys")


def _client(
    fleet: Fleet, fresh: Path, index: int, name: str, config: Config, key: Path | None
) -> None:
    folder = fresh / name
    folder.mkdir(mode=0o700)
    make_node_key(folder / "node.key", fresh / SERVER / "nodes" / f"{name}.pub", name)
    shutil.copyfile(fresh / SERVER / "tls" / "ca.pem", folder / "ca.pem")
    node: dict[str, Any] = {}
    if key is not None:
        write_atomically(folder / "seal.key", key.read_bytes(), 0o600)
        node["key-file"] = "seal.key"
    dealt = fleet.loopback or config.data.name == "sample"
    if not dealt:
        node["data.train"] = "train.csv"
    status = flower.free_port() if fleet.loopback else _PORTS["client"]
    written = {
        "server": f"{fleet.dialled}:{fleet.ports['server']}",
        "status": f"127.0.0.1:{status}",
        "index": index,
        "clients": fleet.clients if dealt else 0,
        "tls": {"ca": "ca.pem"},
        "node": node,
    }
    write_atomically(folder / "client.toml", tomli_w.dumps(written))


def _passphrase(fleet: Fleet) -> str:
    from .keyholder import passphrase_of

    given = passphrase_from(os.environ)
    if given or not fleet.loopback:
        return given or passphrase_of(new=True)
    return secrets.token_urlsafe(_PASSPHRASE_BYTES)


def _next(fleet: Fleet, *, keyed: bool) -> Iterator[str]:
    """What to do now, line by line."""
    home = fleet.home
    yield f"made {home} for {fleet.clients} clients"
    if not fleet.loopback:
        yield "give each client its own folder over a channel you trust, then delete it here"
        yield "write in each client.toml where its records are ([node] data.train), and in"
        yield f"{UPDATE} where those are that the server tests with ([data])"
        yield "certificates are of an authority whose key is gone: a new set needs a new authority"
    if keyed:
        secret = f"{PASSPHRASE_FILE}={home}/{KEYHOLDER}/passphrase " if fleet.loopback else ""
        yield f"key holder: {secret}perennial keyholder {home}/{KEYHOLDER}/keyholder.toml"
        if not fleet.loopback:
            yield f"            (its passphrase is asked for, or given in {PASSPHRASE})"
    yield f"server:     perennial server {home}/{SERVER}/server.toml"
    if not fleet.loopback:
        yield f"its proxy:  nginx -p {home}/{SERVER} -c {hosting.PROXY}"
    for name in fleet.names:
        yield f"client:     perennial client {home}/{name}/client.toml"
    yield f"then:       perennial update {home}/{UPDATE}"
    if not fleet.loopback:
        yield "or:         the units in systemd/, or compose.yaml"
