"""Keys, encryption and decryption: the one door to SEAL, through `tenseal.sealapi`.

BFV (Fan and Vercauteren 2012, ePrint 2012/144) for integers, CKKS (Cheon, Kim, Kim and Song 2017,
ePrint 2016/421) for floats, at 128-bit security by the tables of homomorphicencryption.org, which
SEAL checks. What enters and leaves are integers modulo the primes, as in `ring`: SEAL never sees
bytes that a peer wrote. TenSEAL's own contexts and vectors stay unused, for they crash on hostile
sizes and cannot write the seeded form.

Letters: `L` primes, `P` ciphertexts, `N` coefficients of a polynomial (the degree).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from tenseal import sealapi

from ..core.sums import Scheme
from .blake import SEED_BYTES, Words
from .limits import check_scheme, check_slots, check_words, modulus_chain, num_slots

Slots = npt.NDArray[Any]

# What stands first in a file of SEAL: magic, header size, version, compression, spare, size.
_HEADER = struct.Struct("<HBBBBHQ")
_UNCOMPRESSED, _ZSTD = 0, 2
# A ciphertext up to its words: parms_id, NTT flag, three sizes, scale, correction factor, header
# and length of the array.
_HEAD_BYTES = 32 + 1 + 5 * 8 + _HEADER.size + 8
# After the words of a seeded one: header, kind of generator, seed.
_SEED_TAIL_BYTES, _BLAKE2XB = _HEADER.size + 1 + SEED_BYTES, 1

_IN_MEMORY = sys.platform == "linux" and Path("/proc/self/fd").is_dir()


def generate(scheme: Scheme) -> tuple[bytes, bytes]:
    """A fresh (secret key, public key), as SEAL saves them; the first for the key holder.

    Raises:
        ValueError: the scheme is not valid or not 128-bit secure.
    """
    generator = sealapi.KeyGenerator(_Coder.of(scheme).context)
    public = sealapi.PublicKey()
    generator.create_public_key(public)
    return _saved(generator.secret_key()), _saved(public)


def fingerprint(scheme: Scheme, secret: bytes, public: bytes) -> str:
    """The name of a key pair, 32 hex digits; public."""
    packed = json.dumps(scheme.pack(), sort_keys=True).encode()
    digest = hashlib.sha256(b"perennial key 1\n" + hashlib.sha256(packed).digest())
    for key in (secret, public):
        digest.update(hashlib.sha256(key).digest())
    return digest.hexdigest()[:32]


class Sealer:
    """What encrypts.

    Args:
        scheme: of the key.
        key: the secret key where the scheme's model is `symmetric`, else the public key.

    Raises:
        ValueError: the scheme is not valid, or `key` is no such key of it.
    """

    def __init__(self, scheme: Scheme, key: bytes) -> None:
        self._coder = _Coder.of(scheme)
        kind = sealapi.SecretKey if scheme.model == "symmetric" else sealapi.PublicKey
        self._encryptor = sealapi.Encryptor(self._coder.context, _load(self._coder, kind(), key))

    def encrypt(self, slots: Slots) -> tuple[Words, list[bytes] | Words]:
        """c0 [L, P, N], and the P seeds of c1 if the model is `symmetric`, else c1 [L, P, N].

        Args:
            slots: [P, N] uint64 below the modulus for bfv, [P, N / 2] finite floats for ckks.

        Raises:
            ValueError: the slots are of another shape or out of range.
        """
        scheme = self._coder.scheme
        check_slots(scheme, slots)
        c0 = np.empty((len(scheme.primes), len(slots), scheme.degree), np.uint64)
        with _passage() as path:
            if scheme.model == "symmetric":
                seeds = [b""] * len(slots)
                for i, row in enumerate(slots):
                    c0[:, i], seeds[i] = self._seeded(row.tolist(), path)
                return c0, seeds
            c1 = np.empty_like(c0)
            for i, row in enumerate(slots):
                c0[:, i], c1[:, i] = self._whole(row.tolist(), path)
            return c0, c1

    def _seeded(self, values: list[Any], path: str) -> tuple[Words, bytes]:
        _save(self._encryptor.encrypt_symmetric(self._coder.encode(values)), path)
        _, words, tail = _parts(path, self._coder.shape, _SEED_TAIL_BYTES)
        if tail[_HEADER.size] != _BLAKE2XB:
            raise ValueError(f"SEAL must draw by Blake2xb; got generator {tail[_HEADER.size]}")
        return words, tail[-SEED_BYTES:]

    def _whole(self, values: list[Any], path: str) -> Words:
        ciphertext = sealapi.Ciphertext(self._coder.context)
        self._encryptor.encrypt(self._coder.encode(values), ciphertext)
        _save(ciphertext, path)
        return _parts(path, (2, *self._coder.shape), 0)[1]


class Opener:
    """What decrypts; for the key holder.

    Whoever may choose ciphertexts and see what they decrypt to can find the key: open sums only,
    and each only once. Whoever sees ckks slots with their noise can, too, without choosing
    anything (Li and Micciancio 2021, ePrint 2020/1533): give them away after `limits.on_grid` only.

    Args:
        scheme: of the key.
        secret: the secret key.

    Raises:
        ValueError: the scheme is not valid, or `secret` is no secret key of it. A flipped bit is
            not seen: key files need a checksum.
    """

    def __init__(self, scheme: Scheme, secret: bytes) -> None:
        self._coder = _Coder.of(scheme)
        key = _load(self._coder, sealapi.SecretKey(), secret)
        self._decryptor = sealapi.Decryptor(self._coder.context, key)
        self._envelope = _envelope(self._coder, sealapi.Encryptor(self._coder.context, key))

    def decrypt(self, c0: Words, c1: Words) -> Slots:
        """Slots: uint64 [P, N] modulo the modulus for bfv, float64 [P, N / 2] for ckks.

        Anything below the primes decrypts to something: it is the sum only if all its terms were
        encrypted under this key, and noise and slots stayed in range.

        Args:
            c0: [L, P, N], below the primes.
            c1: of the same shape.

        Raises:
            ValueError: shapes or coefficients are not as they must be.
        """
        check_words(self._coder.scheme, c0, c1)
        kind = np.uint64 if self._coder.scheme.name == "bfv" else np.float64
        slots = np.empty((c0.shape[1], num_slots(self._coder.scheme)), kind)
        plain = sealapi.Plaintext()
        for i, ciphertext in enumerate(self._ciphertexts(c0, c1)):
            self._decryptor.decrypt(ciphertext, plain)
            slots[i] = np.array(self._coder.decode(plain), kind)
        return slots

    def noise_budget(self, c0: Words, c1: Words) -> int:
        """Bits that the noise of the first ciphertext may still grow by.

        Raises:
            ValueError: as for `decrypt`, or the scheme is not bfv, or there is no ciphertext.
        """
        check_words(self._coder.scheme, c0, c1)
        with _named("a bfv ciphertext to measure"):
            (first,) = self._ciphertexts(c0[:, :1], c1[:, :1])
            return int(self._decryptor.invariant_noise_budget(first))

    def _ciphertexts(self, c0: Words, c1: Words) -> Iterator[Any]:
        """Each in turn, in one SEAL object: its words behind an envelope of our own."""
        ciphertext = sealapi.Ciphertext(self._coder.context)
        with _passage() as path, open(path, "wb") as file:
            for i in range(c0.shape[1]):
                pair = np.stack([c0[:, i], c1[:, i]]).astype("<u8", copy=False)
                file.seek(0)
                file.write(self._envelope + pair.tobytes())
                file.flush()
                ciphertext.load(self._coder.context, path)
                yield ciphertext


@dataclass(frozen=True, slots=True)
class _Coder:
    """A scheme as SEAL objects, and slots to and from plaintexts of it."""

    scheme: Scheme
    context: Any
    encoder: Any

    @staticmethod
    def of(scheme: Scheme) -> _Coder:
        context = _context(scheme)
        kind = sealapi.BatchEncoder if scheme.name == "bfv" else sealapi.CKKSEncoder
        with _named("the plain modulus"):
            return _Coder(scheme, context, kind(context))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.scheme.primes), self.scheme.degree

    def encode(self, values: list[Any]) -> Any:
        plain = sealapi.Plaintext()
        scale = (self.scheme.scale,) if self.scheme.name == "ckks" else ()
        with _named("the slots, times the scale if there is one"):
            self.encoder.encode(values, *scale, plain)
        return plain

    def decode(self, plain: Any) -> list[Any]:
        bfv = self.scheme.name == "bfv"
        values = self.encoder.decode_uint64(plain) if bfv else self.encoder.decode_double(plain)
        return list(values)


def _context(scheme: Scheme) -> Any:
    check_scheme(scheme)
    kind = sealapi.SCHEME_TYPE.BFV if scheme.name == "bfv" else sealapi.SCHEME_TYPE.CKKS
    with _named("the scheme"):
        parameters = sealapi.EncryptionParameters(kind)
        parameters.set_poly_modulus_degree(scheme.degree)
        parameters.set_coeff_modulus([sealapi.Modulus(prime) for prime in modulus_chain(scheme)])
        if scheme.name == "bfv":
            parameters.set_plain_modulus(sealapi.Modulus(scheme.modulus))
        # Without the lower levels of the chain, which sums do not need.
        context = sealapi.SEALContext(parameters, False, sealapi.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ValueError(f"the scheme must be valid: {context.parameters_error_message()}")
    return context


def _saved(key: Any) -> bytes:
    with _passage() as path:
        _save(key, path)
        return Path(path).read_bytes()


def _save(what: Any, path: str) -> None:
    with _named("the disk or memory that it saves to"):
        what.save(path)


def _load(coder: _Coder, key: Any, content: bytes) -> Any:
    with _passage() as path, _named("a key of the scheme"):
        Path(path).write_bytes(content)
        key.load(coder.context, path)
    return key


def _envelope(coder: _Coder, encryptor: Any) -> bytes:
    """What SEAL expects before the words of an uncompressed ciphertext of this scheme and scale."""
    ciphertext = sealapi.Ciphertext(coder.context)
    encryptor.encrypt_symmetric(coder.encode([0] * num_slots(coder.scheme)), ciphertext)
    with _passage() as path:
        _save(ciphertext, path)
        head, words, _ = _parts(path, (2, *coder.shape), 0)
        magic, length, major, minor, *_ = _HEADER.unpack_from(Path(path).read_bytes())
    size = _HEADER.size + len(head) + words.nbytes
    return _HEADER.pack(magic, length, major, minor, _UNCOMPRESSED, 0, size) + head


def _parts(path: str, shape: tuple[int, ...], tail_bytes: int) -> tuple[bytes, Words, bytes]:
    """Head, words [*shape] and tail of the ciphertext that SEAL saved at `path`."""
    saved = Path(path).read_bytes()
    *_, compression, _, size = _HEADER.unpack_from(saved)
    count = math.prod(shape)
    end = _HEAD_BYTES + 8 * count
    if compression == _ZSTD and size == len(saved):
        with zstandard.ZstdDecompressor().stream_reader(saved[_HEADER.size :]) as reader:
            body = reader.read(end + tail_bytes + 1)
        head, tail = body[:_HEAD_BYTES], body[end:]
        if len(tail) == tail_bytes and head[-8:] == count.to_bytes(8, "little"):
            words = np.frombuffer(body, "<u8", count, _HEAD_BYTES).reshape(shape)
            return head, words.astype(np.uint64, copy=False), tail
    raise ValueError("TenSEAL must save ciphertexts as SEAL 4.1 does; this version does not")


@contextmanager
def _passage() -> Iterator[str]:
    """Path of a file for this call alone; in memory where there is one, since keys pass it."""
    if _IN_MEMORY:
        handle = os.memfd_create("perennial", os.MFD_CLOEXEC)
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        with TemporaryDirectory(prefix="perennial-") as folder:
            yield str(Path(folder) / "seal")


@contextmanager
def _named(what: str) -> Iterator[None]:
    """SEAL's errors, of many types, as one that says what it refuses."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"SEAL must accept {what}; it says: {error}") from error
