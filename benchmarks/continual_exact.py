"""Checks of the analytic head that are no runs: order and split change nothing, withdrawal undoes.

Both go through the method's own two halves and its files, with features computed anew in each
split: a memo would hide what the company of other texts does to a feature. Five sentences of
each intent, ridge on random features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from continual_runs import DATA, NUM_CLIENTS, Memo, some_of_each
from table import progress

from perennial.continual.analytic_answer import Head
from perennial.core import plugins
from perennial.core.config import Domains, Shards
from perennial.core.continual import Lesson, Phase
from perennial.core.parts import Continual, Model, Source
from perennial.core.seeds import generator
from perennial.core.values import Domain, Records, Vector
from perennial.data.shards import deal
from perennial.data.stream import Stream, of_domain, stream

TRIES = 20
OPTIONS = {"form": "ridge", "layers": 2, "width": 1000}


def loaded_stream() -> Stream:
    with tempfile.TemporaryDirectory() as folder:
        train = some_of_each(5, 0, Path(folder) / "train.csv")
        options = {"train": str(train), "test": str(DATA / "test.csv")}
        return stream(plugins.load("data", "csv", options, Source).read(), Domains())


class Federation:
    """The analytic head of some clients, domain by domain.

    Args:
        model: whose features are taken.
        clients: records of each client.
        folder: theirs; one below it for each.
    """

    def __init__(self, model: Any, clients: Sequence[Records], folder: Path) -> None:
        self._method: Continual = plugins.load("continual", "analytic_head", OPTIONS, Continual)
        self._model, self._clients, self._folder = model, clients, folder
        self._labels: tuple[str, ...] = ()
        self._seen: tuple[str, ...] = ()
        self.kept: Mapping[str, Any] = {}

    def learn(self, domain: Domain, gone: Mapping[int, frozenset[str]] | None = None) -> None:
        """The end of a domain; `gone` says which client's records were withdrawn until then."""
        index = len(self._seen)
        self._seen += (domain.name,)
        self._labels += domain.labels
        model, method = self._model, self._method
        model.fit_labels(self._labels)
        params, manifest = model.vector(), model.manifest
        self.kept, params = method.begin(self.kept, params, manifest, index)
        total, weight = np.zeros(method.size(manifest)), 0.0
        for number, records in enumerate(self._clients):
            vector = self._finish(number, records, domain, index, (gone or {}).get(number))
            total += vector
            weight += float(vector.any())
        lesson = Lesson(
            domain, index, self._labels, total, weight, params, manifest, model, Records()
        )
        self.kept = method.learn(self.kept, lesson)

    def _finish(
        self,
        number: int,
        records: Records,
        domain: Domain,
        index: int,
        gone: frozenset[str] | None,
    ) -> Vector:
        folder = self._folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        withdrawn = gone or frozenset()
        own = records.where(lambda i: records.ids[i] not in withdrawn)
        held = own.where(lambda i: own.domains[i] in self._seen)
        phase = Phase(
            domain,
            index,
            folder,
            0,
            self._method.told(self.kept),
            manifest=self._model.manifest,
            labels=self._labels,
            base=self._model.identity(),
            held=lambda: held,
            withdrawn=lambda: records.where(lambda i: records.ids[i] in withdrawn),
            gone=withdrawn,
            counted=frozenset(range(index)),
        )
        shard = of_domain(own, domain.name)
        return self._method.finish(self._method.start(phase), shard, self._model, phase)

    def logits(self, records: Records, labels: Sequence[str]) -> Vector:
        """Answers [n, labels], the columns in the order of `labels`."""
        assert self._method.answer is not None
        head = self._method.head(self.kept)
        found = self._method.answer(head, self._model, self._labels).logits(records)
        return found[:, [self._labels.index(label) for label in labels]]


def _model() -> Any:
    return plugins.load("models", "encoder_classifier", {"layers": 1}, Model)


def _split(domains: Stream, count: int, seed: int) -> list[Records]:
    """Each client's records of all domains, dealt by Dirichlet 0.1; one client holds them all."""
    if count == 1:
        return [domains.splits.train]
    table = Shards(split="dirichlet", num_clients=count, alpha=0.1)
    shards = [Records()] * count
    for place, domain in enumerate(domains.domains):
        own = of_domain(domains.splits.train, domain.name)
        dealt = deal(own, table, seed * 100 + place, like=own)
        shards = [mine + own.take(rows) for mine, rows in zip(shards, dealt, strict=True)]
    return shards


