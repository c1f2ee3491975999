"""CKKS sums: floats, nearly exact, for those who want no rounding; without masks.

Cheon, Kim, Kim and Song 2017 (eprint 2016/421) by SEAL, through TenSEAL, with parameters for
additions alone: one prime, degree 4096. Floats cannot be masked, so whoever holds the secret key
and sees an upload reads it: by default clients hold the public key only, and the key holder must
not be given what the server receives. The preset `nvflare` has that framework's parameters, for
comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..core.parts import SecureSum
from ..core.sums import Figures, Opened, Pact, Scheme
from ..core.values import Vector
from .ciphertexts import Ciphertexts
from .codec import Front, bound, garbage
from .ring import prime_below
from .sealed import SealedSum

# Preset -> degree, bits of the primes, bits of the special prime, bits of the scale.
# `tight` leaves 2**9 times its scale, half of that for the sign: sums of up to 256 values of at
# most 1. The special prime has a bit more than the others, so as not to be one of them.
_PRESETS = {"tight": (4096, (40,), 41, 30), "nvflare": (8192, (60, 40), 41, 40)}

# Figures are sent in digits, each as a share of the base: a slot's error is too large for a whole
# weight at once.
_BITS = 7


def build(
    *,
    clip: Annotated[float, Field(gt=0.0)],
    preset: Literal["tight", "nvflare"] = "tight",
    capacity: Annotated[int, Field(ge=3, le=2**8)] = 64,
    keys: Literal["symmetric", "public"] = "public",
    min_clients: Annotated[int, Field(ge=3)] = 3,
) -> SecureSum:
    """A CKKS sum; error per value below 1e-6 of the scale.

    Args:
        clip: the largest |change| of one value that is ever sent.
        preset: `tight`, or `nvflare` for comparison.
        capacity: most clients that one sum has room for.
        keys: `public`, or `symmetric`: half the bytes, and every client can read every upload.
        min_clients: fewest clients whose sum may be opened.
    """
    degree, bits, special_bits, scale_bits = _PRESETS[preset]
    primes = [prime_below(width, degree) for width in bits]
    special = prime_below(special_bits, degree) if keys == "public" else 0
    scheme = Scheme("ckks", degree, tuple(primes), special, 0, 2.0**scale_bits, keys)
    return SealedSum(
        name=f"CKKS {preset}, {keys} keys",
        codec=_FloatCodec(clip, degree // 2),
        wrapping=Ciphertexts(scheme),
        pairs=None,
        clip=clip,
        min_clients=min_clients,
        capacity=capacity,
        drops=True,
        terms=(preset, scheme),
    )


@dataclass(frozen=True, slots=True)
class _FloatCodec:
    """Values over the scale, behind weight, loss and peak as fractions; see `codec`."""

    clip: float
    width: int
    modulus: int = 0

    def blocks(self, size: int) -> int:
        return -(-(Front(_BITS).size + size) // self.width)

    def encode(
        self, delta: Vector, figures: Figures, pact: Pact, rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        bounded = bound(delta, figures.weight, self.clip, pact)
        front = Front(_BITS).write(figures, bounded) / 2.0**_BITS
        slots = np.zeros(self.blocks(pact.size) * self.width)
        slots[: front.size] = front
        share = figures.weight / pact.scale
        slots[front.size :][: pact.size] = bounded.values * share
        return slots.reshape(-1, self.width)

    def decode(self, slots: Any, num_clients: int, pact: Pact) -> Opened:
        flat, front = slots.reshape(-1), Front(_BITS)
        # Written so that a nan fails.
        if not np.abs(flat).max() <= num_clients + 0.5:
            raise garbage(num_clients)
        digits = np.rint(flat[: front.size] * 2.0**_BITS).astype(np.int64)
        total = flat[front.size :][: pact.size] * pact.scale
        return front.read(digits, num_clients, total)
