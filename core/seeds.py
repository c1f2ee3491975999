"""Seeds for every place of a run, derived from the run's one seed.

Nothing here protects people: noise for privacy comes from a secure source instead.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *labels: str | int) -> int:
    """A seed in 0..2**63-1 that depends on `seed` and on every label, in order."""
    text = "\x1f".join([str(seed), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A numpy generator seeded by `derive(seed, *labels)`."""
    return np.random.default_rng(derive(seed, *labels))
