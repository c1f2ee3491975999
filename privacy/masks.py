"""Pairwise masks alone: words that add up to the sum, and a server that needs no key.

Bonawitz et al. 2017 (CCS) without their second mask: nothing is ever revealed. When a client
drops out after the masks were agreed, the sum cannot be read, and the round is asked again of
those who answered, whose updates are kept on their own disks: one more exchange, without
training, whenever a client is lost. Where many are lost, `bfv` is the better choice: it goes on
without a second exchange.

What that does not cover: should the missing body reach the server after all, the server has the
sum of all and the sum of all but one, and their difference is that client's update. A client that
is itself late sends nothing any more; a body that was late on its way is not helped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..core.errors import ConfigError, Fault
from ..core.parts import SecureSum
from ..core.private import Noise
from ..core.sums import Pact, Party, Scheme
from .codec import IntCodec
from .packing import Slots, for_words
from .pairs import Pairs
from .pins import read_pins
from .ring import pack_bits, unpack_bits
from .sealed import SealedSum
from .shares import shares_of

# Words in a block; small, because a block is filled up with zeros.
_WIDTH = 64


def build(
    *,
    clip: Annotated[float, Field(ge=2**-20, le=2**20)],
    bits: Literal[8, 12, 16] = 16,
    capacity: Annotated[int, Field(ge=3, le=2**20)] = 64,
    min_clients: Annotated[int, Field(ge=3)] = 3,
    neighbours: Annotated[int, Field(ge=0)] = 0,
    collusion: Annotated[float, Field(gt=0.0, lt=1.0)] = 1 / 3,
    identities: str = "",
    noise: Noise | None = None,
) -> SecureSum:
    """A sum under pairwise masks; error per value and client below scale / (2**(bits-1) - 1).

    Args:
        clip: the largest |change| of one value that is ever sent.
        bits: of one value.
        capacity: most clients that one sum has room for.
        min_clients: fewest clients whose sum may be read.
        neighbours: with how many others each client shares a mask; 0 to choose by `collusion`.
        collusion: share of a cohort that may collude or drop out.
        identities: file with the identities that are let in; empty to trust on first use.
        noise: what clients owe, from [user_privacy]; never written here.

    Raises:
        ConfigError: bits, capacity and noise leave no room in a word.
    """
    shares = shares_of(noise, bits, clip, capacity)
    try:
        packing = for_words(bits, capacity, tail=shares.tail(capacity) if shares else 0)
    except ValueError as error:
        raise ConfigError([Fault("secure_sum.capacity", str(error))]) from error
    modulus = 2**packing.slot_bits
    return SealedSum(
        name=f"masks alone, {bits} bit",
        codec=IntCodec(clip, packing, _WIDTH, modulus, shares),
        wrapping=_Words(packing.slot_bits),
        pairs=Pairs(min_clients, neighbours, collusion, read_pins(identities)),
        clip=clip,
        min_clients=min_clients,
        capacity=capacity,
        drops=False,
        terms=(bits, packing.per_slot, modulus),
    )


@dataclass(frozen=True, slots=True)
class _Words:
    bits: int
    scheme: Scheme | None = None

    def wrap(self, slots: Slots, pact: Pact, party: Party) -> bytes:
        return pack_bits(slots.reshape(-1), self.bits)

    def size_bytes(self, blocks: int) -> int:
        return blocks * _WIDTH * self.bits // 8

    def add(self, total: Slots | None, content: bytes, blocks: int) -> Slots:
        words = unpack_bits(content, blocks * _WIDTH, self.bits)
        if total is None:
            return words
        total += words
        total &= np.uint64(2**self.bits - 1)
        return total

    def close(self, total: Slots) -> bytes:
        return total.tobytes()

    def unwrap(self, opened: bytes, blocks: int) -> Slots:
        return np.frombuffer(opened, np.uint64).reshape(blocks, _WIDTH)
