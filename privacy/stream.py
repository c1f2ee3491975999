"""Random numbers that nobody can foresee: AES-256 in counter mode under a key from the system.

Noise for privacy must not come from a generator whose state can be told from its output, be
restored from a checkpoint, or be the same in two processes. A stream is made anew for each use,
or from 32 secret bytes where the same noise must come again for the same update.
"""

from __future__ import annotations

import math
import secrets
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_UNIT = 2.0**-53
# Pairs of normals at a time: what a core's cache holds. A few come first, which are then the same
# under one key however many are drawn: guards know by them what came before.
_FIRST, _BLOCK = 8, 8192


class Stream:
    """One stream; not for several threads, never pickled.

    Args:
        key: 32 secret bytes; fresh ones from the system where they are not given.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key must be {KEY_BYTES} bytes; got {len(key)}")
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __reduce__(self) -> str:
        raise TypeError("a stream of secret random numbers is never copied or stored")

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` uniform 64-bit words."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8")

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """`count` numbers, uniform on a grid of 2**-53, in (0, 1)."""
        found = (self.words(count) >> np.uint64(11)).astype(np.float64)
        found += 0.5
        found *= _UNIT
        return found

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """`count` standard normals by Box and Muller (1958); at most 9.5 from zero."""
        half = -(-count // 2)
        found = np.empty(2 * half)
        for start, end in pairwise([0, *range(_FIRST, half, _BLOCK), half]):
            self._pairs(found[start:end], found[half + start : half + end])
        return found[:count]

    def _pairs(self, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> None:
        """Fill two arrays of one length with normals."""
        import torch  # its sines are five times as fast as numpy's; few of our callers need them

        # All 64 bits: with 53 the steps far out would be wider than the grid of our noise.
        lengths = self.words(len(first)).astype(np.float64)
        lengths += 0.5
        lengths *= 2.0**-64
        radius, angle = torch.from_numpy(lengths), torch.from_numpy(self.uniform(len(first)))
        radius.log_().mul_(-2.0).sqrt_()
        angle.mul_(2.0 * math.pi)
        torch.mul(radius, angle.cos(), out=torch.from_numpy(first))
        torch.mul(radius, angle.sin_(), out=torch.from_numpy(second))
