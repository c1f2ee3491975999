"""Noise that clients add inside encrypted shares: is it what was planned, and what does it cost?

Ten clients seal 10,000 values with Skellam noise through BFV, pairwise masks and the key holder;
the opened sum less the sum of the updates is the noise. Beside it the same with two clients lost
after the masks were agreed, and central Gaussian noise of the same multiplier as the peer. The
chi-square statistic divides by the variance that was planned for those who answered.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats
from table import Row, progress, run

from perennial.core.parts import KeyHolder, SecureSum
from perennial.core.private import Noise
from perennial.core.sums import Chance, Figures, Pact, Party
from perennial.privacy import bfv, central, in_process, keys

SIZE, CLIENTS, LOST = 10_000, 10, 2
BITS, CLIP = 12, 0.25
NOISE = Noise(5.0, 1.0, CLIENTS - LOST)
# Two-sided, at one chance in a thousand; several sums are looked at.
CHANCE = 1e-3


def opened_noise(
    sums: SecureSum, holder: KeyHolder, fingerprint: str, parties: dict[int, Party], lost: int
) -> tuple[np.ndarray, float]:
    """Noise of one opened sum, float64 [SIZE], and bytes a client sent per value."""
    rng = np.random.default_rng(secrets.randbits(64))
    cards = {node: sums.join(party, "run-0") for node, party in parties.items()}
    pact = Pact("run-0", 0, rng.integers(2**31).item(), 0, "m", os.urandom(16).hex(), SIZE,
                sums.scale(0.0, 1.0), fingerprint)  # fmt: skip
    notes = sums.pair(pact, cards)
    total, size, wanted = None, 0.0, np.zeros(SIZE)
    counted = [node for node in parties if node >= lost]
    for node in counted:
        # Whole levels, so that rounding adds nothing to the noise.
        unit = CLIP / (2 ** (BITS - 1) - 1)
        delta = (rng.integers(-40, 41, SIZE) * unit).astype(np.float32)
        chance = Chance(np.random.default_rng(node), secrets.token_bytes(32))
        body = sums.seal(delta, Figures(1.0), pact, notes[node], parties[node], chance)
        size = len(body) / SIZE
        total = sums.add(total, body, 1.0, pact)
        wanted += delta
    asks = sums.ask(pact, notes, counted)
    reveals = {node: sums.reveal(pact, ask, parties[node]) for node, ask in asks.items()}
    opened = holder.open(pact, counted, sums.close(total, pact))
    return sums.result(opened, pact, counted, asks, reveals).total - wanted, size


def tested(name: str, noise: np.ndarray, std: float) -> list[Row]:
    statistic = float((noise**2).sum() / std**2)
    p = 2 * min(stats.chi2.cdf(statistic, noise.size), stats.chi2.sf(statistic, noise.size))
    return [
        Row(f"{name}: variance over the planned one", statistic / noise.size, "x"),
        Row(f"{name}: chi-square, chance of as much difference", p, "", CHANCE, at_least=True),
    ]


def measure(quick: bool) -> list[Row]:
    turns = 2 if quick else 10
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sums = bfv.build(clip=CLIP, bits=BITS, capacity=16, noise=NOISE)
        bare = bfv.build(clip=CLIP, bits=BITS, capacity=16)
        assert sums.scheme is not None
        card = keys.create(folder / "keys", sums.scheme, "five words of a benchmark")
        (folder / "passphrase").write_text("five words of a benchmark")
        holder = in_process.build(
            keys=str(folder / "keys"),
            audit=str(folder / "audit.jsonl"),
            passphrase_file=str(folder / "passphrase"),
        )
        key = keys.client_path(folder / "keys")
        parties = {node: Party(node, folder / str(node), key) for node in range(CLIENTS)}
        for party in parties.values():
            party.folder.mkdir()
        rows, size = [], 0.0
        for name, lost in (("all ten", 0), ("two of ten lost", LOST)):
            found = []
            for turn in range(turns):
                progress(f"{name}, sum {turn + 1} of {turns}")
                noise, size = opened_noise(sums, holder, card.fingerprint, parties, lost)
                found.append(noise)
            std = NOISE.clip * NOISE.multiplier * math.sqrt((CLIENTS - lost) / NOISE.clients)
            rows += tested(name, np.concatenate(found), std)
        peer = central.build(epsilon=8.0, delta=1e-5, clip=NOISE.clip, noise_multiplier=1.0)
        noise = np.concatenate([peer.add(np.zeros(SIZE), NOISE.clip) for _ in range(turns)])
        rows += tested("central, by the server", noise, NOISE.clip)
        rows.append(Row("upload with noise inside", size, "B/value"))
        rows.append(Row("upload without", _bytes(bare), "B/value"))
        rows.append(Row("effective multiplier, all ten", sums.multiplier(SIZE, CLIENTS), ""))
        return rows


def _bytes(sums: SecureSum) -> float:
    """Bytes a client sends per value, from the codec's own sizes."""
    codec, wrapping = sums.codec, sums.wrapping  # type: ignore[attr-defined]
    return wrapping.size_bytes(codec.blocks(SIZE)) / SIZE


if __name__ == "__main__":
    run("Noise inside encrypted shares", measure)
