"""A client's secrets on its own disk: identity, keys of runs, and whom it has met.

Under the client's folder, each file for its owner only (0600) and written whole or not at all:
`identity.key` for as long as the folder lives, and in `pairs/`, for each run, a `.key` and a
`.peers.json`. Who copies or restores these files copies or restores the client.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..core.errors import RunError
from ..core.files import claim, write_atomically
from ..core.sums import Pact, Party
from .cards import Card, encode, is_key, signed_text
from .keystream import SEED_BYTES


def identity(folder: Path) -> str:
    """The identity of the client with this folder, 64 hex digits; made on first use."""
    with locked(folder):
        return _public(_identity(folder))


def own_card(party: Party, run: str, *, make: bool) -> Card:
    """The party's card for `run`, the same each time; for use inside `locked`.

    Raises:
        RunError: a key on disk is damaged, or there is none and none is to be made.
    """
    signer = _identity(party.folder)
    exchange = _public(_run_key(party, run, make=make))
    signature = signer.sign(signed_text(run, party.node, exchange)).hex()
    return Card(party.node, exchange, _public(signer), signature)


def seeds(pact: Pact, party: Party, exchanges: Mapping[int, str]) -> dict[int, bytes]:
    """What the party shares with each node for this pact, 32 secret bytes each.

    HKDF-SHA256 (RFC 5869) of the X25519 secret, salted by the session, over the pact and over
    node and key of both ends. For use inside `locked`.

    Args:
        pact: of this sum.
        party: this client.
        exchanges: node id -> its X25519 public key in hex, from a card that was checked.

    Raises:
        RunError: the party has no key of this run, or it is damaged.
    """
    key = _run_key(party, pact.run, make=False)
    own = (party.node, _public(key))
    return {node: _seed(pact, key, own, (node, shown)) for node, shown in exchanges.items()}


def recognise(folder: Path, run: str, identities: Mapping[int, str]) -> None:
    """Remember who each node of `run` is, on first sight; for use inside `locked`.

    Raises:
        RunError: a node shows another identity than before; nothing is remembered.
    """
    path = _run_path(folder, run, "peers.json")
    known = _known(path)
    for node, found in identities.items():
        if known.get(str(node), found) != found:
            raise RunError(
                f"node {node} must keep its identity {known[str(node)][:16]}... during a run; it "
                f"shows {found[:16]}.... If its owner made it anew, start a new run; if not, "
                "somebody stands in for it."
            )
    new = {str(node): found for node, found in identities.items()}
    if not new.keys() <= known.keys():
        write_atomically(path, json.dumps({**known, **new}, sort_keys=True), 0o600)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process or thread at a time in a client's folder, where the system has such locks.

    Without it two requests that come at once could each find that nothing was revealed yet.
    """
    pairs = folder / "pairs"
    pairs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(pairs / ".lock", "wb", opener=_private) as file:
        with suppress(OSError):  # a file system without locks
            claim(file.fileno(), wait=True)
        yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _identity(folder: Path) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_key(folder / "identity.key"))


def _seed(pact: Pact, key: X25519PrivateKey, own: tuple[int, str], other: tuple[int, str]) -> bytes:
    shared = key.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(other[1])))
    ends = sorted([own, other])
    info = encode({"use": "perennial mask 1", "pact": pact.digest().hex(), "ends": ends})
    salt = bytes.fromhex(pact.session)
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=salt, info=info).derive(shared)


def _run_key(party: Party, run: str, *, make: bool) -> X25519PrivateKey:
    path = _run_path(party.folder, run, "key")
    if not make and not path.exists():
        raise RunError(f"{path} must exist before this node is paired; it must join the run first")
    return X25519PrivateKey.from_private_bytes(_key(path))


def _run_path(folder: Path, run: str, ending: str) -> Path:
    """A client's file for `run`, whose name may be any text."""
    short = re.sub(r"[^A-Za-z0-9_-]", "_", run)[:40]
    name = hashlib.sha256(json.dumps(run).encode("ascii")).hexdigest()[:16]
    return folder / "pairs" / f"{short}-{name}.{ending}"


def _key(path: Path) -> bytes:
    """The 32 secret bytes in `path`, in hex; made and written if there is no such file."""
    if not path.exists():
        write_atomically(path, secrets.token_hex(32) + "\n", 0o600)
    text = path.read_bytes().decode("ascii", "replace").strip()
    if not is_key(text):
        raise RunError(f"{path} must hold 64 hex digits; restore it, or remove it to be another")
    return bytes.fromhex(text)


def _public(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _known(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(values, dict) or not all(map(is_key, values.values())):
        raise _damaged(path)
    return values


def _damaged(path: Path) -> RunError:
    return RunError(f"{path} must be as this client wrote it; restore it, or start a new run")
