"""What a client process holds for a run: model, records and plug-ins, loaded once.

In a simulation many clients share one process and so one model; what belongs to one client
alone (its shard, its folder) is kept apart by its index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import check
from ..core.config import Config
from ..core.errors import PrivacyError, RunError
from ..core.parts import Model, Phase, SecureSum, Strata, added
from ..core.seeds import derive, generator
from ..core.values import Records, Update, Vector, gather
from ..core.wire import Task
from ..data.stream import Stream, stream
from ..models.place import place
from .answers import Question, answer
from .parties import NOTHING_OWN, Client, Own, Sealing
from .promise import make as make_promise
from .promise import once, one_row_each
from .shards import Shards
from .store import ClientStore
from .train import Forces, Schedule, train


class Site:
    """Model, records and plug-ins of one run, and the work that a client does with them.

    Args:
        text: the run's TOML text.
        data: replaces options of `[data]` by this node's own (a path, say).
        own: what this node's operator says, never the server.
    """

    def __init__(self, text: str, data: Mapping[str, Any], own: Own = NOTHING_OWN) -> None:
        self._text = text
        self.config: Config = check.read(text)
        self.model: Model = check.build(self.config, "model")
        place(self.model, self.config.train)
        self.strategy = check.build(self.config, "strategy")
        pins = {"identities": own.identities} if own.identities else {}
        self.secure_sum: SecureSum = check.build(self.config, "secure_sum", **pins)
        self.promise = make_promise(self.config, self.secure_sum, own)
        self.continual = check.build(self.config, "continual")
        self.stream: Stream = stream(
            check.build(self.config, "data", **data).read(),
            self.config.domains,
            causal=not self.model.labels_needed,
            partial=self.config.shards.split == "local",
        )
        self._sums = 0
        self.shards = Shards(self.config, self.model, self.stream)

    def train(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """One round on the client's shard: the sealed update and the numbers beside it."""
        return self._answer(client, task, params, summary, sealing, training=True)

    def finish(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """The end of a domain: what the continual method adds up over the clients, sealed."""
        return self._answer(client, task, params, summary, sealing, training=False)

    def join(self, sealing: Sealing) -> bytes:
        """The client's card for the sums of this run."""
        return self.secure_sum.join(sealing.party, sealing.pact.run)

    def reveal(self, sealing: Sealing) -> bytes:
        """What a sum needs of this client because others dropped out."""
        return self.secure_sum.reveal(sealing.pact, sealing.note, sealing.party)

    def _answer(
        self,
        client: Client,
        task: Task,
        params: Vector,
        summary: Vector,
        sealing: Sealing,
        *,
        training: bool,
    ) -> tuple[bytes, dict[str, float]]:
        # The config too: a run that is deleted and begun anew may have the old one's name.
        asked = self._text.encode() + params.tobytes() + summary.tobytes()
        salt = hashlib.sha256(asked).hexdigest()[:16]
        question = Question(task.ticket, salt, sealing)

        def worked() -> Update:
            self._prepare(task, params)
            size = self._size(task, training)
            if sealing.pact.size != size:  # or what is charged would be the server's to choose
                raise RunError(f"the pact must be for {size} values; it is for {sealing.pact.size}")
            charge = partial(self.promise.charge_release, client.store, task.ticket)
            if not training:
                charge("finish", size)
                return self._learnt(client, task, params, summary)
            released = partial(self.promise.released, client.store, task.ticket, salt)
            try:
                charge("train", size, salt)
                update = self._update(client, task, params, summary, salt)
            except Exception:
                # That it failed is seen from outside: only a process that dies gets it back.
                with suppress(PrivacyError):
                    released()
                raise
            released()
            return update

        self.promise.admit(client.store)
        return answer(question, client, self.config, self.secure_sum, self.promise, worked)

    def _size(self, task: Task, training: bool) -> int:
        """Number of values that travel up, by this client's own manifest."""
        manifest = self.model.manifest
        if not training:
            return int(self.continual.size(manifest))
        return manifest.only(self.strategy.trainable(manifest, task.ticket.round)).size

    def _update(
        self, client: Client, task: Task, params: Vector, summary: Vector, salt: str
    ) -> Update:
        ticket, table = task.ticket, self.config.train
        phase = self._phase(client, task, summary)
        memory = self.continual.start(phase)
        records, strata = self._records(client, task, memory)
        self.promise.charge_training(client.store, ticket, salt, strata, table.epochs)
        encoded = self.shards.encoded(client.index, task.domain.name, ticket.domain, records)
        trainable = self.strategy.trainable(self.model.manifest, ticket.round)
        anchor = {n: p.detach().clone() for n, p in self.model.parameters().items()}
        loss = train(
            self.model,
            encoded,
            strata,
            table,
            Schedule(ticket.round, task.rounds, table.warmup_rate, table.decay),
            self.promise.example,
            Forces(
                (
                    partial(self.continual.pull, memory),
                    lambda parameters: self.strategy.pull(parameters, anchor),
                ),
                partial(self.continual.mask, memory),
            ),
            trainable,
            self._answers(task),
            generator(phase.seed, "batches", ticket.round),
        )
        parts = self.model.manifest.slices(trainable)
        delta = gather(self.model.vector(), parts) - gather(params, parts)
        if self.promise.example.unit and len(encoded) and delta.size and not delta.any():
            raise PrivacyError(
                "what is sent must have been given noise; not one value of it moved. The model "
                "that trains is not the one that is sent."
            )
        return Update(
            delta,
            self._weight(len(encoded)),
            {"loss": loss, **self.promise.spent(client.store)},
        )

    def _weight(self, num_records: int) -> float:
        if self.promise.user.unit:  # even that a client has no record would tell about it
            return 1.0
        uniform = self.config.round.weight == "uniform"
        return float(min(num_records, 1) if uniform else num_records)

    def _records(self, client: Client, task: Task, memory: Any) -> tuple[Records, Strata]:
        shard = self.shards.of(client.index, task.domain.name, "train")
        records = self.continual.dataset(memory, shard)
        if self.promise.example.unit:
            records = once(records)
        return records, self.promise.strata(client.store, records, task.domain.name, shard)

    def evaluate(self, client: Client, task: Task, params: Vector) -> dict[str, float]:
        """Loss, right answers and totals of the client's test shard, domain by domain.

        Raises:
            PrivacyError: privacy is promised, and no ledger covers scores.
        """
        self.promise.admit(client.store)
        if self.promise.holds:
            raise PrivacyError(
                "scores of a client's records may not leave it in a private run; the server asked "
                "for them. Its config must say [evaluate] where = 'server'."
            )
        self._prepare(task, params)
        numbers: dict[str, float] = {}
        for index, name in enumerate(task.seen):
            score = self.shards.score(client.index, name)
            numbers |= {
                f"loss.{index}": score.loss,
                f"correct.{index}": float(score.correct),
                f"total.{index}": float(score.total),
            }
        return numbers

    def _learnt(self, client: Client, task: Task, params: Vector, summary: Vector) -> Update:
        phase = self._phase(client, task, summary)
        memory = self.continual.start(phase)
        shard = self.shards.of(client.index, task.domain.name, "train")
        strata = self._records(client, task, memory)[1]
        travels = self.strategy.trainable(self.model.manifest, task.ticket.round)
        before = self._sums
        vector = self.continual.finish(memory, shard, self.model, phase)
        if self.promise.example.unit and vector.size and self._sums == before:
            raise PrivacyError(
                f"[continual] {self.config.continual.name!r} gave {vector.size} values that were "
                "not summed by `Phase.summed`, so no noise is in them and nothing was charged. "
                "Use another method in a private run."
            )
        told = self.promise.left(
            client.store,
            strata,
            self.config.train.epochs,
            task.rounds,
            self.model.manifest.only(travels).size,
        )
        weight = 1.0 if self.promise.user.unit else float(min(len(shard), 1))
        return Update(vector, weight, told)

    def _prepare(self, task: Task, params: Vector) -> None:
        if task.base != self.model.identity():
            raise RunError(
                f"the base must be the server's, {task.base}; this client has "
                f"{self.model.identity()}. Install the same base and versions at both ends."
            )
        known = self.model.labels
        if task.labels[: len(known)] != known[: len(task.labels)]:
            self.shards.forget()
        self.model.fit_labels(task.labels)
        if self.model.manifest.hash != task.manifest:
            raise RunError(
                f"the server's manifest must be {self.model.manifest.hash}; got {task.manifest}. "
                "Use one config, one base and one version at both ends."
            )
        self.model.load(params)

    def _phase(self, client: Client, task: Task, summary: Vector) -> Phase:
        seed = derive(self.config.run.seed, "client", client.index, "domain", task.ticket.domain)
        summed = partial(self._summed, client, task) if self.promise.example.unit else added
        return Phase(task.domain, task.ticket.domain, client.store.folder, seed, summary, summed)

    def _summed(
        self, client: Client, task: Task, rows: Iterable[Vector], records: Records, clip: float
    ) -> Vector:
        shard = self.shards.of(client.index, task.domain.name, "train")
        strata = self.promise.strata(client.store, records, task.domain.name, shard)
        self.promise.charge_statistics(client.store, task.ticket, strata)
        self._sums += 1
        return self.promise.example.summed(one_row_each(rows, records), clip)

    def _answers(self, task: Task) -> list[int]:
        # Among one answer there is nothing to tell apart: the loss would be 0 for ever.
        if self.config.train.loss_over == "seen" or len(task.domain.labels) == 1:
            return []
        index = {label: i for i, label in enumerate(task.labels)}
        return [index[label] for label in task.domain.labels]


def open_site(text: str, data: tuple[tuple[str, Any], ...] = (), own: Own = NOTHING_OWN) -> Site:
    """The site of a run, loaded on first use and kept by this process.

    Raises:
        PerennialError: config, data or model do not hold what they promise.
    """
    return _site(text, data, own)


@lru_cache(maxsize=1)
def _site(text: str, data: tuple[tuple[str, Any], ...], own: Own) -> Site:
    site = Site(text, dict(data), own)
    # Nothing random is left to torch after the adapter's start, which the server sends anyway.
    torch.manual_seed(derive(site.config.run.seed, "site"))
    return site


def forget_site() -> None:
    """Load anew when a site is opened next."""
    _site.cache_clear()


def open_client(site: Site, index: int, folder: Path) -> Client:
    """The client `index` with its folder.

    Raises:
        RunError: the folder is another client's.
    """
    name = f"{index:05d}"
    return Client(index, ClientStore(folder, name, site.model.identity()))


def empty() -> Vector:
    """A vector of no values."""
    return np.zeros(0, np.float32)
