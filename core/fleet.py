"""The configs of a server and of a client that run as services: TOML in, absolute paths out."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from .config import Table, suggest, wording
from .errors import ConfigError, DataError, Fault

Address = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):\d{1,5}$")]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}$")]

_HASH = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("max-epsilon", "max-delta")
_KNOWN = ("key-file", "identities", *_LIMITS)


class ServerTls(Table):
    """`[tls]` of a server."""

    ca: str
    certificate: str
    key: str


class Server(Table):
    """A server's file.

    Attributes:
        address: host:port at which clients reach it.
        status: host:port, on loopback unless written otherwise, of health and readiness.
        state: folder of its database, logs and bundle; made if missing.
        nodes: folder of the public keys of clients, NAME.pub; each is registered at the start.
        tls: its certificate, and the authority that clients know.
        home: folder of the file, whatever it says: relative paths of a run's config start there.
    """

    address: Address
    status: Address = "127.0.0.1:9091"
    state: str = "state"
    nodes: str = "nodes"
    tls: ServerTls
    home: str = ""


class ClientTls(Table):
    """`[tls]` of a client."""

    ca: str


class Client(Table):
    """A client's file.

    Attributes:
        server: host:port of the server.
        status: host:port of health and readiness; empty for none.
        state: folder of all that is this client's own; made if missing. Who loses it loses the
            client's ledger and memory.
        key: its private key, which the server knows by its public half.
        index: place among the clients, from 0, where records are dealt.
        clients: how many there are where records are dealt; 0 where each has its own.
        bundles: SHA-256 of further bundles that may be run; that of this package always may.
        plugins: modules from outside that a config may name; a server's config could otherwise
            have any module of this machine imported.
        node: what this node's operator says: `data.train` and the like, `key-file`,
            `identities`, `max-epsilon`, `max-delta`.
        tls: the authority that signed the server's certificate.
        home: folder of the file, whatever it says: relative paths of a run's config start there.
    """

    server: Address
    status: str = ""
    state: str = "state"
    key: str = "node.key"
    index: Annotated[int, Field(ge=0)] = 0
    clients: Annotated[int, Field(ge=0)] = 0
    bundles: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    node: Mapping[str, str | float | int] = {}
    tls: ClientTls
    home: str = ""


_File = TypeVar("_File", Server, Client)


def read_server(path: Path) -> Server:
    """The server's file at `path`, its paths made absolute.

    Raises:
        ConfigError: every fault of it.
        DataError: it cannot be read.
    """
    found, home = _read(path, Server), path.resolve().parent
    tls = found.tls.model_copy(update=_placed(found.tls, home, ("ca", "certificate", "key")))
    placed = _placed(found, home, ("state", "nodes", "home"))
    return found.model_copy(update={**placed, "tls": tls})


def read_client(path: Path) -> Client:
    """The client's file at `path`, its paths made absolute.

    Raises:
        ConfigError: every fault of it.
        DataError: it cannot be read.
    """
    found, home = _read(path, Client), path.resolve().parent
    if faults := list(_faults(found)):
        raise ConfigError(faults)
    tls = found.tls.model_copy(update=_placed(found.tls, home, ("ca",)))
    node = {name: _whole(name, value, home) for name, value in found.node.items()}
    placed = _placed(found, home, ("state", "key", "home"))
    return found.model_copy(update={**placed, "tls": tls, "node": node})


def _faults(client: Client) -> Iterator[Fault]:
    for digest in client.bundles:
        if not _HASH.fullmatch(digest):
            yield Fault("bundles", f"must be SHA-256, 64 hex digits each; got {digest!r}")
    for name in client.plugins:
        if "," in name or not all(part.isidentifier() for part in name.split(".")):
            yield Fault("plugins", f"must be names of modules; got {name!r}")
    for name, value in client.node.items():
        # A limit that is written wrong would be no limit.
        if name not in _KNOWN and not name.startswith("data."):
            yield Fault(f"node.{name}", "unknown key", suggest(name, (*_KNOWN, "data.train")))
        elif name in _LIMITS and not (isinstance(value, int | float) and 0.0 < value < math.inf):
            yield Fault(f"node.{name}", f"must be a number above 0; got {value!r}")
        elif isinstance(value, str) and not (value.isprintable() and '"' not in value):
            yield Fault(f"node.{name}", f"must be without quotes and line ends; got {value!r}")
    if client.clients and client.index >= client.clients:
        yield Fault("index", f"must be below clients = {client.clients}; got {client.index}")


def _whole(name: str, value: Any, home: Path) -> Any:
    """A node's own value; a path in it made absolute, as its file means it."""
    is_path = name.startswith("data.") or name in ("key-file", "identities")
    return str((home / str(value)).resolve()) if is_path and value else value


def _placed(table: Table, home: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: str((home / str(getattr(table, name))).resolve()) for name in names}


def _read(path: Path, kind: type[_File]) -> _File:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} must be a readable file: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([Fault("", f"the file is not valid TOML: {error}")]) from error
    try:
        # TOML has arrays where the tables have tuples.
        tree |= {name: tuple(value) for name, value in tree.items() if isinstance(value, list)}
        return kind.model_validate({**tree, "home": "."})
    except ValidationError as error:
        raise ConfigError([_fault(detail) for detail in error.errors()]) from error


def _fault(detail: Any) -> Fault:
    place = ".".join(str(part) for part in detail["loc"])
    known = {"missing": "must be given", "extra_forbidden": "unknown key"}
    return Fault(place, known.get(detail["type"]) or f"{wording(detail)}; got {detail['input']!r}")
