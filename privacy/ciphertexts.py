"""Slots as ciphertexts: the client encrypts, the server adds polynomials, the key holder opens.

The server's half needs numpy alone; what encrypts is imported where a client first does so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import RunError
from ..core.sums import Pact, Party, Scheme
from .ring import Form, Total, add, unpack_bits

if TYPE_CHECKING:
    from .lattice import Sealer


@dataclass(frozen=True, slots=True)
class Ciphertexts:
    """The wrapping of a lattice scheme.

    Attributes:
        scheme: of the key that clients and key holder must have.
    """

    scheme: Scheme

    @property
    def width(self) -> int:
        """Slots of a ciphertext."""
        return self.scheme.degree if self.scheme.name == "bfv" else self.scheme.degree // 2

    def wrap(self, slots: Any, pact: Pact, party: Party) -> bytes:
        """Client: slots [blocks, width] encrypted.

        Raises:
            RunError: the client has no key, or one that is not the pact's.
        """
        if party.key is None:
            raise RunError(
                "an encrypted sum needs this client's key file, from `perennial keys init`; none "
                "is given. Name it in the node's config as key-file, or in PERENNIAL_KEY_FILE."
            )
        try:
            changed = party.key.stat().st_mtime_ns
        except OSError as error:
            raise RunError(f"{party.key} must be this client's key file: {error}") from error
        sealer, fingerprint = _sealer(party.key, changed, self.scheme)
        if fingerprint != pact.key:
            raise RunError(
                f"the key must be the one in force, {pact.key}; {party.key} is {fingerprint}. "
                "Fetch the new client.key from whoever holds the keys."
            )
        polynomials, rest = sealer.encrypt(slots)
        return self._form().write(polynomials, rest)

    def size_bytes(self, blocks: int) -> int:
        """Length of the content of `blocks` ciphertexts."""
        return self._form().size_bytes(blocks)

    def add(self, total: Total | None, content: bytes, blocks: int) -> Total:
        """Server: the total with one more content.

        Raises:
            ValueError: it is malformed; the total is as it was.
        """
        first, second = self._form().read(content, blocks)
        return add(total, first, second, self.scheme.primes)

    def close(self, total: Total) -> bytes:
        """Server: both polynomials of the total, for the key holder."""
        return Form(self.scheme, seeded=False).write(total.c0, total.c1)

    def unwrap(self, opened: bytes, blocks: int) -> Any:
        """Server: slots [blocks, width], uint64 for bfv, float64 for ckks.

        Raises:
            ValueError: the length is another.
        """
        count = blocks * self.width
        if self.scheme.name == "bfv":
            width = self.scheme.modulus.bit_length()
            _need_length(opened, -(-count * width // 8))
            slots = unpack_bits(opened, count, width)
        else:
            _need_length(opened, 8 * count)
            slots = np.frombuffer(opened, "<f8")
        return slots.reshape(blocks, self.width)

    def _form(self) -> Form:
        return Form(self.scheme, seeded=self.scheme.model == "symmetric")


def _need_length(opened: bytes, wanted: int) -> None:
    if len(opened) != wanted:
        raise ValueError(f"the opened sum must be {wanted} bytes; got {len(opened)}")


@lru_cache(maxsize=2)
def _sealer(path: Path, changed: int, scheme: Scheme) -> tuple[Sealer, str]:
    from .keys import read_client_key
    from .lattice import Sealer

    card, key = read_client_key(path)
    if card.scheme != scheme:
        raise RunError(
            f"{path} must hold a key for {scheme}; it is for {card.scheme}. Make keys with the "
            "config of this run: perennial keys init."
        )
    return Sealer(scheme, key), card.fingerprint
