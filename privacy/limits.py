"""What a lattice scheme, its slots and its polynomials must be, before SEAL sees them and after.

Letters: `L` primes, `P` ciphertexts, `N` coefficients of a polynomial (the degree).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.sums import Scheme
from .blake import Words

# Degree -> most bits of the modulus at 128-bit security with a ternary secret: Albrecht et al.,
# Homomorphic Encryption Standard (2018), table 1, and SEAL 4.1, `hestdparms.h`.
MAX_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}

# Most ciphertexts in a sum of floats whose noise the grid is wider than.
MOST_SUMMED = 64
# Of a coefficient of fresh noise: centred binomial of 2 * 21 bits, SEAL 4.1, `rlwe.cpp`; and of
# what is lost where a coefficient is rounded to a whole number.
_ERROR_VARIANCE, _ROUNDING_VARIANCE = 21 / 2, 1 / 12
# Half a step of the grid, in standard deviations of the noise.
_DEVIATIONS = 10


def num_slots(scheme: Scheme) -> int:
    """Slots of a ciphertext: N for bfv, N / 2 for ckks."""
    return scheme.degree if scheme.name == "bfv" else scheme.degree // 2


def grid(scheme: Scheme) -> float:
    """The step of ckks slots, a power of two: clients send multiples of it, sums open to such.

    The smallest that is 20 standard deviations wide or more, of the noise of `MOST_SUMMED`
    ciphertexts in a slot. Follows from scale, degree and model alone; public.
    """
    # A slot's real part is a sum of N coefficients times cosines whose squares add up to N / 2.
    variance = _ROUNDING_VARIANCE  # of encoding
    if scheme.model == "symmetric":
        variance += _ERROR_VARIANCE
    else:
        # Division by the special prime leaves r0 + r1 * s, both r rounded; what it divides is
        # gone. In a slot that is r0(z) + r1(z) * s(z), so the noise differs from slot to slot with
        # |s(z)|**2, which spreads like an exponential variable of mean 2 N / 3. Of N / 2 slots one
        # is above 2 * ln(N) times the mean for 1 key in 2 N.
        widest = 2 * scheme.degree / 3 * 2 * math.log(scheme.degree)
        variance += _ROUNDING_VARIANCE * (1 + widest)
    sigma = math.sqrt(MOST_SUMMED * variance * scheme.degree / 2) / scheme.scale
    return 2.0 ** math.ceil(math.log2(2 * _DEVIATIONS * sigma))


def on_grid(scheme: Scheme, slots: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Opened ckks slots at the nearest multiples of the grid, without their noise.

    Law: for a sum of at most `MOST_SUMMED` ciphertexts of multiples, their sum, whatever the noise.

    Raises:
        ValueError: a slot is not finite.
    """
    if not np.isfinite(slots).all():
        raise ValueError("its slots must be finite; some are not")
    step = grid(scheme)
    # Negative zero would tell the sign of the noise.
    return np.rint(slots / step) * step + 0.0


def modulus_chain(scheme: Scheme) -> list[int]:
    """The primes of the key: those of ciphertexts, then the special one if there is one."""
    return [*scheme.primes, *([scheme.special] if scheme.special else [])]


def check_scheme(scheme: Scheme) -> None:
    """Refuse what SEAL cannot do or is below 128-bit security.

    Raises:
        ValueError: and why.
    """
    if scheme.name not in ("bfv", "ckks") or scheme.model not in ("symmetric", "public"):
        got = f"{scheme.name!r}, {scheme.model!r}"
        raise ValueError(f"a scheme must be bfv or ckks, symmetric or public; got {got}")
    if scheme.degree not in MAX_BITS:
        raise ValueError(f"the degree must be one of {list(MAX_BITS)}; got {scheme.degree}")
    if len(scheme.primes) > 1 and not scheme.special:
        raise ValueError("several primes must have a special one: SEAL never encrypts at its last")
    bits, limit = math.prod(modulus_chain(scheme)).bit_length(), MAX_BITS[scheme.degree]
    if bits > limit:
        raise ValueError(
            f"for 128-bit security at degree {scheme.degree} all primes together must be at most "
            f"{limit} bits; got {bits}"
        )
    if scheme.name == "ckks" and not 1.0 <= scheme.scale < math.inf:
        raise ValueError(f"the scale must be finite and at least 1; got {scheme.scale}")


def check_slots(scheme: Scheme, slots: npt.NDArray[Any]) -> None:
    """Refuse slots that are not [P, num_slots], uint64 below the modulus or finite float64.

    Raises:
        ValueError: and why.
    """
    kind = np.dtype(np.uint64 if scheme.name == "bfv" else np.float64)
    width = num_slots(scheme)
    if slots.dtype != kind or slots.ndim != 2 or slots.shape[1] != width:
        raise ValueError(f"slots must be {kind} [P, {width}]; got {slots.dtype} {slots.shape}")
    if scheme.name == "ckks" and not np.isfinite(slots).all():
        raise ValueError("slots must be finite; some are not")
    if scheme.name == "bfv" and slots.max(initial=0) >= scheme.modulus:
        raise ValueError(f"slots must be below {scheme.modulus}; got {slots.max()}")


def check_words(scheme: Scheme, c0: Words, c1: Words) -> None:
    """Refuse polynomials that are not uint64 [L, P, N], alike, and below the primes.

    Raises:
        ValueError: and why.
    """
    num_primes, degree = len(scheme.primes), scheme.degree
    for words in (c0, c1):
        alike = words.shape == c0.shape and words.ndim == 3 and words.dtype == np.uint64
        if not alike or words.shape[::2] != (num_primes, degree):
            wanted, got = f"uint64 [{num_primes}, P, {degree}]", f"{words.dtype} {words.shape}"
            raise ValueError(f"polynomials must be {wanted}, two alike; got {got}")
        for row, prime in zip(words, scheme.primes, strict=True):
            if row.max(initial=0) >= prime:
                raise ValueError(f"coefficients must be below the prime {prime}; got {row.max()}")