def _at_once(model: Any, domains: Stream, labels: Sequence[str], tested: Records) -> Vector:
    """The answers of a head that one client's records of all domains gave in one go."""
    everything = Domain("all", tuple(labels))
    records = domains.splits.train
    records = replace(records, domains=(everything.name,) * len(records))
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(model, [records], Path(folder))
        federation.learn(everything)
        return federation.logits(tested, labels)


def _accuracies(logits: Vector, labels: Sequence[str], tested: Records) -> list[float]:
    """Percent of right answers in each domain."""
    right = np.array([labels[i] for i in logits.argmax(1)]) == np.array(tested.targets)
    of = np.array(tested.domains)
    return [100.0 * float(right[of == name].mean()) for name in sorted(set(tested.domains))]


def exactness(memo: Memo) -> dict[str, Any]:
    """Over random orders of domains and splits of clients: what they change at most.

    `logits` is the largest difference of a logit from those of one client and the given order;
    `forgotten` the points that any domain lost against a head that saw all domains at once. The
    usual measure, the fall from a domain's best figure so far, also counts what a domain loses to
    labels that came later, which a head that forgets nothing shows too.
    """
    domains, model = loaded_stream(), _model()
    labels = [label for domain in domains.domains for label in domain.labels]
    tested = domains.splits.test.where(lambda i: i % 9 == 0)

    def answered(order: Sequence[int], shards: Sequence[Records]) -> Vector:
        with tempfile.TemporaryDirectory() as folder:
            federation = Federation(model, shards, Path(folder))
            for i in order:
                federation.learn(domains.domains[i])
            return federation.logits(tested, labels)

    wanted = answered(range(len(domains.domains)), _split(domains, 1, 0))
    together = _accuracies(_at_once(model, domains, labels, tested), labels, tested)
    worst, forgotten = 0.0, 0.0
    for seed in range(TRIES):
        progress(f"order and split {seed + 1} of {TRIES}")
        rng = generator(seed, "exactness")
        order, count = rng.permutation(len(domains.domains)), int(rng.integers(2, NUM_CLIENTS + 1))
        found = answered([int(i) for i in order], _split(domains, count, seed))
        worst = max(worst, float(np.abs(found - wanted).max()))
        pairs = zip(together, _accuracies(found, labels, tested), strict=True)
        forgotten = max(forgotten, max(one - other for one, other in pairs))
    return {"logits": worst, "forgotten": forgotten, "scale": float(np.abs(wanted).max())}


def withdrawal(memo: Memo) -> dict[str, Any]:
    """The largest difference of what the server keeps after a client withdrew all it had given.

    Of counts, sums, Gram matrix and the head's weights, relative to the largest value of each.
    """
    domains, model = loaded_stream(), _model()
    shards = _split(domains, NUM_CLIENTS, 1)
    leaver = max(range(NUM_CLIENTS), key=lambda i: len(shards[i]))
    all_of_it = {leaver: frozenset(shards[leaver].ids)}

    def kept(clients: Sequence[Records], leaving: bool) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            federation = Federation(model, clients, Path(folder))
            last = len(domains.domains) - 1
            for i, domain in enumerate(domains.domains):
                federation.learn(domain, all_of_it if leaving and i == last else None)
            return federation.kept

    stayed = [Records() if i == leaver else own for i, own in enumerate(shards)]
    left, never = kept(shards, leaving=True), kept(stayed, leaving=False)
    exact = all(np.array_equal(left[name], never[name]) for name in ("counts", "sums", "gram"))
    one, other = (Head.read(kept["head"]).linear for kept in (left, never))
    scale = float(np.abs(other.weight).max())
    worst = float(np.abs(one.weight - other.weight).max()) / scale
    if not exact:
        both = [(left[name], never[name]) for name in ("counts", "sums", "gram")]
        worst = max(worst, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in both))
    return {"statistics": worst, "exact": exact, "records": len(shards[leaver])}


CHECKS: dict[str, Callable[[Memo], dict[str, Any]]] = {
    "exactness": exactness,
    "withdrawal": withdrawal,
}
