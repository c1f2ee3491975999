"""Avalanche's Naive, Replay and EWC on our model and data, and its time per step beside ours.

Both sides have the same sentences of each intent, the same head that grows, the same optimizer,
begun anew in each domain with the same warm-up and decay, and as many steps. What Avalanche keeps
and goes through is spared the frozen base. Its EWC squares the gradient of a batch's mean, so its
lambda is chosen for its batch size.
"""

from __future__ import annotations

import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from continual_runs import Memo, config, shared, some_of_each
from table import median

from perennial.client.promise import strata_of
from perennial.client.train import Forces, Schedule, train
from perennial.core import metrics, plugins
from perennial.core.config import Domains, Train
from perennial.core.continual import Lesson, Phase
from perennial.core.parts import Continual, Model, Privatizer, Source
from perennial.core.seeds import generator
from perennial.core.values import Records
from perennial.data.stream import Stream, of_domain, stream
from perennial.simulations.avalanche_streams import IndexedModel, benchmark

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from avalanche.core import SupervisedPlugin
    from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin
    from avalanche.training.supervised import Naive

# Records of a class in both memories; lambda of ours, and of Avalanche's, whose Fisher shrinks with
# the batch. Neither was tuned.
PER_CLASS, STRENGTH, PEER_STRENGTH = 5, 1e3, 1e3


@dataclass(frozen=True)
class Setting:
    """What both sides share.

    Attributes:
        table: `[train]` of our side.
        model: options of the model.
        per_class: records of a class in the memory of replay.
        strength: of our EWC.
        peer_strength: of Avalanche's.
        seed: of the draw of sentences, of batches and of the adapter's start.
    """

    table: Train
    model: dict[str, Any]
    per_class: int
    strength: float
    peer_strength: float
    seed: int


