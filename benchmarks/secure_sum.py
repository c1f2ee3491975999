"""What encrypted sums cost beside their peers: bytes, client, server, key holder, exactness.

One process, pinned to one core, sides interleaved; the times are CPU seconds of one thread and
1,000,000 parameters. The peer is NVFlare's setting, repeated with TenSEAL; where NVFLARE_PYTHON
names a Python that has `nvflare` and `tenseal`, also the package itself, in a process of that
Python that runs in turn with ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy

import numpy as np
from nvflare_peer import Local, Remote, Setting
from table import Row, median, progress, run

from perennial.core import plugins
from perennial.core.parts import KeyHolder, SecureSum
from perennial.core.sums import Chance, Figures, Opened, Pact, Party
from perennial.core.values import Vector
from perennial.privacy import keys

HERE = str(Path(__file__).resolve().parent)
SIZE = 1_000_000
SIGMA, CLIP = 0.01, 0.06
NEIGHBOURS = 12
LORA = [3_072] * 24 + [12_288] * 24  # values of the tensors of a small LoRA
RUN, WORDS = "benchmark", "a passphrase for benchmarks"


@dataclass(frozen=True)
class Variant:
    """A file in `privacy/`, options of its `build`, and the most bytes a parameter to upload."""

    name: str
    plugin: str
    options: dict[str, Any]
    bar: float | None = None


def bfv(bits: int, capacity: int, bar: float | None = None, **more: Any) -> Variant:
    options = {"bits": bits, "capacity": capacity, **more}
    return Variant(f"bfv {bits} bit, K = {capacity}", "bfv", options, bar)


MAIN = bfv(8, 64, 2.3, neighbours=NEIGHBOURS)
TIGHT = Variant("ckks, preset tight", "ckks", {})
CLEAR = Variant("fp32 in the clear", "plain", {})
SIZED = (
    *(MAIN, bfv(8, 16, 1.9), bfv(12, 64, 4.0), bfv(16, 64, 3.5), bfv(8, 256, 4.0)),
    Variant("bfv 8 bit, K = 64, public keys", "bfv", {"keys": "public"}),
    *(Variant(f"masks alone, {bits} bit, K = 64", "masks", {"bits": bits}) for bits in (8, 16)),
    TIGHT,
    Variant("ckks, preset nvflare", "ckks", {"preset": "nvflare"}),
    CLEAR,
)
TIMED = (MAIN, bfv(8, 16, neighbours=NEIGHBOURS), bfv(16, 64, neighbours=NEIGHBOURS), CLEAR)
UNMASKED = ((8, 16), (12, 64), (16, 64), (8, 256), (12, 256), (16, 256))  # bits and K
EXACT = (MAIN, *(bfv(bits, capacity, masks=False) for bits, capacity in UNMASKED))


class Cohort:
    """Server, key holder and clients of one variant, without any transport."""

    def __init__(self, variant: Variant, folder: Path, clients: int = NEIGHBOURS + 1) -> None:
        options = variant.options | ({} if variant.plugin == "plain" else {"clip": CLIP})
        self.sums = plugins.load("privacy", variant.plugin, options, SecureSum)
        self._key, client_key, self._holder = "", None, None
        if self.sums.scheme:
            self._key = keys.create(folder / "keys", self.sums.scheme, WORDS).fingerprint
            client_key = keys.client_path(folder / "keys")
            (folder / "passphrase").write_text(WORDS)
            held = {"keys": str(folder / "keys"), "passphrase_file": str(folder / "passphrase")}
            self._holder = plugins.load("privacy", "in_process", held, KeyHolder)
        self._parties = [Party(node, folder / str(node), client_key) for node in range(clients)]
        self._cards = {party.node: self.sums.join(party, RUN) for party in self._parties}
        self._rounds = 0

    def begin(self, size: int) -> tuple[Pact, dict[int, bytes]]:
        """The pact of a new sum and the clients' notes."""
        self._rounds += 1
        session, scale = os.urandom(16).hex(), self.sums.scale(0.0, 1.0)
        pact = Pact(RUN, 0, self._rounds, 0, "m", session, size, scale, self._key)
        return pact, dict(self.sums.pair(pact, self._cards))

    def seal(self, node: int, delta: Vector, pact: Pact, notes: dict[int, bytes]) -> bytes:
        """One client's body."""
        party, chance = self._parties[node], Chance(np.random.default_rng([node, 1]))
        return self.sums.seal(delta, Figures(1.0, 0.5), pact, notes.get(node, b""), party, chance)

    def open(self, closed: bytes, pact: Pact, count: int) -> bytes:
        """What the key holder gives."""
        return self._holder.open(pact, range(count), closed) if self._holder else closed

    def total(self, size: int) -> Opened:
        """The sum of every client's delta."""
        pact, notes = self.begin(size)
        total, nodes = None, range(len(self._parties))
        for node in nodes:
            total = self.sums.add(total, self.seal(node, delta(node, size), pact, notes), 1.0, pact)
        opened = self.open(self.sums.close(total, pact), pact, len(nodes))
        return self.sums.result(opened, pact, nodes, {}, {})

    def round(self, vector: Vector) -> dict[str, float]:
        """CPU seconds and bytes of one client's upload and of opening three."""
        pact, notes = self.begin(vector.size)
        start = time.process_time()
        body = self.seal(0, vector, pact, notes)
        found = {"seal": time.process_time() - start}
        total = self.sums.add(None, body, 1.0, pact)
        start = time.process_time()
        total = self.sums.add(total, body, 1.0, pact)
        found["add"] = time.process_time() - start
        closed = self.sums.close(total, pact)
        start = time.process_time()
        found |= {"closed": len(closed), "down": len(self.open(closed, pact, 3))}
        return found | {"open": time.process_time() - start}


