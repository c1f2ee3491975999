"""BFV sums: exact, smaller than the update in the clear, and closed to insiders by masks.

Fan and Vercauteren 2012 (eprint 2012/144) by SEAL, through TenSEAL, at degree 4096: values are
clipped and rounded (`codec`), packed many to a slot (`packing`), masked modulo the plain modulus
(`pairs`), encrypted, and sent as the bits of one polynomial and the seed of the other. The server
adds polynomials with numpy (`ring`); the key holder sees the sum alone.

With `keys = "symmetric"` every client holds the secret key, which masks make harmless: server and
a client together see masked slots. With `keys = "public"` clients hold no secret, and send twice
as much.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..core.errors import ConfigError, Fault
from ..core.parts import SecureSum
from ..core.private import Noise
from ..core.sums import Scheme
from .ciphertexts import Ciphertexts
from .codec import IntCodec
from .packing import bfv_bits, for_bfv
from .pairs import Pairs
from .pins import read_pins
from .ring import prime_below
from .sealed import SealedSum
from .shares import shares_of

DEGREE = 4096
# Smallest prime that is 1 modulo 2 * 4096 has 14 bits; 20 leave the noise of key switching small.
_SPECIAL_BITS = 20


def build(
    *,
    clip: Annotated[float, Field(ge=2**-20, le=2**20)],
    bits: Literal[8, 12, 16] = 8,
    capacity: Annotated[int, Field(ge=3, le=2**20)] = 64,
    keys: Literal["symmetric", "public"] = "symmetric",
    masks: bool = True,
    min_clients: Annotated[int, Field(ge=3)] = 3,
    neighbours: Annotated[int, Field(ge=0)] = 0,
    collusion: Annotated[float, Field(gt=0.0, lt=1.0)] = 1 / 3,
    identities: str = "",
    noise: Noise | None = None,
) -> SecureSum:
    """A BFV sum; error per value and client below scale / (2**(bits-1) - 1), the sum exact.

    Args:
        clip: the largest |change| of one value that is ever sent; scales adapt below it.
        bits: of one value; 8 bit is 2 % of a typical update, without bias.
        capacity: most clients that one sum has room for; fewer make uploads smaller.
        keys: `symmetric` or `public`.
        masks: pairwise masks on top; without them, server and one client read every update.
        min_clients: fewest clients whose sum may be opened.
        neighbours: with how many others each client shares a mask; 0 to choose by `collusion`.
        collusion: share of a cohort that may collude or drop out.
        identities: file with the identities that are let in; empty to trust on first use.
        noise: what clients owe, from [user_privacy]; never written here.

    Raises:
        ConfigError: bits, capacity and noise leave no room in a ciphertext.
    """
    if identities and not masks:
        problem = "have no meaning without masks"
        raise ConfigError([Fault("secure_sum.identities", problem, "write masks = true")])
    scheme, codec = _sized(bits, capacity, keys, clip, noise)
    return SealedSum(
        name=f"BFV {bits} bit, {keys} keys",
        codec=codec,
        wrapping=Ciphertexts(scheme),
        pairs=Pairs(min_clients, neighbours, collusion, read_pins(identities)) if masks else None,
        clip=clip,
        min_clients=min_clients,
        capacity=capacity,
        drops=True,
        terms=(bits, codec.packing.radix, codec.packing.per_slot, scheme),
    )


def _sized(
    bits: int, capacity: int, keys: str, clip: float, noise: Noise | None
) -> tuple[Scheme, IntCodec]:
    public, shares = keys == "public", shares_of(noise, bits, clip, capacity)
    try:
        room = shares.tail(capacity) if shares else 0
        packing = for_bfv(bits, capacity, public=public, tail=room)
    except ValueError as error:
        raise ConfigError([Fault("secure_sum.capacity", str(error))]) from error
    modulus = prime_below(packing.slot_bits, DEGREE)
    if modulus < packing.radix**packing.per_slot:  # the sum must stay below a prime just above
        modulus = prime_below(packing.slot_bits + 1, DEGREE)
    prime = prime_below(bfv_bits(modulus.bit_length(), capacity, public), DEGREE)
    special = prime_below(_SPECIAL_BITS, DEGREE) if public else 0
    scheme = Scheme("bfv", DEGREE, (prime,), special, modulus, 0.0, keys)
    return scheme, IntCodec(clip, packing, DEGREE, modulus, shares)
