import itertools
import struct

import numpy as np
import pytest
from tenseal import sealapi

from perennial.privacy import blake
from perennial.privacy.blake import expand
from perennial.privacy.ring import prime_below


def seeds(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(64) for _ in range(count)]


def seal_words(seed):
    """The 64-bit words of SEAL's own generator."""
    generator = sealapi.Blake2xbPRNG(list(struct.unpack("<8Q", seed)))
    while True:
        yield generator.generate() | generator.generate() << 32


def by_the_book(seed, degree, primes):
    """`sample_poly_uniform` of SEAL, one word after the other, and the number of redrawn words."""
    stream = seal_words(seed)
    words = np.array(list(itertools.islice(stream, len(primes) * degree)), object)
    redrawn = 0
    for row, prime in zip(words.reshape(-1, degree), primes, strict=True):
        limit = (2**64 - 1) - (2**64 - 1) % prime - 1
        for i in range(degree):
            while row[i] >= limit:
                row[i] = next(stream)
                redrawn += 1
            row[i] %= prime
    return words.reshape(-1, degree).astype(np.uint64), redrawn


def smallest_above(bits, degree):
    """The smallest prime above 2**bits that is 1 modulo 2 * degree."""
    candidates = itertools.count(2**bits + 1, 2 * degree)
    return next(q for q in candidates if sealapi.Modulus(q).is_prime())


@pytest.mark.parametrize("bits", [20, 58, 60])
def test_a_seed_gives_the_polynomial_that_seal_draws(bits):
    (seed,) = seeds(1)
    prime = prime_below(bits, 1024)
    wanted, _ = by_the_book(seed, 1024, [prime])
    found = expand([seed], 1024, [prime])
    assert found.dtype == np.uint64
    assert np.array_equal(found[:, 0], wanted)


def test_words_that_would_favour_small_values_are_redrawn_from_the_same_stream():
    # 2**64 is 31 times a prime just above 2**59 and nearly once more: 1 in 32 words is rejected.
    prime = smallest_above(59, 1024)
    assert 2**59 < prime < 2**59 + 2**40
    found = expand(seeds(3), 1024, [prime])
    for i, seed in enumerate(seeds(3)):
        wanted, redrawn = by_the_book(seed, 1024, [prime])
        assert 15 < redrawn < 60
        assert np.array_equal(found[:, i], wanted)


def test_redrawing_goes_through_several_primes_and_buffers_and_may_repeat():
    # Of a modulus just above 2**62, every fourth word is rejected: 1000 words are two buffers.
    primes = [2**62 + 1, 2**59 + 1, 2**62 + 3]
    found = expand(seeds(2), 1024, primes)
    for i, seed in enumerate(seeds(2)):
        wanted, redrawn = by_the_book(seed, 1024, primes)
        assert redrawn > 512
        assert np.array_equal(found[:, i], wanted)


def test_small_degrees_share_a_buffer():
    found = expand(seeds(2), 4, [97, 193])
    for i, seed in enumerate(seeds(2)):
        assert np.array_equal(found[:, i], by_the_book(seed, 4, [97, 193])[0])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 70])
def test_a_seed_is_alone_in_its_polynomial(count):
    # More than one batch of buffers, and batches that are not full.
    primes = [prime_below(40, 4096)]
    together = expand(seeds(count), 4096, primes)
    assert together.shape == (1, count, 4096)
    for i in {0, count // 2, count - 1}:
        assert np.array_equal(together[:, i : i + 1], expand(seeds(count)[i : i + 1], 4096, primes))


def test_polynomials_longer_than_a_batch():
    primes = [prime_below(50, 32768), prime_below(49, 32768)]
    (seed,) = seeds(1)
    found = expand([seed], 32768, primes)
    stream = seal_words(seed)
    first = [next(stream) for _ in range(65536)][-8:]
    assert [int(x) % primes[1] for x in first] == found[1, 0, -8:].tolist()


def test_no_seeds():
    assert expand([], 1024, [12289]).shape == (1, 0, 1024)


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_seed_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match="must be 64 bytes"):
        expand([bytes(64), bytes(length)], 1024, [12289])


def test_the_batch_does_not_change_the_result(monkeypatch):
    wanted = expand(seeds(5), 1024, [12289])
    monkeypatch.setattr(blake, "_BATCH", 3)
    assert np.array_equal(expand(seeds(5), 1024, [12289]), wanted)
