"""What a client signs of an answer: the question it is for, who gives it, and every byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .values import Ticket

NODE_KEY = "PERENNIAL_NODE_KEY"
"""Environment variable of a client's worker: the file of the key with which answers are signed."""

NODES = "PERENNIAL_NODES"
"""Environment variable of a server's apps: the file with each node's public key. Where it is set,
an answer that its node did not sign does not count."""

SIGNATURE, VALUE = "signature", "value"
"""Record of an answer that holds the signature, and its one entry."""

_PURPOSE = "perennial answer 1"  # a signature made for anything else must not pass for this


@dataclass(frozen=True, slots=True)
class Signatures:
    """Proof of which client an answer is from, to whoever reads it, whatever carried it.

    Attributes:
        sign: (text) -> this client's signature.
        holds: (node id, signature, text) -> whether it is that node's.
    """

    sign: Callable[[bytes], bytes]
    holds: Callable[[int, bytes, bytes], bool]


def statement(
    kind: str, node: int, ticket: Ticket, session: str, body: bytes, numbers: Mapping[str, Any]
) -> bytes:
    """The text that is signed.

    Args:
        kind: message type of the question.
        node: id of the node that answers.
        ticket: of the question.
        session: of the pact, so that an answer is for one sum alone; empty where nothing is summed.
        body: sealed.
        numbers: that go with it.
    """
    told = {
        "purpose": _PURPOSE,
        "kind": kind,
        "node": str(node),
        "ticket": asdict(ticket),
        "session": session,
        "body": hashlib.sha256(body).hexdigest(),
        "numbers": dict(numbers),
    }
    return json.dumps(told, sort_keys=True, default=str).encode()
