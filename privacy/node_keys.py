"""Keys by which a SuperLink knows its nodes: ECDSA over P-384, in OpenSSH's formats."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ..core.errors import DataError
from ..core.files import write_atomically


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
