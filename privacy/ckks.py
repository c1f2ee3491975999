"""CKKS sums: floats on a grid finer than 1e-6 of the scale, added exactly; without masks.

Cheon, Kim, Kim and Song 2017 (eprint 2016/421) by SEAL, through TenSEAL, with parameters for
additions alone: one prime, degree 4096. Floats cannot be masked, so whoever holds the secret key
and sees an upload reads it: by default clients hold the public key only, and the key holder must
not be given what the server receives. The preset `nvflare` has that framework's parameters, for
comparison.

The noise of a sum is linear in the secret key, and CKKS opens to message plus noise: whoever sees
the ciphertexts of one sum and the floats that they opened to solves for the key, then reads every
upload (Li and Micciancio 2021, eprint 2020/1533). Plain CKKS, as NVFlare uses it, gives its key to
anyone who sees both. Here a client rounds each slot to a multiple of `limits.grid`, without bias,
and the key holder rounds what it opened to such multiples again. The first makes the sum a
multiple, the second takes away the noise, which is smaller than half a step: so the answer follows
from the messages alone and could be computed without the key. Either alone does not do: rounding
values from between the multiples tells on which side of the middle their noise put them.

That protects the key from who watches. A server that has other ciphertexts opened than the sums
of what clients sent (one shifted by half a step, say), or a client that leaves the grid on its
behalf, still learns of the key from each opening; against those use `bfv` with its masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..core.parts import SecureSum
from ..core.sums import Chance, Figures, Opened, Pact, Scheme
from ..core.values import Vector
from .ciphertexts import Ciphertexts
from .codec import Front, bound, garbage
from .limits import MOST_SUMMED, grid
from .ring import prime_below
from .sealed import SealedSum

# Preset -> degree, bits of the primes, bits of the special prime, bits of the scale.
# `tight` leaves 2**8 times its scale, half of that for the sign: twice the room for 64 values of
# at most 1. With 47 bits the grid is below 1e-6 for public keys too, at 11.8 bytes a value for
# symmetric ones; 40 bits would be 10 bytes and a grid 128 times as wide. The special prime has
# another width than the others, so as not to be one of them.
_PRESETS = {"tight": (4096, (47,), 41, 39), "nvflare": (8192, (60, 40), 41, 40)}

# Figures are sent in digits, each as a share of the base: multiples of the grid, and at most 1.
_BITS = 7


def build(
    *,
    clip: Annotated[float, Field(gt=0.0)],
    preset: Literal["tight", "nvflare"] = "tight",
    capacity: Annotated[int, Field(ge=3, le=MOST_SUMMED)] = 64,
    keys: Literal["symmetric", "public"] = "public",
    min_clients: Annotated[int, Field(ge=3)] = 3,
) -> SecureSum:
    """A CKKS sum; error per value and client below 1e-6 of the scale, the sum exact.

    Below 2**-20 of the scale with public keys and 2**-24 with symmetric ones, without bias.

    Args:
        clip: the largest |change| of one value that is ever sent.
        preset: `tight`, or `nvflare` for comparison.
        capacity: most clients that one sum has room for; the grid is for sums of up to 64.
        keys: `public`, or `symmetric`: half the bytes, and every client can read every upload.
        min_clients: fewest clients whose sum may be opened.
    """
    degree, bits, special_bits, scale_bits = _PRESETS[preset]
    primes = [prime_below(width, degree) for width in bits]
    # SEAL never encrypts at the last of several primes, whatever the key.
    special = prime_below(special_bits, degree) if keys == "public" or len(bits) > 1 else 0
    scheme = Scheme("ckks", degree, tuple(primes), special, 0, 2.0**scale_bits, keys)
    return SealedSum(
        name=f"CKKS {preset}, {keys} keys",
        codec=_FloatCodec(clip, degree // 2, grid(scheme)),
        wrapping=Ciphertexts(scheme),
        pairs=None,
        clip=clip,
        min_clients=min_clients,
        capacity=capacity,
        drops=True,
        terms=(preset, scheme, grid(scheme)),
    )


@dataclass(frozen=True, slots=True)
class _FloatCodec:
    """Values over the scale, behind weight, loss and peak as fractions; see `codec`.

    Law: every slot of an encoded vector is a multiple of `grid` and at most 1.
    """

    clip: float
    width: int
    grid: float
    modulus: int = 0
    shares: None = None

    def blocks(self, size: int) -> int:
        return -(-(Front(_BITS).size + size) // self.width)

    def encode(
        self, delta: Vector, figures: Figures, pact: Pact, chance: Chance
    ) -> npt.NDArray[np.float64]:
        bounded = bound(delta, figures.weight, self.clip, pact)
        front = Front(_BITS).write(figures, bounded) / 2.0**_BITS
        slots = np.zeros(self.blocks(pact.size) * self.width)
        slots[: front.size] = front
        levels = slots[front.size :][: pact.size]
        share = figures.weight / pact.scale / self.grid
        np.multiply(bounded.values, share, out=levels, dtype=np.float64)
        # Products of floats come out a hair above 1.
        np.clip(levels, -1.0 / self.grid, 1.0 / self.grid, out=levels)
        _round(levels, chance.rounding)
        levels *= self.grid
        return slots.reshape(-1, self.width)

    def decode(self, slots: Any, num_clients: int, pact: Pact) -> Opened:
        flat, front = slots.reshape(-1), Front(_BITS)
        # Written so that a nan fails.
        if not np.abs(flat).max() <= num_clients + 0.5:
            raise garbage(num_clients)
        digits = np.rint(flat[: front.size] * 2.0**_BITS).astype(np.int64)
        total = flat[front.size :][: pact.size] * pact.scale
        return front.read(digits, num_clients, total)


def _round(levels: npt.NDArray[np.float64], rng: np.random.Generator) -> None:
    """Each up or down to a whole number, in place, at random so that its mean stays."""
    whole = np.floor(levels)
    # Exact, and 1 with the chance of the rest; whole numbers stay.
    levels -= whole
    levels -= rng.random(levels.size)
    np.ceil(levels, out=levels)
    levels += whole
