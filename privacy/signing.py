"""Ed25519 keys and signatures of what the server gives out (RFC 8032)."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from ..core.errors import DataError
from ..core.files import write_atomically

Key: TypeAlias = Ed25519PrivateKey
"""A private key that signs."""

_BYTES = 32


def key(path: Path) -> Key:
    """The private key in `path`, 64 hex digits; made for its owner alone where there is none.

    Its public half is written beside it, to `PATH.pub`, for those who check signatures.

    Raises:
        DataError: the file holds something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(_BYTES) + "\n", 0o600)
    private = Ed25519PrivateKey.from_private_bytes(_bytes(path, "a private key"))
    shown = path.with_name(path.name + ".pub")
    if not shown.exists():
        write_atomically(shown, public(private) + "\n")
    return private


def public(private: Key) -> str:
    """The public half of a key, 64 hex digits."""
    return private.public_key().public_bytes_raw().hex()


def trusted(path: Path) -> frozenset[str]:
    """The public keys in `path`, one a line, each 64 hex digits.

    Empty lines, and those that begin with #, do not count.

    Raises:
        DataError: there is no such file, or a line is none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a file of public keys: {error}") from error
    found = [line for line in lines if line and not line.startswith("#")]
    for line in found:
        _parsed(line, path, "public keys, one a line")
    if not found:
        raise DataError(f"{path} must hold a public key; it holds none")
    return frozenset(line.lower() for line in found)


def sign(private: Key, text: bytes) -> str:
    """The signature over `text`, 128 hex digits."""
    return private.sign(text).hex()


def signed(public_key: str, signature: str, text: bytes) -> bool:
    """Whether `signature` is that of `public_key` over `text`; odd hex digits are no signature."""
    try:
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        signer.verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError):
        return False
    return True


def _bytes(path: Path, what: str) -> bytes:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must hold {what}: {error}") from error
    return _parsed(text, path, what)


def _parsed(text: str, path: Path, what: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _BYTES:
        raise DataError(f"{path} must hold {what}, 64 hex digits each; restore it from a backup")
    return found
