"""The uniform polynomial that a 64-byte seed stands for in a seeded ciphertext.

Sources: Microsoft SEAL 4.1, `sample_poly_uniform` and its `Blake2xbPRNG`, for what is drawn in
which order; RFC 7693 (BLAKE2b) and BLAKE2X (Aumasson, Neves, Wilcox-O'Hearn and Winnerlein 2016)
for the hash. The leaves of BLAKE2X have depth 0, which hashlib refuses: hence the rounds in numpy,
over thousands of blocks at once.

Letters: `L` primes, `P` polynomials, `N` coefficients of each, `B` buffers of the stream.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

SEED_BYTES = 64

# SEAL draws its stream in buffers of 4096 bytes, each 64 hash blocks of 8 words.
_BUFFER_BYTES = 4096
_BUFFER_WORDS = 512
_BUFFER_BLOCKS = 64
# Buffers hashed at once: the 25 words in use of each block then take 0.8 MB, which a second-level
# cache holds; with fewer, the calls of numpy cost more than their work.
_BATCH = 64

# RFC 7693: the initial state (2.6); the order of the message words in the twelve rounds (2.7), of
# which the last two are the first two again.
_START = (
    0x6A09E667F3BCC908,
    0xBB67AE8584CAA73B,
    0x3C6EF372FE94F82B,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
    0x9B05688C2B3E6C1F,
    0x1F83D9ABFB41BD6B,
    0x5BE0CD19137E2179,
)
_ORDERS = (
    "0123456789abcdef ea489fd61c02b753 b8c052fdae367194 7931dcbe265a40f8 905724afe1bc683d "
    "2c6a0b834d75fe19 c51fed4a0763928b db7ec13950f4862a 6fe9b308c2d714a5 a2847615fb9e3cd0 "
    "0123456789abcdef ea489fd61c02b753"
)
_Orders: TypeAlias = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


def _words_of(order: str, half: int) -> _Orders:
    # (row, message word) of the first and of the second addition; words 8 to 15 are zero.
    digits = [int(digit, 16) for digit in order[8 * half : 8 * half + 8]]
    pairs = [tuple((row, digits[2 * row + i]) for row in range(4)) for i in (0, 1)]
    first, second = (tuple(pair for pair in found if pair[1] < 8) for found in pairs)
    return first, second


_MIXES = tuple((_words_of(order, 0), _words_of(order, 1)) for order in _ORDERS.split())
# Lower half of a leaf's state: the start xor its parameters (digest and leaf length 64, fan-out
# and depth 0; length of the stream, its index being added later; inner length 64).
_LEAF = (64 | 64 << 32, _BUFFER_BYTES << 32, 64 << 8, 0, 0, 0, 0, 0)
_LOWER = np.array([s ^ p for s, p in zip(_START, _LEAF, strict=True)], np.uint64)
# Upper half: the start xor the message's length, 64, and the mark of a last block.
_LAST = (0, 0, 0, 0, 64, 0, 2**64 - 1, 0)
_UPPER = np.array([s ^ p for s, p in zip(_START, _LAST, strict=True)], np.uint64)
# By how much words turn right, and the rest to 64; arrays, which a ufunc takes faster than scalars.
_TURNS = [(np.array(r, np.uint64), np.array(64 - r, np.uint64)) for r in (32, 24, 16, 63)]


def expand(seeds: Sequence[bytes], degree: int, primes: Sequence[int]) -> Words:
    """The uniform polynomials that SEAL derives from `seeds`, uint64 [L, P, N].

    Args:
        seeds: P of 64 bytes; public.
        degree: N.
        primes: L moduli below 2**63; row l of the result lies in 0..primes[l] - 1.

    Raises:
        ValueError: a seed is not 64 bytes.
    """
    if any(len(seed) != SEED_BYTES for seed in seeds):
        raise ValueError(f"a seed must be {SEED_BYTES} bytes; got {sorted({*map(len, seeds)})}")
    result = np.empty((len(primes), len(seeds), degree), np.uint64)
    buffers = -(-len(primes) * degree // _BUFFER_WORDS)
    together = max(1, _BATCH // buffers)
    for start in range(0, len(seeds), together):
        some = seeds[start : start + together]
        words = _stream(some, 0, buffers)[:, : len(primes) * degree]
        words = words.reshape(len(some), len(primes), degree)
        _redraw(words, some, primes)
        for row, prime in enumerate(primes):
            out = result[row, start : start + together]
            # What np.remainder gives, at two thirds of its price.
            np.floor_divide(words[:, row], np.array(prime, np.uint64), out=out)
            out *= np.array(prime, np.uint64)
            np.subtract(words[:, row], out, out=out)
    return result


def _redraw(words: Words, seeds: Sequence[bytes], primes: Sequence[int]) -> None:
    # Small remainders would be likelier if the words [P, L, N] above the largest multiple of the
    # prime stayed: the next words of the same stream replace them, in order.
    limits = [2**64 - 2 - (2**64 - 1) % prime for prime in primes]
    rejected = np.argwhere(words >= np.array(limits, np.uint64)[:, None])
    for index, places in itertools.groupby(rejected.tolist(), lambda place: int(place[0])):
        spare = _words_from(seeds[index], words[index].size)
        for _, row, column in places:
            limit = limits[row]
            words[index, row, column] = next(word for word in spare if word < limit)


def _words_from(seed: bytes, start: int) -> Iterator[int]:
    first, skipped = divmod(start, _BUFFER_WORDS)
    for number in itertools.count(first):
        yield from _stream([seed], number, 1)[0, skipped:].tolist()
        skipped = 0


def _stream(seeds: Sequence[bytes], first: int, buffers: int) -> Words:
    """The buffers from number `first` on of each seed, uint64 [P, buffers * 512]."""
    numbers = [number.to_bytes(8, "little") for number in range(first, first + buffers)]
    roots = b"".join(_root(seed, number) for seed in seeds for number in numbers)
    messages = np.frombuffer(roots, "<u8").astype(np.uint64, copy=False).reshape(-1, 8)
    out = np.empty((len(messages), _BUFFER_BLOCKS, 8), np.uint64)
    for start in range(0, len(messages), _BATCH):
        out[start : start + _BATCH] = _leaves(messages[start : start + _BATCH])
    return out.reshape(len(seeds), buffers * _BUFFER_WORDS)


def _root(seed: bytes, number: bytes) -> bytes:
    # BLAKE2X keeps the length of the stream in the upper half of what hashlib calls node_offset.
    offset = _BUFFER_BYTES << 32
    return hashlib.blake2b(number, digest_size=64, key=seed, node_offset=offset).digest()


def _leaves(messages: Words) -> Words:
    """The stream of each root in `messages` [B, 8]: a view [B, 64, 8] of the final state."""
    state = np.empty((16, len(messages), _BUFFER_BLOCKS), np.uint64)
    lower, upper = state[:8], state[8:]
    index = np.arange(_BUFFER_BLOCKS, dtype=np.uint64)
    lower[...] = _LOWER[:, None, None]
    upper[...] = _UPPER[:, None, None]
    lower[1] ^= index
    _mix(state.reshape(16, -1), np.repeat(messages.T, _BUFFER_BLOCKS, axis=1))
    lower ^= upper
    lower ^= _LOWER[:, None, None]
    lower[1] ^= index
    return lower.transpose(1, 2, 0)


def _mix(state: Words, message: Words) -> None:
    """BLAKE2b's rounds on `state` [16, n] in place; `message` [8, n], its other words being 0.

    The four mixes of half a round are independent, so they run as one over four rows. Before the
    second half the rows of b, c and d turn by one, two and three: each lies in a taller array, and
    a window of four rows slides down over copies of its first ones.
    """
    a, windows = state[:4], [np.empty((7, state.shape[1]), np.uint64) for _ in range(3)]
    for window, start in zip(windows, (4, 8, 12), strict=True):
        window[:4] = state[start : start + 4]
    spare, (b, c, d) = np.empty_like(a), windows
    for columns, diagonals in _MIXES:
        _mix_rows((a, b[:4], c[:4], d[:4]), message, columns, spare)
        for turn, window in enumerate(windows, 1):
            window[4 : 4 + turn] = window[:turn]
        _mix_rows((a, b[1:5], c[2:6], d[3:7]), message, diagonals, spare)
        for turn, window in enumerate(windows, 1):
            window[:turn] = window[4 : 4 + turn]
    for window, start in zip(windows, (4, 8, 12), strict=True):
        state[start : start + 4] = window[:4]


def _mix_rows(
    state: tuple[Words, Words, Words, Words], message: Words, orders: _Orders, spare: Words
) -> None:
    """Four mixes at once, rows [4, n] in place; `orders` says which words go to which row."""
    a, b, c, d = state
    for step, (x, y, z) in enumerate(((a, b, d), (c, d, b), (a, b, d), (c, d, b))):
        np.add(x, y, out=x)
        if step % 2 == 0:
            for row, word in orders[step // 2]:
                np.add(x[row], message[word], out=x[row])
        np.bitwise_xor(z, x, out=z)
        right, left = _TURNS[step]
        np.right_shift(z, right, out=spare)
        np.left_shift(z, left, out=z)
        np.bitwise_or(z, spare, out=z)
