"""What a run of the continual benchmark gives: figures of its report, its cost, its memory.

All runs of this process share one memo of what frozen layers give for a text, which changes
nothing but the time; the time that it saves is counted all the same.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from perennial.cli.settling import settle
from perennial.client.site import forget_site
from perennial.core.values import Records, Vector
from perennial.models.depth import Ragged
from perennial.models.encoded import EncodedTexts
from perennial.models.encoder_classifier import EncoderClassifier
from perennial.server.report import write_report
from perennial.simulations.simulate import simulate

NUM_CLIENTS = 10
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "clinc150"


class Memo:
    """What the frozen layers give for each text, and the CPU time that keeping it saved.

    Texts are computed in other company than without the memo, which can change the last bit of a
    half-precision activation.
    """

    def __init__(self) -> None:
        self.saved_s = 0.0
        self._rows: dict[Any, Any] = {}
        self._cost_s: dict[Any, float] = {}

    def get(self, key: Any, texts: Sequence[str], compute: Any) -> list[Any]:
        """The row of each text; `compute` gives those of the ones that are missing."""
        missing = list(dict.fromkeys(text for text in texts if (key, text) not in self._rows))
        if missing:
            before = time.process_time()
            rows = compute(missing)
            spent = (time.process_time() - before) / len(missing)
            self._rows.update(((key, text), row) for text, row in zip(missing, rows, strict=True))
            self._cost_s.update(((key, text), spent) for text in missing)
        new = set(missing)
        self.saved_s += sum(self._cost_s[key, text] for text in texts if text not in new)
        return [self._rows[key, text] for text in texts]


@contextmanager
def shared(memo: Memo) -> Iterator[None]:
    """Encoders keep activations and frozen features in `memo` while this is open."""
    encode, features = EncoderClassifier.encode, EncoderClassifier.features

    def remembered_encode(self: Any, records: Records) -> Any:
        if self._cut is None or not len(records) or set(records.targets) - set(self.labels):
            return encode(self, records)
        label = self.labels[0]

        def compute(texts: list[str]) -> list[torch.Tensor]:
            n = len(texts)
            rows = encode(self, Records(tuple(texts), tuple(texts), *[(label,) * n] * 3)).rows
            bounds = rows.offsets.tolist()
            return [rows.values[a:b].clone() for a, b in pairwise(bounds)]

        key = (self._identity, self._max_length, tuple(self._factors))  # which say where it is cut
        rows = memo.get(key, records.texts, compute)
        index = {label: i for i, label in enumerate(self.labels)}
        targets = torch.tensor([index[t] for t in records.targets], dtype=torch.long)
        return EncodedTexts(Ragged.of(rows), targets, self._device)

    def remembered_features(
        self: Any, records: Records, layers: int = 1, *, adapted: bool = False
    ) -> Vector:
        if adapted or not len(records):
            return features(self, records, layers, adapted=adapted)

        def compute(texts: list[str]) -> Vector:
            blank = ("",) * len(texts)
            return features(self, Records(tuple(texts), tuple(texts), blank, blank, blank), layers)

        key = ("features", self._identity, self._max_length, layers)
        return np.stack(memo.get(key, records.texts, compute)).astype(np.float32)

    EncoderClassifier.encode = remembered_encode  # type: ignore[method-assign]
    EncoderClassifier.features = remembered_features  # type: ignore[method-assign]
    try:
        yield
    finally:
        EncoderClassifier.encode = encode  # type: ignore[method-assign]
        EncoderClassifier.features = features  # type: ignore[method-assign]


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables as one; later ones win, key by key, but for tables that name a plug-in."""
    result: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            whole = not both or "name" in value or "methods" in value
            result[key] = value if whole else merged(result[key], value)
    return result


def config(tree: Mapping[str, Any], seed: int, alpha: float, train: Path | None = None) -> str:
    """The TOML text of a run of CLINC150.

    Args:
        tree: tables that win over those here.
        seed: of the deal, the batches and the adapter's start.
        alpha: of the Dirichlet deal.
        train: another file of training records.
    """
    base = {
        "run": {"name": "bench", "seed": seed},
        "data": {
            "name": "csv",
            "train": str(train or DATA / "train.csv"),
            "validation": str(DATA / "validation.csv"),
            "test": str(DATA / "test.csv"),
        },
        "shards": {"split": "dirichlet", "alpha": alpha, "num_clients": NUM_CLIENTS},
        "model": {"layers": 1},
        "evaluate": {"every": 0},
    }
    return tomli_w.dumps(merged(base, tree))


def sample_config(tree: Mapping[str, Any]) -> str:
    """The TOML text of a run of the embedded sample."""
    base = {"run": {"name": "quick", "seed": 0}, "model": {"layers": 1}, "evaluate": {"every": 0}}
    return tomli_w.dumps(merged(base, tree))


def some_of_each(number: int, seed: int, target: Path) -> Path:
    """CLINC150's training file with `number` sentences of each intent, drawn by `seed`.

    Its first ones are more alike than a draw: of 20 an intent, class means on the frozen encoder
    answer 88.8 % of the test records right, and 90.5 to 91.2 % of four draws.
    """
    with (DATA / "train.csv").open(newline="") as source:
        reader = csv.DictReader(source)
        rows, names = list(reader), reader.fieldnames or ()
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["label"]].append(place)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(places[label], number, replace=False) for label in sorted(places)]
    with target.open("w", newline="") as copy:
        writer = csv.DictWriter(copy, names)
        writer.writeheader()
        writer.writerows(rows[place] for place in np.sort(np.concatenate(drawn)))
    return target


def measured(text: str, memo: Memo, private: bool = False) -> dict[str, Any]:
    """Run the config in `text`; its figures, in percent, bytes and seconds.

    Args:
        text: TOML.
        memo: of this process.
        private: whether noise is to be planned first.
    """
    forget_site()
    if private:
        text, _ = settle(text)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "bench"
        saved, cpu = memo.saved_s, time.process_time()
        with shared(memo):
            simulate(text, run)
        cpu = time.process_time() - cpu + memo.saved_s - saved
        report = write_report(run)
        return {
            **figures(report),
            "memory_bytes_per_class": memory_bytes(run) / num_labels(report),
            "cpu_s_per_domain": cpu / len(report["domains"]),
        }


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of accuracy and bytes."""
    domains, clients = len(report["domains"]), report["num_clients"]
    return {
        "final": 100 * report["final_accuracy"],
        "forgetting": 100 * (report["forgetting"][-1] or 0.0),
        "backward": 100 * (report["backward_transfer"] or 0.0),
        "learning": 100 * (report["learning_accuracy"] or 0.0),
        "matrix": report["accuracy_matrix"],
        "bytes_up_per_client_domain": report["totals"]["bytes_up"] / domains / clients,
        "epsilon": max(
            (u["epsilon"] for u in (report["privacy"] or {}).get("units", [])), default=0
        ),
    }


def num_labels(report: Mapping[str, Any]) -> int:
    return sum(len(domain["labels"]) for domain in report["domains"])


def memory_bytes(run: Path) -> int:
    """Size of what clients keep of earlier records: those that are replayed, or their features."""
    kept = ("memory.bin", "memory.index", "analytic.npz")
    return sum(p.stat().st_size for p in (run / "clients").rglob("*") if p.name in kept)
