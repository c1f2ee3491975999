"""Keys by which a server knows its nodes: ECDSA over P-384 (FIPS 186-5), in OpenSSH's formats.

The same key lets a node in and signs its answers, so that neither another node nor whatever carries
messages between the two ends can answer in its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
)

from ..core.errors import DataError, RunError
from ..core.files import write_atomically
from ..core.signed import Signatures

_Publics: TypeAlias = Mapping[int, ec.EllipticCurvePublicKey]

_HOW = ec.ECDSA(SHA384())


def build(*, key: str = "", nodes: str = "") -> Signatures:
    """Signatures with a node's own key, or checked with the keys of all nodes.

    Args:
        key: file of the private key that signs; empty for one that signs nothing.
        nodes: file of a JSON object, node id -> public key in PEM; read again when it changes.
            Empty for one that knows no node.

    Raises:
        DataError: a file is missing or holds something else.
    """
    private = _private(Path(key)) if key else None
    book = _Book(Path(nodes)) if nodes else None

    def sign(text: bytes) -> bytes:
        if private is None:
            raise RunError("answers are signed with a node's key; none is named")
        return private.sign(text, _HOW)

    def holds(node: int, signature: bytes, text: bytes) -> bool:
        public = book.of(node) if book is not None else None
        if public is None:
            return False
        try:
            public.verify(signature, text, _HOW)
        except InvalidSignature:
            return False
        return True

    return Signatures(sign, holds)


class _Book:
    """The public keys in a file, as it stands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys, self._seen = self._read()

    def of(self, node: int) -> ec.EllipticCurvePublicKey | None:
        if _stamp(self._path) != self._seen:  # somebody was let in or out
            self._keys, self._seen = self._read()
        return self._keys.get(node)

    def _read(self) -> tuple[_Publics, tuple[int, int]]:
        seen, found = _stamp(self._path), {}
        try:
            for node, text in json.loads(self._path.read_bytes()).items():
                public = load_pem_public_key(text.encode())
                if not isinstance(public, ec.EllipticCurvePublicKey):
                    raise ValueError("a key of another kind")
                found[int(node)] = public
        except (OSError, ValueError, AttributeError, UnsupportedAlgorithm) as error:
            raise DataError(
                f"{self._path} must hold the public keys of nodes: {error}. It is written when "
                "`perennial server` starts."
            ) from error
        return found, seen


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} must hold the public keys of nodes: {error.strerror}") from error
    return found.st_mtime_ns, found.st_ino


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        found = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path} must hold a node's private key: {error}") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise DataError(f"{path} must hold an ECDSA key; it holds another kind")
    return found


def make_node_key(private: Path, public: Path, name: str) -> None:
    """Write a new key pair: `private` for the client alone, `public` for the server.

    Raises:
        DataError: one of the files is there: a key that is in use must not be lost.
    """
    for path in (private, public):
        if path.exists():
            raise DataError(f"{path} is there already; a node's key is made once")
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomically(private, secret, 0o600)
    write_atomically(public, shown + f" {name}\n".encode())
