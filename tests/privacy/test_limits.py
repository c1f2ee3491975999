import dataclasses

import numpy as np
import pytest
from tenseal import sealapi

from perennial.core.sums import Scheme
from perennial.privacy import lattice, limits
from perennial.privacy.ring import prime_below

N = 4096
PRIMES = (prime_below(58, N),)
BFV = Scheme("bfv", N, PRIMES, 0, prime_below(48, N), 0.0, "symmetric")
CKKS = Scheme("ckks", N, PRIMES, 0, 0, 2.0**30, "symmetric")
GOOD = np.zeros((1, 1, N), np.uint64)


@pytest.fixture(scope="module", params=[BFV, CKKS], ids=["bfv", "ckks"])
def parties(request):
    """A scheme and the sealer and opener of one key of it."""
    scheme = request.param
    secret, _ = lattice.generate(scheme)
    return scheme, lattice.Sealer(scheme, secret), lattice.Opener(scheme, secret)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 60 + 50 bits: one more than the 109 that 128-bit security allows at 4096.
        ({"primes": (prime_below(60, N),), "special": prime_below(50, N)}, "at most 109 bits"),
        ({"degree": 2048, "primes": (prime_below(60, 2048),)}, "at most 54 bits; got 60"),
        ({"degree": 1024}, "at most 27 bits"),
        ({"degree": 4095}, "degree must be one of"),
        ({"degree": 2**40}, "degree must be one of"),
        ({"name": "bgv"}, "must be bfv or ckks"),
        ({"model": "open"}, "symmetric or public"),
        ({"primes": (prime_below(40, N), prime_below(39, N))}, "must have a special"),
        ({"primes": ()}, "SEAL must accept the scheme"),
        ({"primes": (2**58 - 27,)}, "scheme must be valid"),  # prime, but not 1 modulo 8192
        ({"primes": (prime_below(40, N),), "special": prime_below(40, N)}, "must be valid"),
        ({"primes": (-5,)}, "SEAL must accept the scheme"),
        ({"primes": (1,)}, "SEAL must accept the scheme"),
        ({"primes": (prime_below(63, N),)}, "SEAL must accept the scheme"),
        ({"modulus": 0}, "must be valid"),
        ({"modulus": 2**48}, "SEAL must accept the plain modulus"),
        ({"modulus": prime_below(59, N)}, "must be valid"),
        ({"modulus": -1}, "SEAL must accept the scheme"),
        ({"name": "ckks", "modulus": 0, "scale": 0.0}, "scale must be"),
        ({"name": "ckks", "modulus": 0, "scale": float("nan")}, "scale must be"),
    ],
)
def test_schemes_that_are_unsafe_or_impossible_are_refused(changes, message):
    scheme = dataclasses.replace(BFV, **changes)
    with pytest.raises(ValueError, match=message):
        lattice.generate(scheme)
    for party in (lattice.Sealer, lattice.Opener):
        with pytest.raises(ValueError, match=message):
            party(scheme, b"")


def test_the_limits_are_seals_own():
    for degree, bits in limits.MAX_BITS.items():
        level = sealapi.SEC_LEVEL_TYPE.TC128
        assert sealapi.CoeffModulus.MaxBitCount(degree, level) == bits


def test_seal_refuses_unsafe_schemes_too(monkeypatch):
    monkeypatch.setitem(limits.MAX_BITS, N, 1000)
    scheme = dataclasses.replace(BFV, special=prime_below(60, N))
    with pytest.raises(ValueError, match=r"must be valid: .*security"):
        lattice.generate(scheme)


SLOTS = {
    "bfv": [
        (np.full((1, N), BFV.modulus, np.uint64), f"below {BFV.modulus}; got {BFV.modulus}"),
        (np.zeros((1, N - 1), np.uint64), "must be uint64"),
        (np.zeros(N, np.uint64), "must be uint64"),
        (np.zeros((1, N), np.int64), "must be uint64"),
        (np.zeros((1, N)), "must be uint64"),
    ],
    "ckks": [
        (np.full((1, N // 2), np.nan), "must be finite"),
        (np.full((1, N // 2), -np.inf), "must be finite"),
        (np.full((1, N // 2), 1e12), "SEAL must accept the slots"),
        (np.zeros((1, N)), "must be float64"),
        (np.zeros((1, N // 2), np.float32), "must be float64"),
    ],
}


def test_slots_that_do_not_fit_are_refused(parties):
    scheme, sealer, _ = parties
    for slots, message in SLOTS[scheme.name]:
        with pytest.raises(ValueError, match=message):
            sealer.encrypt(slots)


@pytest.mark.parametrize(
    "words",
    [
        GOOD + np.uint64(PRIMES[0]),
        GOOD.astype(np.int64),
        GOOD[..., 1:],
        GOOD[0],
        np.concatenate([GOOD, GOOD]),
        np.concatenate([GOOD, GOOD], axis=1),
    ],
    ids=["too large", "signed", "short", "flat", "two primes", "two ciphertexts"],
)
def test_polynomials_that_do_not_fit_are_refused(parties, words):
    opener = parties[2]
    for pair in ((words, GOOD), (GOOD, words)):
        with pytest.raises(ValueError, match="must be"):
            opener.decrypt(*pair)
        with pytest.raises(ValueError, match="must be"):
            opener.noise_budget(*pair)
