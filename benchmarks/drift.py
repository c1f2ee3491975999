"""Does drift detection find a new domain, and keep quiet where only the mix of labels changes?

CLINC150 in `../shared/data/clinc150`, embedded by the frozen MiniLM. In each split three domains of
fifteen intents are known: 2,000 of their training sentences are the reference. Windows of 100 come
from validation and test, which other people wrote. Drift is a window with 20 sentences of a domain
that is not known; label skew is a window over 20 of the 45 known intents. Peers are KL and MMD
alone, and the Kolmogorov-Smirnov statistic of the first principal component, each with a threshold
of its own that 5 % of windows drawn from the reference exceed. Figures are means over the splits,
with the smallest and the largest. `--quick` takes fewer sentences and splits and has no bars.
"""

from __future__ import annotations

import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy

import numpy as np
import torch
from scipy.stats import ks_2samp
from table import Row, progress, run

from perennial.continual.distances import calibrated
from perennial.continual.scope import area, scope_of, unit
from perennial.continual.windows import Settings
from perennial.core import plugins
from perennial.core.parts import Model
from perennial.core.values import Records

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "clinc150"
WINDOW, SHARE, KNOWN, PRESENT, REFERENCE = 100, 0.2, 3, 20, 2000
KINDS = ("plain", "skewed", "drift", "drift under skew")
OURS, NEAREST, KL, MMD, KS = "ours", "1-NN alone", "KL alone", "MMD alone", "KS of one component"


@dataclass(frozen=True)
class Part:
    """Sentences of one file: embeddings [n, d], intents [n], domains [n]."""

    rows: np.ndarray
    labels: np.ndarray
    domains: np.ndarray

    def take(self, at: np.ndarray) -> Part:
        """The sentences at `at`."""
        return Part(self.rows[at], self.labels[at], self.domains[at])


