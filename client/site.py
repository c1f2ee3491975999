"""What a client process holds for a run: model, records and plug-ins, loaded once.

In a simulation many clients share one process and so one model; what belongs to one client
alone (its shard, its folder) is kept apart by its index.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from ..core import check
from ..core.config import Config
from ..core.errors import PrivacyError, RunError
from ..core.parts import Continual, Encoded, Model, Phase, SecureSum
from ..core.seeds import derive, generator
from ..core.values import Records, Update, Vector, gather
from ..core.wire import FINISH, PEAK, PEAKS, TRAIN, Task
from ..data.files import stamps
from ..data.stream import Stream, stream
from ..models.place import place
from . import label_rows
from .answers import Question, answer, peak
from .holdings import Holdings
from .parties import NOTHING_OWN, Client, Own, Sealing
from .phases import Asked, ending
from .promise import make as make_promise
from .promise import one_row_each
from .shards import Shards, Some
from .store import ClientStore
from .train import Forces, train


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
        self.continual: Continual = check.build(self.config, "continual")
        self.stream: Stream = stream(
            check.build(self.config, "data", **data).read(),
            self.config.domains,
            causal=not self.model.labels_needed,
            partial=self.config.shards.split == "local",
        )
        self._sums = 0
        self.gradient_norm = math.nan  # of the last step that was taken; it stays on this machine
        self.shards = Shards(self.config, self.model, self.stream)
        self.holdings = Holdings(self.shards, self.stream)

    def train(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """One round on the client's shard: the sealed update and the numbers beside it."""
        return self._answer(client, task, params, summary, sealing, TRAIN)

    def finish(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """The end of a domain: what the continual method adds up over the clients, sealed."""
        return self._answer(client, task, params, summary, sealing, FINISH)

    def peak(
        self, client: Client, task: Task, params: Vector, summary: Vector, sealing: Sealing
    ) -> tuple[bytes, dict[str, float]]:
        """Before `finish`: in which half octave its largest value lies, sealed.

        Raises:
            PrivacyError: the client's privacy is promised, and no ledger covers this.
        """
        if self.promise.user.unit:
            raise PrivacyError(
                "how large a client's values are may not be asked in a run that is private to "
                "users; the server did. Nothing is sent."
            )
        return self._answer(client, task, params, summary, sealing, PEAK)

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
        kind: str,
    ) -> tuple[bytes, dict[str, float]]:
        # The config too: a run that is deleted and begun anew may have the old one's name.
        said = self._text.encode() + params.tobytes() + summary.tobytes()
        if not self.promise.holds:  # what was released under a promise stays what it was
            # Asked again after somebody withdrew, a client answers without that record.
            said += "\0".join(sorted(self.holdings.gone(client))).encode()
            said += b"\0\0" * self.holdings.left(client)  # though no shard may name a record
        salt = hashlib.sha256(said).hexdigest()[:16]
        self.promise.admit(client.store)
        question = Question(task.ticket, salt, sealing)
        if kind != TRAIN:
            task, units = ending(task, kind)
            self._prepare(task, params)
            lengths = self.continual.lengths(self.model.manifest)
            question = Question(task.ticket, salt, sealing, lengths, units)
        asked = self.asked(client, task, task.line or sealing.pact.run)

        def worked() -> Update:
            self._prepare(task, params)
            size = self._size(task, kind)
            wanted = PEAKS * len(question.lengths) if kind == PEAK else size
            if sealing.pact.size != wanted:  # or what is charged would be the server's to choose
                raise RunError(
                    f"the pact must be for {wanted} values; it is for {sealing.pact.size}"
                )
            charge = partial(self.promise.charge_release, client.store, task.ticket)
            if kind != TRAIN:
                charge("finish", size)
                return self._learnt(asked, summary)
            released = partial(self.promise.released, client.store, task.ticket, salt)
            try:
                charge("train", size, salt)
                update = self._update(asked, params, summary, salt)
            except Exception:
                # That it failed is seen from outside: only a process that dies gets it back.
                with suppress(PrivacyError):
                    released()
                raise
            released()
            return update

        if kind == PEAK:
            body = peak(question, client, self.config, self.secure_sum, worked, self.promise)
            return body, {}
        return answer(question, client, self.config, self.secure_sum, self.promise, worked)

    def _size(self, task: Task, kind: str) -> int:
        """Number of values that the client gives, by its own manifest."""
        manifest = self.model.manifest
        if kind != TRAIN:
            return int(self.continual.size(manifest))
        return manifest.only(self.strategy.trainable(manifest, task.ticket.round)).size

    def asked(self, client: Client, task: Task, run: str) -> Asked:
        """What `task` means for a client.

        Args:
            client: who is asked.
            task: what is asked.
            run: of which run the indices of domains are.
        """
        parts = self.config, self.model, self.continual, self.promise, self.holdings
        return Asked(*parts, client, task, run)

    def _phase(self, asked: Asked, summary: Vector) -> Phase:
        return asked.phase(summary, partial(self._summed, asked))

    def _observe(self, norm: float) -> None:
        self.gradient_norm = norm

    def _update(self, asked: Asked, params: Vector, summary: Vector, salt: str) -> Update:
        client, task = asked.client, asked.task
        ticket, table = task.ticket, self.config.train
        phase = self._phase(asked, summary)
        memory = self.continual.start(phase)
        records, strata, fresh = asked.records(memory)
        self.promise.charge_training(client.store, ticket, salt, strata, table.epochs)
        name = task.domain.name
        encoded: Encoded = self.shards.encoded(client.index, name, ticket.domain, records, fresh)
        rows = asked.rehearsed(fresh)
        if len(rows) < len(records):  # all stay encoded: the next round draws others
            encoded, records = Some(encoded, rows), records.take(rows)
            strata = replace(strata, of=strata.of[rows])
        counts = self._counts(records) if table.balanced else []
        trainable = self.strategy.trainable(self.model.manifest, ticket.round)
        anchor = {n: p.detach().clone() for n, p in self.model.parameters().items()}
        loss = train(
            self.model,
            encoded,
            strata,
            table,
            asked.schedule(),
            self.promise.example,
            Forces(
                (
                    partial(self.continual.pull, memory),
                    lambda parameters: self.strategy.pull(parameters, anchor),
                ),
                partial(self.continual.mask, memory),
            ),
            trainable,
            asked.answers(),
            generator(phase.seed, "batches", ticket.round),
            counts,
            self._observe,
        )
        parts = self.model.manifest.slices(trainable)
        change = self.model.vector() - params
        if counts:
            new = () if asked.tuning else task.domain.labels
            scale = label_rows.scales(self.model.labels, counts, new)
            change = label_rows.by_label(change, self.model.manifest, scale)
        delta = gather(change, parts)
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

    def _counts(self, records: Records) -> list[int]:
        """Of each label of the model, how many of `records` have it."""
        met = Counter(records.targets)
        return [met[label] for label in self.model.labels]

    def _weight(self, num_records: int) -> float:
        if self.promise.user.unit:  # even that a client has no record would tell about it
            return 1.0
        uniform = self.config.round.weight == "uniform"
        return float(min(num_records, 1) if uniform else num_records)

    def evaluate(
        self, client: Client, task: Task, params: Vector, head: Vector
    ) -> dict[str, float]:
        """Loss, right answers and totals of the client's test shard, domain by domain.

        Args:
            client: whose records are asked.
            task: names the domains.
            params: of the round.
            head: of what answers in the place of the model's own; empty where nothing does.

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
        reply = None
        if head.size and self.continual.answer is not None:
            reply = self.continual.answer(head, self.model, task.labels)
        return self.shards.scores(client.index, task.seen, reply)

    def _learnt(self, asked: Asked, summary: Vector) -> Update:
        client, task = asked.client, asked.task
        phase = self._phase(asked, summary)
        memory = self.continual.start(phase)
        shard = asked.shard
        strata = asked.records(memory)[1]
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
            self.continual.sums,
        )
        # Without a record there may still be something to take back.
        some = bool(len(shard)) or bool(vector.any())
        weight = 1.0 if self.promise.user.unit else float(some)
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

    def _summed(
        self, asked: Asked, rows: Iterable[Vector], records: Records, clip: float
    ) -> Vector:
        store, task = asked.client.store, asked.task
        strata = self.promise.strata(store, records, task.domain.name, asked.shard)
        self.promise.charge_statistics(store, task.ticket, strata)
        self._sums += 1
        return self.promise.example.summed(one_row_each(rows, records), clip)


def open_site(text: str, data: tuple[tuple[str, Any], ...] = (), own: Own = NOTHING_OWN) -> Site:
    """The site of a run, loaded on first use and kept by this process until its records change.

    Raises:
        PerennialError: config, data or model do not hold what they promise.
    """
    return _site(text, data, own, stamps({**check.read(text).data.options, **dict(data)}))


@lru_cache(maxsize=1)
def _site(
    text: str, data: tuple[tuple[str, Any], ...], own: Own, seen: tuple[tuple[str, int, int], ...]
) -> Site:
    site = Site(text, dict(data), own)
    # Nothing random is left to torch after the adapter's start, which the server sends anyway.
    torch.manual_seed(derive(site.config.run.seed, "site"))
    return site


def loads() -> int:
    """How often this process loaded a site."""
    return _site.cache_info().misses


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
