"""Which clients are let in: the public keys in a folder, the SuperLink's nodes, and both as one.

A key that is added to the folder is let in and one that is taken away is let out, at once and for
good: the SuperLink never takes a key back, so that a client that returns needs a new one.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from ..core.errors import DataError, RunError
from ..core.files import write_atomically
from ..core.fleet import Server

logger = logging.getLogger(__name__)

NODES = "nodes.json"
"""File, in the server's state, of the public keys of all nodes that are let in."""

DATABASE = "link.db"
"""File, in the server's state, of the SuperLink's database."""

_REGISTERED = "registered.json"
_OUT = "unregistered"
_SPAN = 1 << 64

Flwr = Callable[..., "CompletedProcess[str]"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became different.

    Attributes:
        let_in: names of clients.
        let_out: the same.
    """

    let_in: tuple[str, ...] = ()
    let_out: tuple[str, ...] = ()


def keys(server: Server) -> dict[str, str]:
    """Client -> its public key, one line of OpenSSH's format each.

    Raises:
        DataError: there is no such folder, or a file that cannot be read.
    """
    folder = Path(server.nodes)
    if not folder.is_dir():
        raise DataError(f"nodes = {str(folder)!r} must be a folder of public keys, NAME.pub")
    try:
        return {path.stem: path.read_text(encoding="utf-8").strip() for path in _files(folder)}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder} must hold public keys: {error}") from error


def update(server: Server, flwr: Flwr) -> Change:
    """Let in and out whoever the folder says; the keys of all nodes are written for server apps.

    Nodes that were registered by other means, under no name, are left as they are.

    Args:
        server: whose SuperLink runs.
        flwr: runs the `flwr` command against it.

    Raises:
        DataError: as `keys`.
        RunError: the SuperLink refuses a key.
    """
    wanted, known = keys(server), _known(server)
    there = _there(server)
    let_out = []
    for node, (name, _) in there.items():
        if name and (name not in wanted or known.get(name, wanted[name]) != wanted[name]):
            _need(flwr(server, "supernode", "unregister", str(node), "here"), f"{name} let out")
            let_out.append(name)
    here = {name for name, _ in there.values() if name and name not in let_out}
    fresh = [name for name in wanted if name not in here]
    for name in fresh:
        path = Path(server.nodes) / f"{name}.pub"
        done = flwr(server, "supernode", "register", str(path), "here", "--name", name)
        if "already" in (done.stdout + done.stderr).lower():
            raise RunError(
                f"{path} is the key of another client, or of one that was let out: a key is never "
                "taken back. Make a new pair with `ssh-keygen -t ecdsa -b 384 -N '' -f node.key` "
                "on that client, and put its public half here."
            )
        _need(done, f"{path} let in")
        logger.info("client %s is let in", name)
    _write(server, _REGISTERED, wanted)
    _write(server, NODES, {str(node): pem for node, (_, pem) in _there(server).items()})
    return Change(tuple(fresh), tuple(name for name in let_out if name not in fresh))


def _need(done: CompletedProcess[str], what: str) -> None:
    if done.returncode:
        raise RunError(f"{what}: the server refused: {(done.stderr or done.stdout).strip()[-400:]}")


def _known(server: Server) -> dict[str, str]:
    path = Path(server.state) / _REGISTERED
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
        return {str(name): str(text) for name, text in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} must say who was let in: {error}. Remove it.") from error


def _write(server: Server, name: str, told: Mapping[str, str]) -> None:
    path, text = Path(server.state) / name, json.dumps(told, indent=1)
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)


def _there(server: Server) -> dict[int, tuple[str, str]]:
    """Node id -> name and public key in PEM, of those that are let in.

    They are in the SuperLink's own database; the `flwr` command lists nodes without their keys.
    """
    path = Path(server.state) / DATABASE
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30.0)) as link:
            rows = link.execute("SELECT node_id, name, public_key, status FROM node").fetchall()
    except sqlite3.Error as error:
        raise RunError(
            f"{path} must be the database of this version's SuperLink: {error}"
        ) from error
    # Ids are unsigned on the wire and signed in the database.
    return {
        node % _SPAN: (name or "", bytes(key).decode())
        for node, name, key, status in rows
        if key and status != _OUT
    }


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pub"))
