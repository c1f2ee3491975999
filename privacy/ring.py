"""Ciphertexts as integers modulo primes: their bytes and their sums, and nothing that decrypts.

This is all that a server needs of a lattice scheme. A ciphertext is two polynomials, c0 and c1,
and the sum of ciphertexts is that of their coefficients modulo each prime (Fan and Vercauteren
2012, ePrint 2012/144; Cheon, Kim, Kim and Song 2017, ePrint 2016/421). One that was made with the
secret key is seeded: 64 bytes stand for its c1, which halves it.

Letters: `L` primes, `P` ciphertexts, `N` coefficients of a polynomial (the degree).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..core.sums import Scheme
from .blake import SEED_BYTES, Words, expand

# Miller-Rabin with these is exact below 3.3e24 (Sorenson and Webster 2015, arXiv:1509.00864).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

# 64 values of any width fill whole words; this many such groups at once stay in the cache.
_GROUPS = 1024


@lru_cache
def prime_below(bits: int, degree: int, skip: int = 0) -> int:
    """The largest prime below 2**bits that is 1 modulo 2 * degree, as slots and fast sums need.

    Args:
        bits: 2..64.
        degree: of the polynomials, >= 1.
        skip: number of larger such primes to pass over, for a chain of distinct ones.

    Raises:
        ValueError: there is none.
    """
    if not 2 <= bits <= 64 or degree < 1 or skip < 0:
        raise ValueError(f"bits must be 2..64 and degree >= 1; got {bits}, {degree}, skip {skip}")
    step = 2 * degree
    found = filter(_is_prime, range((2**bits - 2) // step * step + 1, step, -step))
    for prime in itertools.islice(found, skip, None):
        return prime
    raise ValueError(f"{skip + 1} primes below 2**{bits} must be 1 modulo {step}; there are fewer")


def _is_prime(n: int) -> bool:
    if n < 2 or any(n % prime == 0 for prime in _WITNESSES):
        return n in _WITNESSES
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    for witness in _WITNESSES:
        x = pow(witness, (n - 1) >> twos, n)
        if x != 1 and all(pow(x, 1 << i, n) != n - 1 for i in range(twos)):
            return False
    return True


def pack_bits(values: Words, width: int) -> bytes:
    """`values` [n] at `width` bits each, lowest bit first: ceil(n * width / 8) bytes.

    Raises:
        ValueError: the width is not 1..64, or a value does not fit it.
    """
    _check_width(width)
    top = int(values.max(initial=0))
    if top >> width:
        raise ValueError(f"the values must be below 2**{width}; got {top}")
    size = -(-values.size * width // 8)
    if values.size % 64:
        values = np.concatenate([values, np.zeros(-values.size % 64, np.uint64)])
    lanes = values.reshape(-1, 64)
    words = np.empty((len(lanes), width), "<u8")
    for start in range(0, len(lanes), _GROUPS):
        words[start : start + _GROUPS] = _packed(lanes[start : start + _GROUPS], width)
    return words.tobytes()[:size]


def _packed(lanes: Words, width: int) -> Words:
    """Words [g, width] of values [g, 64]; works on columns, which are alike in every group."""
    columns = np.zeros((width, len(lanes)), np.uint64)
    spare = np.empty(len(lanes), np.uint64)
    for i, lane in enumerate(np.ascontiguousarray(lanes.T)):
        word, shift = divmod(i * width, 64)
        columns[word] |= np.left_shift(lane, np.uint64(shift), out=spare)
        if shift + width > 64:
            np.right_shift(lane, np.uint64(64 - shift), out=columns[word + 1])
    return columns.T


def unpack_bits(data: bytes | memoryview, count: int, width: int) -> Words:
    """The `count` values that `pack_bits` packed, uint64 [count]; spare bits at the end are lost.

    Raises:
        ValueError: the width is not 1..64, or the length is not that of `count` values.
    """
    _check_width(width)
    size = -(-count * width // 8)
    if count < 0 or len(data) != size:
        raise ValueError(f"{count} values of {width} bits must be {size} bytes; got {len(data)}")
    groups = -(-count // 64)
    words = np.frombuffer(bytes(data).ljust(8 * groups * width, b"\0"), "<u8")
    words = words.astype(np.uint64, copy=False).reshape(groups, width)
    lanes = np.empty((groups, 64), np.uint64)
    for start in range(0, groups, _GROUPS):
        lanes[start : start + _GROUPS] = _unpacked(words[start : start + _GROUPS], width)
    return lanes.reshape(-1)[:count]


def _unpacked(words: Words, width: int) -> Words:
    """Values [g, 64] of words [g, width]."""
    columns = np.ascontiguousarray(words.T)
    lanes = np.empty((64, len(words)), np.uint64)
    spare = np.empty(len(words), np.uint64)
    for i, lane in enumerate(lanes):
        word, shift = divmod(i * width, 64)
        np.right_shift(columns[word], np.uint64(shift), out=lane)
        if shift + width > 64:
            lane |= np.left_shift(columns[word + 1], np.uint64(64 - shift), out=spare)
    lanes &= np.uint64(2**width - 1)
    return lanes.T


def _check_width(width: int) -> None:
    if not 1 <= width <= 64:
        raise ValueError(f"the width must be 1..64 bits; got {width}")


@dataclass(frozen=True, slots=True)
class Form:
    """The one form in which ciphertexts travel; its length follows from their number alone.

    For each prime, c0 of every ciphertext at the bits of the prime; then the seeds, or c1 in the
    same way. Nothing in it tells a reader how much to read.

    Attributes:
        scheme: whose degree and primes count.
        seeded: with seeds for c1: fresh ciphertexts of the secret key, never a sum.
    """

    scheme: Scheme
    seeded: bool

    def size_bytes(self, count: int) -> int:
        """Length of `count` ciphertexts."""
        half = sum(-(-self.scheme.degree * p.bit_length() // 8) for p in self.scheme.primes)
        return count * (half + (SEED_BYTES if self.seeded else half))

    def count(self, size_bytes: int) -> int:
        """Number of ciphertexts in so many bytes.

        Raises:
            ValueError: it is not whole.
        """
        count, rest = divmod(size_bytes, self.size_bytes(1))
        if rest:
            one = self.size_bytes(1)
            raise ValueError(f"ciphertexts must be a multiple of {one} bytes; got {size_bytes}")
        return count

    def write(self, c0: Words, rest: Sequence[bytes] | Words) -> bytes:
        """The bytes of ciphertexts.

        Args:
            c0: [L, P, N], below the primes.
            rest: P seeds, or c1 [L, P, N].

        Raises:
            ValueError: shapes, seeds or coefficients do not fit the form.
        """
        parts = self._pack(c0)
        if isinstance(rest, np.ndarray):
            parts += self._pack(rest)
        else:
            parts += rest
        body = b"".join(parts)
        if self.seeded is isinstance(rest, np.ndarray) or len(body) != self.size_bytes(c0.shape[1]):
            raise ValueError("c0 must come with as many seeds, or polynomials, as the form says")
        return body

    def read(self, body: bytes, count: int) -> tuple[Words, Words]:
        """c0 and c1 of `count` ciphertexts in a peer's `body`, uint64 [L, P, N] each; own arrays.

        Raises:
            ValueError: the length is not that of `count`, or a coefficient is not below its prime.
        """
        size = self.size_bytes(count)
        if count < 0 or len(body) != size:
            raise ValueError(f"{count} ciphertexts must be {size} bytes; got {len(body)}")
        view = memoryview(body)
        c0, view = self._unpack(view, count)
        if not self.seeded:
            return c0, self._unpack(view, count)[0]
        seeds = [bytes(view[i : i + SEED_BYTES]) for i in range(0, len(view), SEED_BYTES)]
        return c0, expand(seeds, self.scheme.degree, self.scheme.primes)

    def _pack(self, words: Words) -> list[bytes]:
        primes = self.scheme.primes
        if words.ndim != 3 or words.shape[::2] != (len(primes), self.scheme.degree):
            wanted = f"[{len(primes)}, P, {self.scheme.degree}]"
            raise ValueError(f"polynomials must be of shape {wanted}; got {list(words.shape)}")
        pairs = zip(words, primes, strict=True)
        return [pack_bits(row.reshape(-1), prime.bit_length()) for row, prime in pairs]

    def _unpack(self, view: memoryview, count: int) -> tuple[Words, memoryview]:
        """Polynomials [L, P, N] at the front of `view`, and what follows them."""
        degree, primes = self.scheme.degree, self.scheme.primes
        words = np.empty((len(primes), count, degree), np.uint64)
        for row, prime in zip(words, primes, strict=True):
            width = prime.bit_length()
            size = -(-count * degree * width // 8)
            row[...] = unpack_bits(view[:size], count * degree, width).reshape(count, degree)
            top = int(row.max(initial=0))
            if top >= prime:
                raise ValueError(f"coefficients must be below the prime {prime}; got {top}")
            view = view[size:]
        return words, view


@dataclass(frozen=True, slots=True)
class Total:
    """A running sum of ciphertexts: c0 and c1, uint64 [L, P, N] each, which `add` changes."""

    c0: Words
    c1: Words


def add(total: Total | None, c0: Words, c1: Words, primes: Sequence[int]) -> Total:
    """`total` with the ciphertexts c0, c1 added to it, in place; its memory does not grow.

    Args:
        total: None for the first, whose arrays become those of the total.
        c0: [L, P, N], below the primes.
        c1: likewise.
        primes: L, below 2**63.

    Raises:
        ValueError: the shapes differ.
    """
    if total is None:
        return Total(c0, c1)
    if not total.c0.shape == total.c1.shape == c0.shape == c1.shape:
        raise ValueError(f"ciphertexts must be of shape {total.c0.shape}; got {c0.shape}")
    spare = np.empty(c0.shape[2], np.uint64)
    for sums, terms in ((total.c0, c0), (total.c1, c1)):
        for row, (mine, theirs) in enumerate(zip(sums, terms, strict=True)):
            prime = np.array(primes[row], np.uint64)
            for x, y in zip(mine, theirs, strict=True):
                np.add(x, y, out=x)
                # Below the prime, the difference wraps to a huge number, and x stays.
                np.minimum(x, np.subtract(x, prime, out=spare), out=x)
    return total