def read(model: Model, name: str, most: int, split: str = "") -> Part:
    """Sentences of a file, about `most` of each intent from all over it (of all without one)."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        table = [line for line in csv.DictReader(file) if line.get("split", split) == split]
    found: dict[str, list[dict[str, str]]] = {}
    for line in table:
        found.setdefault(line.get("label", ""), []).append(line)
    lines = [line for some in found.values() for line in some[:: max(1, len(some) // most)]]
    progress(f"embedding {len(lines):,} sentences of {name}")
    texts = tuple(line["text"] for line in lines)
    ids, empty = tuple(map(str, range(len(texts)))), ("",) * len(texts)
    rows = unit(model.features(Records(ids, texts, empty, empty, empty), 1))
    columns = (np.array([line.get(key, "") for line in lines]) for key in ("label", "domain"))
    return Part(rows, *columns)


class Split:
    """Three known domains, a reference of them, and windows of what is not in it."""

    def __init__(self, train: Part, pool: Part, seed: int, quick: bool) -> None:
        self.rng = np.random.default_rng(seed)
        names = self.rng.permutation(np.unique(train.domains))
        known = np.flatnonzero(np.isin(train.domains, names[:KNOWN]))
        size = min(REFERENCE, len(known) * 4 // 9)
        self.reference = train.take(np.sort(self.rng.choice(known, size, replace=False)))
        self.pool = pool
        self.old = np.flatnonzero(np.isin(pool.domains, names[:KNOWN]))
        self.new = [np.flatnonzero(pool.domains == name) for name in names[KNOWN:]]
        self.labels = np.unique(self.reference.labels)
        self.windows = 60 if quick else 200
        started = time.perf_counter()
        reference, labels = self.reference.rows, self.reference.labels.tolist()
        self.detector = calibrated(reference, labels, WINDOW, Settings(window=WINDOW))
        self.seconds = time.perf_counter() - started
        centred = reference - reference.mean(0)
        self.axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        self.along = reference @ self.axis

    def window(self, kind: str) -> np.ndarray:
        """Embeddings [100, d] of a window of one of `KINDS`."""
        chosen = self.labels
        if "skew" in kind:
            chosen = self.rng.choice(self.labels, PRESENT, replace=False)
        some = self.old[np.isin(self.pool.labels[self.old], chosen)]
        foreign = round(SHARE * WINDOW) if "drift" in kind else 0
        at = self.rng.choice(some, WINDOW - foreign, replace=len(some) < WINDOW)
        new = self.new[self.rng.integers(len(self.new))]
        return self.pool.rows[np.concatenate([at, self.rng.choice(new, foreign, replace=False)])]

    def ks(self, window: np.ndarray) -> float:
        """The statistic of Kolmogorov and Smirnov along the reference's first component."""
        return float(ks_2samp(window @ self.axis, self.along).statistic)

    def ks_threshold(self) -> float:
        """What 5 % of windows drawn from the reference exceed."""
        found = []
        for _ in range(200):
            at = self.rng.choice(len(self.along), WINDOW, replace=False)
            rest = np.delete(self.along, at)
            found.append(ks_2samp(self.along[at], rest).statistic)
        return float(np.quantile(found, 0.95))

    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Per kind of window and way of telling: how far each window is, [windows]."""
        scores: dict[str, dict[str, np.ndarray]] = {}
        for kind in KINDS:
            windows = [self.window(kind) for _ in range(self.windows)]
            found = [self.detector.distances(window) for window in windows]
            scores[kind] = {
                NEAREST: np.array([each.nearest for each in found]),
                KL: np.array([each.kl for each in found]),
                MMD: np.array([each.mmd for each in found]),
                KS: np.array([self.ks(window) for window in windows]),
                OURS: np.array([each.over(self.detector.thresholds) for each in found], float),
            }
        return scores

    def thresholds(self) -> dict[str, float]:
        """Per way of telling: above which score it alarms."""
        own = self.detector.thresholds
        ways = {NEAREST: own.nearest, KL: own.kl, MMD: own.mmd, KS: self.ks_threshold()}
        return {**ways, OURS: 0.5}


def rows_of(splits: list[Split], quick: bool) -> list[Row]:
    areas: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for number, split in enumerate(splits, start=1):
        progress(f"split {number} of {len(splits)}")
        scores, thresholds = split.scores(), split.thresholds()
        for way in thresholds:
            for kind in KINDS:
                share = float((scores[kind][way] > thresholds[way]).mean())
                rates.setdefault((way, kind), []).append(100.0 * share)
            if way != OURS:
                plain, drift = scores["plain"][way], scores["drift"][way]
                areas.setdefault((way, "drift"), []).append(area(plain, drift))
                pair = scores["skewed"][way], scores["drift under skew"][way]
                areas.setdefault((way, "drift under skew"), []).append(area(*pair))
    rows = []
    for (way, kind), found in areas.items():
        bar = 0.95 if (way, kind) == (NEAREST, "drift") and not quick else None
        rows.append(row(f"20 % new domain, AUC{under(kind)}: {way}", found, "", bar, True))
    for (way, kind), found in rates.items():
        wanted = "drift" in kind
        what = "found" if wanted else "false alarms"
        bar = 5.0 if way == OURS and not wanted and not quick else None
        rows.append(row(f"{what}{under(kind)}: {way}", found, "%", bar, False))
    return rows


def under(kind: str) -> str:
    return ", 20 of 45 labels" if "skew" in kind else ""


def row(name: str, found: list[float], unit_: str, bar: float | None, at_least: bool) -> Row:
    spread = f"{min(found):.3g} to {max(found):.3g}"
    return Row(f"{name} ({spread})", float(np.mean(found)), unit_, bar, at_least)


def scope_rows(train: Part, validation: Part, test: Part, outside: Part, quick: bool) -> list[Row]:
    progress("out of scope")
    rows = []
    for most in (100, 20, 5):
        found = [np.flatnonzero(train.labels == name) for name in np.unique(train.labels)]
        # From all over an intent: neighbours are one person's.
        some = train.take(np.concatenate([at[:: max(1, len(at) // most)] for at in found]))
        scope = scope_of(some.rows, some.labels.tolist(), validation.rows)
        roc = area(scope.scores(test.rows), scope.scores(outside.rows))
        bar = 0.95 if most == 100 and not quick else None
        rows.append(Row(f"out of scope, {most} a class: AUROC", roc, "", bar, True))
        if most == 100:
            wrong, right = scope.outside(test.rows).mean(), scope.outside(outside.rows).mean()
            rows.append(Row("out of scope, 100 a class: false rejects", 100.0 * wrong, "%"))
            rows.append(Row("out of scope, 100 a class: found", 100.0 * right, "%"))
    started, rounds = time.process_time(), 20
    for _ in range(rounds):
        scope.scores(test.rows)
    spent = (time.process_time() - started) / (rounds * len(test.rows))
    rows.append(Row("out of scope: one query, embedded already", 1e3 * spent, "ms"))
    return rows


def window_rows(split: Split) -> list[Row]:
    window, rounds = split.window("plain"), 10
    started = time.process_time()
    for _ in range(rounds):
        split.detector.distances(window)
    spent = (time.process_time() - started) / rounds
    return [
        Row("one window, embedded already", 1e3 * spent, "ms"),
        Row(f"thresholds from {len(split.reference.rows):,} records", split.seconds, "s"),
    ]


def measure(quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    model = plugins.load("models", "encoder_classifier", {}, Model)
    most = 12 if quick else 10**6
    train = read(model, "train", 20 if quick else most)
    validation, test = read(model, "validation", most), read(model, "test", most)
    outside = read(model, "out_of_scope", 150 if quick else most, "test")
    both = (np.concatenate(pair) for pair in zip(*map(_columns, (validation, test)), strict=True))
    pool = Part(*both)
    splits = [Split(train, pool, seed, quick) for seed in range(2 if quick else 10)]
    return [
        *rows_of(splits, quick),
        *scope_rows(train, validation, test, outside, quick),
        *window_rows(splits[0]),
    ]


def _columns(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return part.rows, part.labels, part.domains


if __name__ == "__main__":
    run("Drift: new domains found, label skew passed over", measure)
