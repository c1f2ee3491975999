"""What a client process holds for a run: model, records and plug-ins, loaded once.

In a simulation many clients share one process and so one model; what belongs to one client
alone (its shard, its folder) is kept apart by its index.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import check
from ..core.config import Config
from ..core.errors import RunError
from ..core.parts import Encoded, Model, Phase, Score, SecureSum
from ..core.seeds import derive, generator
from ..core.sums import Figures, Pact, Party
from ..core.values import Records, Update, Vector, gather
from ..core.wire import Task
from ..data.deals import deal_of
from ..data.stream import Stream, stream
from ..models.place import place
from .store import ClientStore, Kept
from .train import Forces, Schedule, train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Client:
    """One client of this process.

    Attributes:
        index: 0..num_clients-1; which shard is its own.
        store: its folder on disk.
    """

    index: int
    store: ClientStore


@dataclass(frozen=True, slots=True)
class Sealing:
    """What a client seals to.

    Attributes:
        pact: of the sum.
        note: what this client alone was told.
        party: the client as a party of the sum.
    """

    pact: Pact
    note: bytes
    party: Party


class Site:
    """Model, records and plug-ins of one run, and the work that a client does with them.

    Args:
        text: the run's TOML text.
        data: replaces options of `[data]` by this node's own (a path, say).
        identities: file with the identities that this node lets in; in place of what the
            server's config says, and refused where the sum has no masks.
    """

    def __init__(self, text: str, data: Mapping[str, Any], identities: str = "") -> None:
        self._text = text
        self.config: Config = check.read(text)
        self.model: Model = check.build(self.config, "model")
        place(self.model, self.config.train)
        self.strategy = check.build(self.config, "strategy")
        pins = {"identities": identities} if identities else {}
        self.secure_sum: SecureSum = check.build(self.config, "secure_sum", **pins)
        self.privatizer = check.build(self.config, "privacy")
        self.continual = check.build(self.config, "continual")
        self.stream: Stream = stream(
            check.build(self.config, "data", **data).read(),
            self.config.domains,
            causal=not self.model.labels_needed,
            partial=self.config.shards.split == "local",
        )
        self._deals: dict[tuple[str, str], tuple[Records, ...]] = {}
        self._encoded: dict[tuple[int, str, str], Encoded] = {}
        self._encoded_ids: dict[int, tuple[str, ...]] = {}
        self._learning: tuple[str, int] = ("", -1)

    def train(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """One round on the client's shard: the sealed update and the numbers beside it."""
        return self._answer(client, task, params, summary, sealing, self._update)

    def finish(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """The end of a domain: what the continual method adds up over the clients, sealed."""
        return self._answer(client, task, params, summary, sealing, self._learnt)

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
        work: Callable[[Client, Task, Vector, Vector], Update],
    ) -> tuple[bytes, dict[str, float]]:
        # The config too: a run that is deleted and begun anew may have the old one's name.
        asked = self._text.encode() + params.tobytes() + summary.tobytes()
        salt = hashlib.sha256(asked).hexdigest()[:16]
        kept = client.store.recall(task.ticket, salt)
        if kept is None:
            started = time.perf_counter()
            self._prepare(task, params)
            update = work(client, task, params, summary)
            kept = Kept(
                update.delta,
                update.weight,
                update.metrics.get("loss", math.nan),
                {"seconds": time.perf_counter() - started},
            )
        elif kept.body and kept.session == sealing.pact.session:
            logger.info("client %d answers round %s again", client.index, task.ticket)
            return kept.body, dict(kept.metrics)
        kept = self._sealed(client, task, kept, sealing)
        hides = not self.secure_sum.single_updates
        # In the clear the body is the delta once more.
        client.store.remember(task.ticket, salt, kept if hides else replace(kept, body=b""))
        return kept.body, dict(kept.metrics)

    def _sealed(self, client: Client, task: Task, kept: Kept, sealing: Sealing) -> Kept:
        metrics, figures = {"seconds": kept.metrics["seconds"]}, Figures(kept.weight, kept.loss)
        if not self.secure_sum.single_updates:  # weight and loss travel inside the seal
            most = self._largest_weight()
            if kept.weight > most:
                words = "client %d trained on %d records and counts for [round] max_weight = %d"
                logger.warning(words, client.index, kept.weight, most)
            figures = replace(figures, weight=min(kept.weight, most))
        else:
            metrics["weight"] = kept.weight
            metrics |= {"loss": kept.loss} if math.isfinite(kept.loss) else {}
        if not kept.delta.size:
            return replace(kept, metrics=metrics, session=sealing.pact.session)
        started = time.perf_counter()
        seed = derive(self.config.run.seed, "client", client.index, "domain", task.ticket.domain)
        body = self.secure_sum.seal(
            kept.delta,
            figures,
            sealing.pact,
            sealing.note,
            sealing.party,
            generator(seed, "rounding", task.ticket.round),
        )
        if not self.secure_sum.single_updates:
            metrics["seal_seconds"] = time.perf_counter() - started
        return replace(kept, metrics=metrics, session=sealing.pact.session, body=body)

    def _largest_weight(self) -> float:
        table = self.config.round
        return 1.0 if table.weight == "uniform" else float(int(table.max_weight))

    def _update(self, client: Client, task: Task, params: Vector, summary: Vector) -> Update:
        ticket, table = task.ticket, self.config.train
        phase = self._phase(client, task, summary)
        memory = self.continual.start(phase)
        records = self.continual.dataset(memory, self._shard(client, task.domain.name, "train"))
        encoded = self._encode(client, task, records)
        trainable = self.strategy.trainable(self.model.manifest, ticket.round)
        anchor = {n: p.detach().clone() for n, p in self.model.parameters().items()}
        loss = train(
            self.model,
            encoded,
            table,
            Schedule(ticket.round, task.rounds, table.warmup_rate, table.decay),
            self.privatizer,
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
        uniform = self.config.round.weight == "uniform"
        weight = float(min(len(encoded), 1) if uniform else len(encoded))
        spends = self.privatizer.spends(len(encoded), table.batch_size, table.epochs)
        return Update(delta, weight, spends, {"loss": loss})

    def evaluate(self, client: Client, task: Task, params: Vector) -> dict[str, float]:
        """Loss, right answers and totals of the client's test shard, domain by domain."""
        self._prepare(task, params)
        numbers: dict[str, float] = {}
        for index, name in enumerate(task.seen):
            score = self._score(client, name)
            numbers |= {
                f"loss.{index}": score.loss,
                f"correct.{index}": float(score.correct),
                f"total.{index}": float(score.total),
            }
        return numbers

    def _score(self, client: Client, domain: str) -> Score:
        key = (client.index, domain, "test")
        if key not in self._encoded:
            shard = self._shard(client, domain, "test")
            if not len(shard):
                return Score()
            self._encoded[key] = self.model.encode(shard)
        return self.model.score(self._encoded[key], self.config.evaluate.batch_size)

    def _learnt(self, client: Client, task: Task, params: Vector, summary: Vector) -> Update:
        phase = self._phase(client, task, summary)
        memory = self.continual.start(phase)
        shard = self._shard(client, task.domain.name, "train")
        vector, spends = self.continual.finish(memory, shard, self.model, phase)
        return Update(vector, float(min(len(shard), 1)), spends)

    def _prepare(self, task: Task, params: Vector) -> None:
        if task.base != self.model.identity():
            raise RunError(
                f"the base must be the server's, {task.base}; this client has "
                f"{self.model.identity()}. Install the same base and versions at both ends."
            )
        known = self.model.labels
        if task.labels[: len(known)] != known[: len(task.labels)]:
            self._encoded = {}  # another order of labels: what was encoded points to other rows
        self.model.fit_labels(task.labels)
        if self.model.manifest.hash != task.manifest:
            raise RunError(
                f"the server's manifest must be {self.model.manifest.hash}; got {task.manifest}. "
                "Use one config, one base and one version at both ends."
            )
        self.model.load(params)

    def _phase(self, client: Client, task: Task, summary: Vector) -> Phase:
        seed = derive(self.config.run.seed, "client", client.index, "domain", task.ticket.domain)
        return Phase(task.domain, task.ticket.domain, client.store.folder, seed, summary)

    def _shard(self, client: Client, domain: str, split: str) -> Records:
        key = (domain, split)
        if all(domain != known.name for known in self.stream.domains):
            # Another client's. Kept, the server's names would fill this process.
            records: Records = getattr(self.stream.splits, split)
            return records.take(())
        if key not in self._deals:
            config = self.config
            self._deals[key] = deal_of(self.stream, config.shards, config.run.seed, *key)
        return self._deals[key][client.index]

    def _encode(self, client: Client, task: Task, records: Records) -> Encoded:
        # Only the current domain's records stay encoded: old ones come back as replay.
        now = (task.domain.name, task.ticket.domain)
        if now != self._learning:
            self._encoded = {k: v for k, v in self._encoded.items() if k[2] != "train"}
            self._learning = now
        key = (client.index, task.domain.name, "train")
        # A continual method may swap records between rounds; the ids tell.
        if key not in self._encoded or self._encoded_ids.get(client.index) != records.ids:
            self._encoded[key] = self.model.encode(records)
            self._encoded_ids[client.index] = records.ids
        return self._encoded[key]

    def _answers(self, task: Task) -> list[int]:
        # Among one answer there is nothing to tell apart: the loss would be 0 for ever.
        if self.config.train.loss_over == "seen" or len(task.domain.labels) == 1:
            return []
        index = {label: i for i, label in enumerate(task.labels)}
        return [index[label] for label in task.domain.labels]


def open_site(text: str, data: tuple[tuple[str, Any], ...] = (), identities: str = "") -> Site:
    """The site of a run, loaded on first use and kept by this process.

    Raises:
        PerennialError: config, data or model do not hold what they promise.
    """
    return _site(text, data, identities)


@lru_cache(maxsize=1)
def _site(text: str, data: tuple[tuple[str, Any], ...], identities: str) -> Site:
    site = Site(text, dict(data), identities)
    # Nothing random is left to torch after the adapter's start, which the server sends anyway.
    torch.manual_seed(derive(site.config.run.seed, "site"))
    return site


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