def delta(seed: int, size: int) -> Vector:
    """One client's update; its first and last values lie at the clip, where sums are largest."""
    values = np.random.default_rng([seed, 0]).standard_normal(size, np.float32) * np.float32(SIGMA)
    np.clip(values, -CLIP, CLIP, out=values)
    values[: size // 100], values[-size // 100 :] = CLIP, -CLIP
    return values


def size_rows(folder: Path, peer: Local) -> list[Row]:
    """Bytes of an upload for each parameter."""
    progress("bytes")
    rows = []
    for i, variant in enumerate(SIZED):
        cohort = Cohort(variant, folder / f"size{i}")
        pact, notes = cohort.begin(SIZE)
        size = len(cohort.seal(0, delta(0, SIZE), pact, notes)) / SIZE
        rows.append(Row(f"upload: {variant.name}", size, "B/param", variant.bar))
    for name, sizes in (("one vector", [SIZE]), ("48 LoRA-sized tensors", LORA)):
        found = peer.round(delta(0, sum(sizes)), sizes)["up"] / sum(sizes)
        rows.append(Row(f"upload: NVFlare's setting, {name}", found, "B/param"))
    return rows


def time_rows(folder: Path, peer: Local, quick: bool) -> list[Row]:
    """CPU seconds of client, server and key holder, and how many times ours the peers take."""
    ours = {v.name: Cohort(v, folder / f"time{i}") for i, v in enumerate(TIMED)}
    sides: dict[str, Any] = {**ours, "NVFlare's setting": peer}
    remote = Remote(os.environ["NVFLARE_PYTHON"]) if "NVFLARE_PYTHON" in os.environ else None
    if remote:
        sides[f"the package nvflare {remote.version}"] = remote
    else:
        progress("NVFLARE_PYTHON is not set: no rows of the package nvflare itself")
    vector = delta(0, SIZE)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(3 if quick else 16):
        progress(f"time, repetition {number}")
        for name, side in sides.items():
            figures = side.round(vector) if name in ours else side.round(vector, [SIZE])
            if number:  # the first one warms caches up
                found[name].append(figures)
    if remote:
        remote.close()
    medians = {
        name: {step: median([figures[step] for figures in rounds]) for step in rounds[0]}
        for name, rounds in found.items()
    }
    return _time_rows(medians, list(ours))


def _time_rows(found: dict[str, dict[str, float]], ours: list[str]) -> list[Row]:
    rows, mine = [], found[MAIN.name]
    peers = {name: side for name, side in found.items() if name not in ours}
    for step, title, bar in (("seal", "client", 4.0), ("add", "server, add", 5.0)):
        rows += [Row(f"{title}: {name}", side[step], "CPU-s") for name, side in found.items()]
        for name, side in peers.items():
            ratio = side[step] / mine[step]
            rows.append(Row(f"{title}: {name} / {MAIN.name}", ratio, "x", bar, at_least=True))
    return [
        *rows,
        Row(f"key holder opens a sum: {MAIN.name}", mine["open"], "CPU-s"),
        Row(f"to the key holder: {MAIN.name}", mine["closed"] / SIZE, "B/param"),
        Row(f"from the key holder: {MAIN.name}", mine["down"] / SIZE, "B/param"),
        *(Row(f"each client opens: {n}", side["open"], "CPU-s") for n, side in peers.items()),
        *(Row(f"to each client: {n}", side["down"] / SIZE, "B/param") for n, side in peers.items()),
    ]


OURS = """
from perennial.core import plugins
from perennial.core.parts import SecureSum
from perennial.core.sums import Pact
pact, total = Pact.unpack({pact}), None
sums = plugins.load("privacy", "bfv", {options}, SecureSum)
for _ in range({count}):
    total = sums.add(total, open("body", "rb").read(), 1.0, pact)
"""
PEER = """
import sys; sys.path.insert(0, {here!r})
from nvflare_peer import Setting
total = None
for _ in range({count}):
    total = Setting.add(total, {{"w": (open("vector", "rb").read(), open("context", "rb").read())}})
"""
# Of this program alone: getrusage counts the parent's memory at the fork, too.
PEAK = """
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(lines["VmHWM"].split()[0]) / 1024)
"""


def memory_rows(folder: Path, quick: bool) -> list[Row]:
    """Peak memory of a server that adds few and many uploads, each read from a file anew."""
    variant = bfv(8, 256, masks=False)
    cohort = Cohort(variant, folder / "memory")
    pact, notes = cohort.begin(SIZE)
    (folder / "body").write_bytes(cohort.seal(0, delta(0, SIZE), pact, notes))
    parts = Setting().seal({"w": delta(0, SIZE)})["w"]
    for part, content in zip(("vector", "context"), parts, strict=True):
        (folder / part).write_bytes(content)
    options, few, rows, ratios = variant.options | {"clip": CLIP}, 10, [], []
    for name, code, bar in ((variant.name, OURS, 1.05), ("NVFlare's setting", PEER, None)):
        many = 256 if not quick else 40 if bar else 12
        for count in (few, many):
            progress(f"memory, {name}, {count} uploads")
            script = code.format(here=HERE, pact=pact.pack(), options=options, count=count)
            title = f"server's peak memory, {name}: {count} uploads"
            rows.append(Row(title, _peak(script, folder), "MiB"))
        ratio = rows[-1].figure / rows[-2].figure
        ratios.append(Row(f"{title} / {few}", ratio, "x", bar))
    return [*ratios, *rows]


def _peak(script: str, folder: Path) -> float:
    command = [sys.executable, "-c", script + PEAK]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def exact_rows(folder: Path, size: int, variants: Sequence[Variant]) -> list[Row]:
    """How many values of a sum over a full cohort are not numpy's."""
    rows = []
    for i, variant in enumerate(variants):
        capacity, half = variant.options["capacity"], 2 ** (variant.options["bits"] - 1) - 1
        masks = "" if variant.options.get("masks") is False else f", {NEIGHBOURS} masks each"
        progress(f"exactness, {variant.name}{masks}")
        opened = Cohort(variant, folder / f"exact{i}", capacity).total(size)
        levels = np.zeros(size, np.int64)
        for node in range(capacity):
            scaled = delta(node, size) * np.float32(1.0 / CLIP * half)
            np.clip(scaled, -half, half, out=scaled)
            whole = np.floor(scaled)  # rounded up with the chance of the rest, as `seal` does
            up = scaled - whole > np.random.default_rng([node, 1]).random(size, np.float32)
            levels += whole.astype(np.int64) + up
        wrong = np.count_nonzero(opened.total != levels * (CLIP / half))
        title = f"wrong values in a sum of {capacity} clients: {variant.name}{masks}"
        rows.append(Row(title, int(wrong) + (opened.weight != capacity), f"of {size:,}", 0))
    return rows


def error_rows(folder: Path, size: int) -> list[Row]:
    """Error of the mean of ten clients against the mean itself, root mean squares."""
    progress("error")
    rows, middle = [], slice(size // 100, -size // 100)
    mean = np.mean([delta(node, size)[middle] for node in range(10)], axis=0, dtype=np.float64)
    for i, variant in enumerate((bfv(8, 64), bfv(12, 64), bfv(16, 64), TIGHT)):
        found = Cohort(variant, folder / f"error{i}", 10).total(size).total[middle] / 10
        error = float(np.sqrt(np.mean((found - mean) ** 2) / np.mean(mean**2)))
        rows.append(Row(f"error of a mean of 10 clients: {variant.name}", error, "of the signal"))
    return rows


def measure(quick: bool) -> list[Row]:
    """All rows; each variant has keys and clients' folders of its own."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peer, size = Local(Setting()), SIZE // 4 if quick else SIZE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *size_rows(folder, peer),
            *time_rows(folder, peer, quick),
            *memory_rows(folder, quick),
            *exact_rows(folder, size, EXACT[:2] if quick else EXACT),
            *error_rows(folder, size),
        ]


if __name__ == "__main__":
    run("What encrypted sums cost beside their peers", measure)
