"""What clients tell each other of themselves: signed cards, in the one form that notes have.

A card binds a node's X25519 key of a run (RFC 7748) to the run, the node id and the node's Ed25519
identity (RFC 8032). Cards and all other notes between parties are JSON in one canonical form,
limited in size and checked field by field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ..core.sums import Pact

CARD_BYTES = 1024
"""Largest card."""

NOTE_BYTES = 2**22
"""Largest note or answer; room for 10,000 neighbours or 200,000 counted nodes."""

_HEX_32_BYTES = re.compile(r"[0-9a-f]{64}")
_HEX_64_BYTES = re.compile(r"[0-9a-f]{128}")
_PRIME = 2**255 - 19
# Any clamped scalar does: it is a multiple of 8, and so takes every point of small order to zero.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))


@dataclass(frozen=True, slots=True)
class Card:
    """One node's public keys for one run; public.

    Attributes:
        node: its id.
        exchange: X25519 public key, 64 hex digits.
        identity: Ed25519 public key, 64 hex digits.
        signature: by the identity over run, node and exchange; 128 hex digits.
    """

    node: int
    exchange: str
    identity: str
    signature: str

    def pack(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def unpack(values: Any, run: str) -> Card:
        """The card in a peer's `values`, with everything checked that it shows by itself.

        Raises:
            ValueError: it is no card, its key is unfit, or its signature is not for `run`.
        """
        if not isinstance(values, dict) or set(values) != {f.name for f in fields(Card)}:
            raise ValueError("a card must have node, exchange, identity and signature")
        if not is_node(values["node"]):
            raise ValueError("a card's node must be a whole number of 64 bits")
        if not (is_key(values["exchange"]) and is_key(values["identity"])):
            raise ValueError("a card's keys must be 64 hex digits")
        if not _is_hex(values["signature"], _HEX_64_BYTES):
            raise ValueError("a card's signature must be 128 hex digits")
        card = Card(**values)
        _check_exchange(card.exchange)
        _check_signature(card, run)
        return card


def is_node(value: object) -> bool:
    """Whether `value` can be a node id: a whole number that fits 64 bits, with or without sign."""
    return type(value) is int and -(2**63) <= value < 2**64


def is_key(value: object) -> bool:
    """Whether `value` is a public key or a seed as it travels: 64 lower-case hex digits."""
    return _is_hex(value, _HEX_32_BYTES)


def encode(values: dict[str, Any]) -> bytes:
    """The canonical form: ASCII JSON, sorted keys, no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode(data: bytes, names: Sequence[str], limit_bytes: int = NOTE_BYTES) -> dict[str, Any]:
    """The fields of a peer's message; their values are the caller's to check.

    Raises:
        ValueError: too long, not the canonical JSON of an object, or with other fields.
    """
    if len(data) > limit_bytes:
        raise ValueError(f"a message must be at most {limit_bytes} bytes; got {len(data)}")
    try:
        values = json.loads(data)
        # One form for one meaning: no key twice, no other number or text for the same value.
        canonical = isinstance(values, dict) and encode(values) == data
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a message must be JSON: {type(error).__name__}") from error
    if not canonical or set(values) != set(names):
        raise ValueError(f"a message must be canonical JSON with the fields {sorted(names)}")
    return values  # type: ignore[no-any-return]


def check_address(values: Mapping[str, Any], pact: Pact, node: int) -> None:
    """Check that a note or answer belongs to this session and node.

    Raises:
        ValueError: it does not.
    """
    if values["session"] != pact.session:
        raise ValueError("the message is of another session")
    if not is_node(values["node"]) or values["node"] != node:
        raise ValueError(f"the message is not of node {node}")


def signed_text(run: str, node: int, exchange: str) -> bytes:
    """What the signature of a card is over."""
    # JSON, so that no two of (run, node, exchange) give the same bytes, whatever the run's name.
    return encode({"use": "perennial card 1", "run": run, "node": node, "exchange": exchange})


def _check_exchange(exchange: str) -> None:
    point = bytes.fromhex(exchange)
    if int.from_bytes(point, "little") >= _PRIME:
        raise ValueError("a card's exchange key must be in its one canonical form")
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError as error:  # secrets with it would be zero, known to all
        raise ValueError("a card's exchange key must not be of small order") from error


def _check_signature(card: Card, run: str) -> None:
    signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(card.identity))
    try:
        signer.verify(bytes.fromhex(card.signature), signed_text(run, card.node, card.exchange))
    except InvalidSignature as error:
        raise ValueError(f"the signature must be node {card.node}'s for this run") from error


def _is_hex(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
