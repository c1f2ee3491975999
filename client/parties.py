"""Who takes part at a client: the client itself, what it seals to, what its operator says."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.sums import Pact, Party
from .store import ClientStore


@dataclass(frozen=True, slots=True)
class Client:
    """One client of this process.

    Attributes:
        index: 0..num_clients-1; which shard is its own.
        store: its folder on disk.
    """

    index: int
    store: ClientStore


@dataclass(frozen=True, slots=True)
class Sealing:
    """What a client seals to.

    Attributes:
        pact: of the sum.
        note: what this client alone was told.
        party: the client as a party of the sum.
    """

    pact: Pact
    note: bytes
    party: Party


@dataclass(frozen=True, slots=True)
class Own:
    """What a node's operator says about it.

    Attributes:
        identities: file with the identities that this node lets in; in place of what the
            server's config says, and refused where the sum has no masks.
        most_epsilon: the node trains only where a run promises this epsilon or less, for every
            unit that it promises, by noise that the server does not add; 0 without.
        most_delta: likewise of delta; 0 without.
    """

    identities: str = ""
    most_epsilon: float = 0.0
    most_delta: float = 0.0


NOTHING_OWN = Own()
