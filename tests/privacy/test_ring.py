import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perennial.core.sums import Scheme
from perennial.privacy.ring import Form, Total, add, expand, pack_bits, prime_below, unpack_bits

N = 1024
PRIMES = (prime_below(27, N), prime_below(19, N))
SCHEME = Scheme("bfv", N, PRIMES, 0, 12289, 0.0, "symmetric")
SEEDED, WHOLE = Form(SCHEME, seeded=True), Form(SCHEME, seeded=False)
SEEDS = [bytes([i]) * 64 for i in range(3)]


def polynomials(count, seed=0, primes=PRIMES):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, prime, (count, N), np.uint64) for prime in primes])


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("degree", [1, 2, 3, 8, 64])
def test_primes_are_the_largest_below(bits, degree):
    found = [p for p in range(2**bits) if p % (2 * degree) == 1 and is_prime(p)][::-1]
    for skip, prime in enumerate(found):
        assert prime_below(bits, degree, skip) == prime
    with pytest.raises(ValueError, match="must be 1 modulo"):
        prime_below(bits, degree, len(found))


def test_primes_by_name():
    assert prime_below(58, 4096) == 288230376151130113  # what SEAL makes of 58 bits
    assert prime_below(64, 1) == 2**64 - 59


@pytest.mark.parametrize("liar", [3215031751, 3825123056546413051])
def test_products_that_fool_the_first_four_and_nine_witnesses_are_no_primes(liar):
    with pytest.raises(ValueError, match="there are fewer"):
        prime_below(liar.bit_length(), (liar - 1) // 2)


@pytest.mark.parametrize(("bits", "degree", "skip"), [(1, 1, 0), (65, 1, 0), (9, 0, 0), (9, 1, -1)])
def test_primes_out_of_range_are_refused(bits, degree, skip):
    with pytest.raises(ValueError, match="must be"):
        prime_below(bits, degree, skip)


def test_three_values_of_three_bits_by_hand():
    # 1 + 2 * 8 + 7 * 64 = 465 = 0x01d1
    assert pack_bits(np.array([1, 2, 7], np.uint64), 3) == bytes.fromhex("d101")
    assert unpack_bits(bytes.fromhex("d101"), 3, 3).tolist() == [1, 2, 7]


widths_and_values = st.integers(1, 64).flatmap(
    lambda width: st.tuples(
        st.just(width),
        arrays(np.uint64, st.integers(0, 200), elements=st.integers(0, 2**width - 1)),
    )
)


@settings(max_examples=200, deadline=None)
@given(widths_and_values)
def test_packed_bits_are_one_number_with_the_first_value_lowest(case):
    width, values = case
    packed = pack_bits(values, width)
    assert len(packed) == -(-len(values) * width // 8)
    number = sum(int(value) << width * i for i, value in enumerate(values))
    assert int.from_bytes(packed, "little") == number
    assert np.array_equal(unpack_bits(packed, len(values), width), values)


@pytest.mark.parametrize("width", [1, 13, 32, 58, 63, 64])
def test_many_values(width):
    values = np.random.default_rng(width).integers(0, 2**width - 1, 200_003, np.uint64, True)
    packed = pack_bits(values, width)
    assert len(packed) == -(-200_003 * width // 8)
    assert np.array_equal(unpack_bits(memoryview(packed), 200_003, width), values)
    part = 64 * 1024 + 8
    assert pack_bits(values[:part], width) == packed[: part * width // 8]


@pytest.mark.parametrize("width", [0, 65, -1])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match=r"must be 1\.\.64"):
        pack_bits(np.zeros(3, np.uint64), width)
    with pytest.raises(ValueError, match=r"must be 1\.\.64"):
        unpack_bits(b"", 0, width)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"below 2\*\*5; got 32"):
        pack_bits(np.array([31, 32], np.uint64), 5)
    for length in (0, 1, 3):
        with pytest.raises(ValueError, match="must be 2 bytes"):
            unpack_bits(bytes(length), 3, 5)
    with pytest.raises(ValueError, match="must be"):
        unpack_bits(b"", -1, 5)


def test_the_length_of_a_form():
    # 27 and 19 bits for each of 1024 coefficients, and a seed or as much again.
    assert SEEDED.size_bytes(1) == 1024 * (27 + 19) // 8 + 64 == 5952
    assert WHOLE.size_bytes(3) == 3 * 2 * 5888
    assert [SEEDED.count(5952 * n) for n in (0, 1, 7)] == [0, 1, 7]
    for size in (1, 5951, 5953):
        with pytest.raises(ValueError, match="multiple of 5952"):
            SEEDED.count(size)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_seeded_form_is_read_as_it_was_written(count):
    c0 = polynomials(count)
    body = SEEDED.write(c0, SEEDS[:count])
    assert len(body) == SEEDED.size_bytes(count)
    first, second = SEEDED.read(body, count)
    assert np.array_equal(first, c0)
    assert np.array_equal(second, expand(SEEDS[:count], N, PRIMES))
    assert first.flags.writeable
    assert second.flags.writeable


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_whole_form_is_read_as_it_was_written(count):
    c0, c1 = polynomials(count), polynomials(count, 1)
    first, second = WHOLE.read(WHOLE.write(c0, c1), count)
    assert np.array_equal(first, c0)
    assert np.array_equal(second, c1)


def test_the_layout_is_primes_then_seeds():
    c0 = polynomials(2)
    body = SEEDED.write(c0, SEEDS[:2])
    cut = 2 * N * 27 // 8
    assert body[:cut] == pack_bits(c0[0].reshape(-1), 27)
    assert body[cut:-128] == pack_bits(c0[1].reshape(-1), 19)
    assert body[-128:] == SEEDS[0] + SEEDS[1]


@pytest.mark.parametrize(
    ("form", "c0", "rest"),
    [
        (SEEDED, polynomials(2), SEEDS[:1]),
        (SEEDED, polynomials(2), [*SEEDS[:1], b"short"]),
        (SEEDED, polynomials(2), polynomials(2)),
        (WHOLE, polynomials(2), SEEDS[:2]),
        (WHOLE, polynomials(2), polynomials(1)),
        (WHOLE, polynomials(2)[:1], polynomials(2)[:1]),
        (WHOLE, polynomials(2)[..., :-1], polynomials(2)[..., :-1]),
        (WHOLE, polynomials(2)[0], polynomials(2)[0]),
        (WHOLE, polynomials(2) + np.uint64(2**27), polynomials(2)),
    ],
)
def test_what_a_form_cannot_hold_is_refused(form, c0, rest):
    with pytest.raises(ValueError, match="must"):
        form.write(c0, rest)


@pytest.mark.parametrize("form", [SEEDED, WHOLE], ids=["seeded", "whole"])
def test_another_length_is_refused(form):
    body = form.write(polynomials(2), SEEDS[:2] if form.seeded else polynomials(2))
    for wrong in (b"", b"x", body[:-1], body + b"x", body[: len(body) // 2], body * 2):
        with pytest.raises(ValueError, match="2 ciphertexts must be"):
            form.read(wrong, 2)
    for count in (-1, 0, 1, 3, 2**62):
        with pytest.raises(ValueError, match="ciphertexts must be"):
            form.read(body, count)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("excess", [0, 1])
def test_a_coefficient_that_is_not_below_its_prime_is_refused(row, excess):
    for part in (0, 1):
        pair = [polynomials(2), polynomials(2, 1)]
        pair[part][row, 1, 77] = PRIMES[row] + excess
        body = WHOLE.write(*pair)
        with pytest.raises(ValueError, match=f"must be below the prime {PRIMES[row]}; got"):
            WHOLE.read(body, 2)
    pair[part][row, 1, 77] = PRIMES[row] - 1
    WHOLE.read(WHOLE.write(*pair), 2)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_random_bytes_are_refused_or_read_as_polynomials(data):
    form = data.draw(st.sampled_from([SEEDED, WHOLE]))
    size = form.size_bytes(1) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    body = np.random.default_rng(data.draw(st.integers(0, 2**32))).bytes(size)
    try:
        c0, c1 = form.read(body, 1)
    except ValueError as error:
        assert "must" in str(error)  # noqa: PT017 - refused or read, both are right
        return
    for row, prime in enumerate(PRIMES):
        assert max(c0[row].max(), c1[row].max()) < prime


@pytest.mark.parametrize("bits", [19, 60, 62])
def test_sums_are_numpys_modulo_each_prime(bits):
    primes = (prime_below(bits, N), prime_below(bits, N, 1))
    rows = [(polynomials(2, seed, primes), polynomials(2, seed + 50, primes)) for seed in range(5)]
    for row in rows[:2]:  # the edge: 0, and once around
        row[0][:, 0, 0] = [primes[0] - 1, 1]
        row[1][:, 0, 0] = [primes[0] - 1, primes[1] - 1]
    wanted = [sum(x.astype(object) for x in half) for half in zip(*rows, strict=True)]
    total = None
    for c0, c1 in rows:
        total = add(total, c0.copy(), c1.copy(), primes)
    assert isinstance(total, Total)
    for found, half in zip((total.c0, total.c1), wanted, strict=True):
        for row, prime in enumerate(primes):
            assert np.array_equal(found[row], half[row] % prime)


def test_the_total_stays_where_it_is_and_the_terms_as_they_are():
    c0, c1 = polynomials(2), polynomials(2, 1)
    first = add(None, c0, c1, PRIMES)
    assert first.c0 is c0
    other = polynomials(2, 2), polynomials(2, 3)
    kept = [words.copy() for words in other]
    assert add(first, *other, PRIMES) is first
    assert first.c1 is c1
    assert all(np.array_equal(x, y) for x, y in zip(other, kept, strict=True))


def test_a_term_of_another_shape_is_refused_and_the_total_stays():
    total = add(None, polynomials(2), polynomials(2, 1), PRIMES)
    for c0, c1 in ((polynomials(1), polynomials(1)), (polynomials(2), polynomials(1))):
        with pytest.raises(ValueError, match="must be of shape"):
            add(total, c0, c1, PRIMES)
    assert np.array_equal(total.c0, polynomials(2))


def test_the_servers_half_cannot_decrypt():
    code = """
import sys
import perennial.privacy.ring
sys.exit(any(n in sys.modules for n in ("tenseal", "_sealapi_cpp", "perennial.privacy.lattice")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
