import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from perennial.privacy import keystream
from perennial.privacy.keystream import mask

PRIME_48 = 2**48 - 59
MODULI = [2, 3, 2**17, 1_000_003, PRIME_48, 2**48, 2**60 - 93, 2**62 + 1, 2**63 - 25, 2**63]
SEED = bytes(range(32))


def seeds_of(num, source=0):
    rng = random.Random(source)
    return [(rng.choice([-1, 1]), rng.randbytes(32)) for _ in range(num)]


def slowly(seeds, count, modulus):
    """The definition, word by word in Python's own integers."""
    total = [0] * count
    for sign, seed in seeds:
        cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        raw = cipher.update(bytes(8 * (2 * count + 100)))
        words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
        kept = [word for word in words if word < 2**64 // modulus * modulus][:count]
        total = [(a + sign * word) % modulus for a, word in zip(total, kept, strict=True)]
    return total


def test_a_fixed_vector():
    # AES-256 of the zero block under the zero key (NIST's known answer), as two words.
    block = bytes.fromhex("dc95c078a2408989ad48a21492842087")
    words = [int.from_bytes(block[:8], "little"), int.from_bytes(block[8:], "little")]
    found = mask([(1, bytes(32))], 2, 2**63)
    assert found.dtype == np.uint64
    assert found.tolist() == [word % 2**63 for word in words]
    assert mask([(-1, bytes(32))], 2, PRIME_48).tolist() == [-word % PRIME_48 for word in words]


@pytest.mark.parametrize("modulus", MODULI)
def test_it_is_what_its_definition_says(modulus):
    for num in (1, 2, 7):
        assert mask(seeds_of(num, num), 200, modulus).tolist() == slowly(
            seeds_of(num, num), 200, modulus
        )


@pytest.mark.parametrize("modulus", [2**62 + 1, 2**64 // 3 + 1, PRIME_48, 2**20])
def test_neither_count_nor_blocks_change_the_stream(modulus, monkeypatch):
    whole = mask(seeds_of(3), 40_000, modulus)
    assert mask(seeds_of(3), 16_385, modulus).tolist() == whole[:16_385].tolist()
    assert mask(seeds_of(3), 1, modulus).tolist() == whole[:1].tolist()
    monkeypatch.setattr(keystream, "_BLOCK", 77)
    assert mask(seeds_of(3), 40_000, modulus).tolist() == whole.tolist()


def test_rejections_happen_where_they_must():
    # Just above 2**62 three of four words are below 3 * modulus; the definition drops the rest.
    modulus = 2**62 + 1
    raw = Cipher(algorithms.AES(SEED), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 20_000))
    words = np.frombuffer(raw, "<u8")
    rejected = (words >= 3 * modulus).mean()
    assert 0.23 < rejected < 0.27
    kept = words[words < 3 * modulus][:10_000]
    assert mask([(1, SEED)], 10_000, modulus).tolist() == (kept % modulus).tolist()


@pytest.mark.parametrize("modulus", MODULI)
def test_a_seed_and_its_negative_cancel(modulus):
    seeds = seeds_of(5)
    both = seeds + [(-sign, seed) for sign, seed in seeds]
    assert not mask(both, 5_000, modulus).any()
    other = mask([(-sign, seed) for sign, seed in seeds], 5_000, modulus)
    total = mask(seeds, 5_000, modulus).astype(object) + other.astype(object)
    assert not (total % modulus).any()


@pytest.mark.parametrize("sign", [-1, 1])
def test_many_seeds_of_one_sign_do_not_overflow(sign):
    seeds = [(sign, seed) for _, seed in seeds_of(300)]
    assert mask(seeds, 20, 2**63 - 25).tolist() == slowly(seeds, 20, 2**63 - 25)


def test_wraps_of_both_ends_of_their_range():
    total = np.array([5, 7], np.uint64)
    keystream._reduce(total, np.array([-32767, 32767], np.int16), PRIME_48)
    assert total.tolist() == [(5 - 32767 * 2**64) % PRIME_48, (7 + 32767 * 2**64) % PRIME_48]


@pytest.mark.parametrize("modulus", [256, 1_000_003, PRIME_48, 2**62 + 1, 2**63 - 25, 2**63])
@pytest.mark.parametrize("num", [1, 3])
def test_words_are_uniform(modulus, num):
    words = mask(seeds_of(num), 262_144, modulus)
    assert int(words.max()) < modulus
    bins = np.bincount((words.astype(np.float64) * (256 / modulus)).astype(int).clip(0, 255))
    expected = 262_144 / 256
    chi = float(((bins - expected) ** 2 / expected).sum())
    assert 255 - 5 * 22.6 < chi < 255 + 5 * 22.6  # chi-square of 255 degrees: sigma 22.6


@pytest.mark.parametrize("modulus", [2, 5, 16])
def test_small_moduli_give_each_value_equally_often(modulus):
    counts = np.bincount(mask(seeds_of(2), 200_000, modulus).astype(int), minlength=modulus)
    assert np.abs(counts - 200_000 / modulus).max() < 5 * np.sqrt(200_000 / modulus)


def test_a_masked_vector_says_nothing_of_its_input():
    rng = np.random.default_rng(0)
    clear = rng.normal(2.0**47, 2.0**44, 100_000).astype(np.uint64) % PRIME_48
    masked = (clear + mask([(1, SEED)], 100_000, PRIME_48)) % PRIME_48
    assert abs(np.corrcoef(clear.astype(float), masked.astype(float))[0, 1]) < 5 / np.sqrt(100_000)


def test_streams_of_two_seeds_are_unlike():
    one, two = (mask([(1, bytes([i]) * 32)], 100_000, PRIME_48).astype(float) for i in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(100_000)
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / np.sqrt(100_000)


def test_nothing_to_do():
    assert mask([], 3, 7).tolist() == [0, 0, 0]
    assert mask([(1, SEED)], 0, 7).shape == (0,)


@pytest.mark.parametrize(
    ("seeds", "count", "modulus"),
    [
        ([(1, SEED)], 4, 1),
        ([(1, SEED)], 4, 0),
        ([(1, SEED)], 4, 2**63 + 1),
        ([(1, SEED)], -1, 7),
        ([(0, SEED)], 4, 7),
        ([(2, SEED)], 4, 7),
        ([(1, SEED[:31])], 4, 7),
        ([(1, b"")], 4, 7),
        ([(1, SEED)] * 32_768, 4, 7),
    ],
)
def test_arguments_out_of_range_are_refused(seeds, count, modulus):
    with pytest.raises(ValueError, match=r"must be|at most"):
        mask(seeds, count, modulus)
