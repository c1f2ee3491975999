"""What the parties of one secure sum agree on and tell each other: clients, server, key holder.

Plain values only, so that a server can hold them without holding anything that decrypts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import RunError

_HEX_32 = re.compile(r"[0-9a-f]{32}")
_LARGEST_WHOLE = 2**63
_KINDS = {"str": str, "int": int, "float": (int, float)}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A lattice scheme with all its parameters; public.

    Attributes:
        name: `bfv` (integers modulo `modulus`) or `ckks` (floats).
        degree: coefficients of a polynomial, a power of two.
        primes: factors of the ciphertext modulus, each 1 modulo 2 * degree.
        special: further factor of the key's modulus; 0 without.
        modulus: t, the plain modulus of bfv; 0 for ckks.
        scale: of ckks; 0.0 for bfv.
        model: `symmetric`, where clients hold the secret key and ciphertexts are seeded, or
            `public`, where clients hold the public key.
    """

    name: str
    degree: int
    primes: tuple[int, ...]
    special: int
    modulus: int
    scale: float
    model: str

    def pack(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "primes": list(self.primes)}

    @staticmethod
    def unpack(values: Mapping[str, Any]) -> Scheme:
        """The scheme in `values`, its types checked.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        named = {f.name: f.type for f in fields(Scheme)}
        if set(values) != set(named):
            raise ValueError(f"a scheme must have the fields {sorted(named)}; got {sorted(values)}")
        primes = values["primes"]
        if not isinstance(primes, list | tuple) or not all(type(p) is int for p in primes):
            raise ValueError("primes must be whole numbers")
        for name, kind in named.items():
            if name != "primes" and not _fits(values[name], str(kind)):
                raise ValueError(f"{name} must be of type {kind}; got {values[name]!r}")
        return Scheme(**{**values, "primes": tuple(primes), "scale": float(values["scale"])})


@dataclass(frozen=True, slots=True)
class Pact:
    """What one sum is agreed on; the same at every party and bound to every message.

    Attributes:
        run: name of the run and a random token of it.
        domain: index of the domain, from 0.
        round: index of the round within the domain, from 0.
        attempt: 0, then one more each time the round is tried again.
        manifest: hash of what travels.
        session: 32 hex digits, fresh each time a cohort is asked: no mask is used twice.
        size: number of values of the vector, >= 0.
        scale: largest |weight * value| that is not cut; 0 where the sum has no scale.
        key: fingerprint of the key; empty where there is none.
    """

    run: str
    domain: int
    round: int
    attempt: int
    manifest: str
    session: str
    size: int
    scale: float
    key: str

    def pack(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)

    @staticmethod
    def unpack(values: Mapping[str, Any]) -> Pact:
        """The pact in a peer's `values`, its types and ranges checked.

        Raises:
            RunError: a field is missing, unknown or out of range.
        """
        named = {f.name: str(f.type) for f in fields(Pact)}
        if set(values) != set(named):
            raise RunError(f"a pact must have the fields {sorted(named)}; got {sorted(values)}")
        for name, kind in named.items():
            if not _fits(values[name], kind):
                raise RunError(f"the pact's {name} must be of type {kind}; got {values[name]!r}")
        pact = Pact(**{**values, "scale": float(values["scale"])})
        if not _HEX_32.fullmatch(pact.session):
            raise RunError(f"the pact's session must be 32 hex digits; got {pact.session[:40]!r}")
        if min(pact.domain, pact.round, pact.attempt, pact.size) < 0:
            raise RunError("the pact's counts must be 0 or more")
        if not math.isfinite(pact.scale) or pact.scale < 0.0:
            raise RunError(f"the pact's scale must be finite and 0 or more; got {pact.scale}")
        return pact

    def digest(self, *terms: object) -> bytes:
        """32 bytes over every field and over a plug-in's own `terms`, in order."""
        text = json.dumps([asdict(self), [str(term) for term in terms]], sort_keys=True)
        return hashlib.sha256(b"perennial pact 1\n" + text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Figures:
    """Numbers that travel inside the seal, beside the vector; nobody sees one client's.

    Attributes:
        weight: whole, 0..2**20.
        loss: mean training loss; nan when there is none.
    """

    weight: float
    loss: float = math.nan


@dataclass(frozen=True, slots=True)
class Party:
    """One client as a party of secure sums.

    Attributes:
        node: the id by which the server knows it.
        folder: its own folder on its disk.
        key: file with the client's half of the key; None where there is none.
    """

    node: int
    folder: Path
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Chance:
    """Where a client's sealing draws from.

    Attributes:
        rounding: a generator that everybody may know; the same update is rounded the same way.
        secret: 32 bytes from the system, kept with the update: an update that is sealed again
            gets the same noise, and nobody learns more from the second body.
    """

    rounding: np.random.Generator
    secret: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """A sum as the server gets it, and what was sealed beside it.

    Attributes:
        total: weighted sum of the deltas, float64 [n].
        weight: sum of the weights.
        loss: sum of weight * loss; nan when nobody gave one.
        saturated: number of values, over all clients, that were cut at the scale.
        peak: the largest |weight * value| of any client, rounded up; 0 when unknown or all zero.
    """

    total: npt.NDArray[np.float64]
    weight: float
    loss: float = math.nan
    saturated: int = 0
    peak: float = 0.0


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, _KINDS[kind]):  # type: ignore[arg-type]
        return False
    # JSON may hold whole numbers that no float does, and that would stall whoever counts to them.
    return not isinstance(value, int) or abs(value) < _LARGEST_WHOLE
