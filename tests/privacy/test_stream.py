"""Secret random numbers: their distribution, and that nobody else gets the same."""

import copy
import pickle

import numpy as np
import pytest

from perennial.privacy.stream import Stream

KEY = bytes(range(32))


def test_two_streams_never_agree_and_one_key_always_gives_the_same():
    assert not np.array_equal(Stream().words(4), Stream().words(4))
    assert np.array_equal(Stream(KEY).words(4), Stream(KEY).words(4))
    assert np.array_equal(Stream(KEY).normal(40_000), Stream(KEY).normal(40_000))


def test_a_stream_goes_on_and_does_not_begin_again():
    stream, whole = Stream(KEY), Stream(KEY).words(6)
    assert np.array_equal(np.concatenate([stream.words(2), stream.words(4)]), whole)


def test_words_are_those_of_aes_in_counter_mode():
    # NIST SP 800-38A has no counter from zero; the first block of AES-256 under this key is
    # FIPS-197's cipher applied to zeros, as any AES gives it.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    wanted = block.update(bytes(16)) + block.update(bytes(15) + b"\1")
    assert Stream(KEY).words(4).tobytes() == wanted


def test_uniforms_lie_inside_and_are_uniform():
    found = Stream(KEY).uniform(200_000)
    assert found.min() > 0.0
    assert found.max() < 1.0
    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    # chi-square with 19 degrees of freedom: above 60 once in 250,000
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 60


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16_384, 16_385, 40_001])
def test_any_number_of_normals_is_given(count):
    found = Stream(KEY).normal(count)
    assert found.shape == (count,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert len(set(found.tolist())) == count


def test_normals_are_normal():
    from scipy.stats import kstest

    count = 300_001
    found = Stream(KEY).normal(count)
    assert abs(found.mean()) < 5 / np.sqrt(count)
    assert abs(found.var() - 1) < 5 * np.sqrt(2 / count)
    assert kstest(found, "norm").pvalue > 1e-4
    # the two halves of Box and Muller's pairs tell nothing of each other
    half = count // 2
    assert abs(np.corrcoef(found[:half], found[-half:])[0, 1]) < 5 / np.sqrt(half)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(count)


def test_a_stream_is_never_copied_or_stored():
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never copied or stored"):
            leak(Stream())


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(b"short")


def test_the_first_normals_are_the_same_however_many_are_drawn():
    """So that a stream which is restored for a larger model is known by them."""
    first = Stream(KEY).normal(20)[:8]
    for count in (21, 1990, 20_000):
        assert np.array_equal(Stream(KEY).normal(count)[:8], first)