def loaded(options: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    return plugins.load("models", "encoder_classifier", options, Model)


class Ours:
    """Our local loop and method at one client, domain by domain."""

    def __init__(self, name: str, domains: Stream, setting: Setting, folder: Path) -> None:
        options = {
            "naive": {},
            "replay": {"per_class": setting.per_class, "tune_rounds": 0},
            "ewc": {"strength": setting.strength},
        }[name]
        method = {"naive": "none"}.get(name, name)
        self._method: Continual = plugins.load("continual", method, options, Continual)
        self._privatizer = plugins.load("privacy", "none", {}, Privatizer)
        self._stream, self._setting, self._folder = domains, setting, folder
        self._kept: Any = {}
        self.model = loaded(setting.model, setting.seed)
        self.steps = 0

    def learn(self, index: int) -> float:
        """Train on a domain; CPU seconds of its steps alone. `steps` is how many there were."""
        domain, setting, method = self._stream.domains[index], self._setting, self._method
        self.model.fit_labels(
            [name for d in self._stream.domains[: index + 1] for name in d.labels]
        )
        params, manifest = self.model.vector(), self.model.manifest
        self._kept, params = method.begin(self._kept, params, manifest, index)
        self.model.load(params)
        shard = of_domain(self._stream.splits.train, domain.name)
        phase = Phase(
            domain,
            index,
            self._folder,
            setting.seed,
            method.told(self._kept),
            manifest=manifest,
            labels=self.model.labels,
            base=self.model.identity(),
        )
        memory = method.start(phase)
        records = method.dataset(memory, shard, self.model)
        encoded = self.model.encode(records)
        self.steps = setting.table.epochs * -(-len(records) // setting.table.batch_size)
        before = time.process_time()
        train(
            self.model,
            encoded,
            strata_of(records, domain.name, shard),
            setting.table,
            Schedule(0, 1, setting.table.warmup_rate, setting.table.decay),
            self._privatizer,
            Forces(
                (lambda parameters: method.pull(memory, parameters),),
                lambda parameters: method.mask(memory, parameters),
            ),
            frozenset(manifest.names),
            [],
            generator(setting.seed, "batches", index),
        )
        spent = time.process_time() - before
        vector = method.finish(method.start(phase), shard, self.model, phase)
        lesson = Lesson(
            domain,
            index,
            self.model.labels,
            vector.astype(np.float64),
            1.0,
            self.model.vector(),
            manifest,
            self.model,
            Records(),
        )
        self._kept = method.learn(self._kept, lesson)
        return spent

    def row(self, index: int) -> list[float]:
        """Accuracy on each domain so far."""
        parts = [of_domain(self._stream.splits.test, d.name) for d in self._stream.domains]
        return [
            self.model.score(self.model.encode(part), 256).accuracy for part in parts[: index + 1]
        ]


class Peer:
    """An Avalanche strategy with our schedule, domain by domain."""

    def __init__(self, name: str, domains: Stream, setting: Setting) -> None:
        self.model = loaded(setting.model, setting.seed)
        self.module = IndexedModel(self.model, domains)
        self.made = benchmark(domains)
        table = setting.table
        self._half = name == "replay"
        self._batch = table.batch_size
        memory = setting.per_class * sum(len(domain.labels) for domain in domains.domains)
        plugin: dict[str, list[Any]] = {
            "naive": [],
            "replay": [ReplayPlugin(memory, batch_size_mem=table.batch_size // 2)],
            "ewc": [EWCPlugin(setting.peer_strength, mode="online", decay_factor=1.0)],
        }
        self._timed = _Timed(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.strategy = Naive(
                model=self.module,
                optimizer=torch.optim.AdamW(self.module.parameters(), lr=table.lr, fused=True),
                criterion=torch.nn.CrossEntropyLoss(),
                train_mb_size=table.batch_size,
                train_epochs=table.epochs,
                eval_mb_size=256,
                plugins=[*plugin[name], self._timed],
                evaluator=EvaluationPlugin(),
            )
        self.steps = 0

    def learn(self, index: int, steps: int) -> float:
        """Train on an experience for about `steps` steps; CPU seconds of its steps alone."""
        half = self._half and index > 0
        self.strategy.train_mb_size = self._batch // 2 if half else self._batch
        count = len(self.made.train_stream[index].dataset)
        an_epoch = -(-count // self.strategy.train_mb_size)
        self.strategy.train_epochs = max(1, round(steps / an_epoch))
        self._timed.begin(an_epoch * self.strategy.train_epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.strategy.train(self.made.train_stream[index])
        self.steps = self._timed.steps
        return self._timed.spent_s

    def row(self, index: int) -> list[float]:
        """Accuracy on each domain so far, by our own scoring."""
        records = [self.made.test_stream[i] for i in range(index + 1)]
        rows = []
        with torch.no_grad():
            for experience in records:
                places = torch.tensor([place for place, _ in experience.dataset])
                targets = torch.tensor([target for _, target in experience.dataset])
                found = torch.cat([self.module(part).argmax(1) for part in places.split(256)])
                rows.append(float((found == targets).float().mean()))
        return rows


class _Timed(SupervisedPlugin):  # type: ignore[misc]
    """The optimizer begun anew, our warm-up and decay, and the CPU time of the epochs."""

    def __init__(self, table: Train) -> None:
        super().__init__()
        self._table, self._planned, self._before = table, 0, 0.0
        self.steps, self.spent_s = 0, 0.0

    def begin(self, planned: int) -> None:
        self._planned, self.steps, self.spent_s = planned, 0, 0.0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.optimizer.state.clear()

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._before = time.process_time()

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.spent_s += time.process_time() - self._before

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        schedule = Schedule(0, 1, self._table.warmup_rate, self._table.decay)
        for group in strategy.optimizer.param_groups:
            group["lr"] = self._table.lr * schedule.factor(self.steps, self._planned)
        self.steps += 1


def beside(name: str, domains: Stream, setting: Setting) -> dict[str, Any]:
    """Ours and Avalanche's of one method, a domain each in turn; accuracies in percent.

    `ratio` is ours over theirs in CPU time per step, the median over the domains.
    """
    count = len(domains.domains)
    ours_matrix, peer_matrix = np.full((count, count), np.nan), np.full((count, count), np.nan)
    ratios, steps = [], [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = Ours(name, domains, setting, Path(folder)), Peer(name, domains, setting)
        for index in range(count):
            mine = ours.learn(index)
            theirs = peer.learn(index, ours.steps)
            ratios.append((mine / ours.steps) / (theirs / peer.steps))
            steps[0] += ours.steps
            steps[1] += peer.steps
            ours_matrix[index, : index + 1] = ours.row(index)
            peer_matrix[index, : index + 1] = peer.row(index)
    found = {"ratio": median(ratios), "steps": steps[0], "peer_steps": steps[1]}
    for side, matrix in (("", ours_matrix), ("peer_", peer_matrix)):
        found |= dict(_figures(side, matrix))
    return found


def _figures(side: str, matrix: metrics.Matrix) -> Iterator[tuple[str, float]]:
    yield f"{side}final", 100 * float(metrics.average_accuracy(matrix)[-1])
    yield f"{side}forgetting", 100 * float(metrics.forgetting(matrix)[-1])
    yield f"{side}backward", 100 * metrics.backward_transfer(matrix)


def measured_beside(row: Any, seed: int, memo: Memo) -> dict[str, Any]:
    """The figures of a peer's row.

    Args:
        row: its settings.
        seed: of the draw of sentences, of batches and of the adapter's start.
        memo: of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        train_file = some_of_each(row.sentences, seed, Path(folder) / "train.csv")
        tree = tomllib.loads(config(row.tables, seed, 0.5, train_file))
        options = {key: value for key, value in tree["data"].items() if key != "name"}
        splits = plugins.load("data", "csv", options, Source).read()
    setting = Setting(
        Train(**tree["train"]), tree["model"], PER_CLASS, STRENGTH, PEER_STRENGTH, seed
    )
    with shared(memo):
        return beside(row.peer, stream(splits, Domains()), setting)
