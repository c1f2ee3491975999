"""What one client is asked in one exchange: its phase, its records, its schedule, its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..core.config import Config, Train
from ..core.errors import RunError
from ..core.parts import Continual, Indices, Model, Phase, Strata, added
from ..core.seeds import derive, generator
from ..core.values import Records, Vector
from ..core.wire import PEAK, Task, summary_name, summary_parts
from .holdings import Holdings
from .parties import Client
from .promise import Promise, once
from .train import Schedule

Summed: TypeAlias = Callable[[Iterable[Vector], Records, float], Vector]
"""(rows in blocks, their records, clip) -> their sum, charged and noised; see `Phase.summed`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A client and its task, with the parts of its site that say what the task means for it.

    Attributes:
        config: of the run.
        model: holds the labels so far.
        continual: of the run.
        promise: of the run.
        holdings: of the clients of this process.
        client: who is asked.
        task: what is asked.
        run: of which run, and those that went on from it, the indices of domains are.
    """

    config: Config
    model: Model
    continual: Continual
    promise: Promise
    holdings: Holdings
    client: Client
    task: Task
    run: str

    @property
    def shard(self) -> Records:
        """The client's own training records of the domain that may be used."""
        return self.holdings.mine(self.client, self.task.domain.name)

    @property
    def tuning(self) -> bool:
        """Whether the round is one of those that the method adds at the end of the domain."""
        rounds = self.task.rounds
        return rounds - self.continual.rounds <= self.task.ticket.round < rounds

    def phase(self, summary: Vector, summed: Summed) -> Phase:
        """Where the client stands, for the continual method.

        Args:
            summary: what the server tells all clients in this domain.
            summed: adds up rows of records where each record's privacy is promised; elsewhere
                rows are added as they are.
        """
        client, task = self.client, self.task
        private = bool(self.promise.example.unit)
        return Phase(
            task.domain,
            task.ticket.domain,
            client.store.folder,
            self._seed,
            summary,
            summed=summed if private else added,
            private=private,
            tuning=self.tuning,
            manifest=self.model.manifest,
            labels=task.labels,
            base=task.base,
            held=partial(self.holdings.held, client, task.seen),
            withdrawn=partial(self.holdings.withdrawn, client, task.seen),
            gone=self.holdings.gone(client),
            everything=self.holdings.left(client),
            counted=frozenset(task.counted),
            run=self.run,
            stiffest=_stiffest(self.config.train),
            # Beside old records a domain also learns how its labels stand to old ones.
            answers=() if self.continual.replays else self._compared(),
        )

    def records(self, memory: Any) -> tuple[Records, Strata, list[bool]]:
        """What is trained on, the new records first; who pays; and which are new.

        Args:
            memory: what the continual method remembers, as its `start` gave it.

        Raises:
            PrivacyError: it cannot be told under which cohorts records paid.
        """
        shard = self.shard
        records = self.continual.dataset(memory, shard, self.model)
        if self.model.labels_needed:  # a memory outlives runs, which may not know all its labels
            known = frozenset(self.model.labels)
            records = records.where(lambda i: records.targets[i] in known)
        if self.promise.example.unit:
            records = once(records)
        own = frozenset(shard.ids)
        fresh = [id_ in own for id_ in records.ids]
        if not all(fresh):
            records = records.take(np.argsort(~np.array(fresh), kind="stable"))
            fresh = sorted(fresh, reverse=True)
        strata = self.promise.strata(self.client.store, records, self.task.domain.name, shard)
        return records, strata, fresh

    def rehearsed(self, fresh: Sequence[bool]) -> Indices:
        """Positions of the records that this round trains on: all new ones, some replayed ones.

        Args:
            fresh: which records are new, those first.
        """
        table, new = self.config.train, sum(fresh)
        # Without a new record of its own a client still steadies the others, with one batch.
        most = math.ceil(table.replay_ratio * (new or table.batch_size))
        if not table.replay_ratio or self.tuning or len(fresh) - new <= most:
            return np.arange(len(fresh))
        rng = generator(self._seed, "rehearsed", self.task.ticket.round)
        drawn = rng.choice(len(fresh) - new, most, replace=False)
        return np.concatenate([np.arange(new), new + np.sort(drawn)])

    @property
    def _seed(self) -> int:
        """Of the client in this domain."""
        index, domain = self.client.index, self.task.ticket.domain
        return derive(self.config.run.seed, "client", index, "domain", domain)

    def schedule(self) -> Schedule:
        """The rounds of the domain and those of the method after them each have their own."""
        table, own, round_ = self.config.train, self.continual.rounds, self.task.ticket.round
        before = self.task.rounds - own
        place = (round_ - before, own) if self.tuning else (round_, before)
        return Schedule(*place, table.warmup_rate, table.decay)

    def answers(self) -> tuple[int, ...]:
        """Which labels this round's loss of new records looks at, as indices; empty for all."""
        return () if self.tuning else self._compared()

    def _compared(self) -> tuple[int, ...]:
        """The same in the rounds in which the domain is learnt."""
        task = self.task
        # Among one answer there is nothing to tell apart: the loss would be 0 for ever.
        over = self.config.train.loss_over
        if over == "auto":  # with old records among the new ones, old and new labels must compete
            over = "seen" if self.continual.replays else "domain"
        if over == "seen" or len(task.domain.labels) == 1:
            return ()
        index = {label: i for i, label in enumerate(task.labels)}
        if unknown := [label for label in task.domain.labels if label not in index]:
            raise RunError(
                f"the labels of the server's task must hold those of its domain; {unknown[0]!r} is "
                "not among them. Install the same version of perennial at both ends."
            )
        return tuple(index[label] for label in task.domain.labels)


def _stiffest(table: Train) -> float:
    """The largest curvature that every step of the optimizer can follow."""
    return 1.0 / max(table.lr, table.head_lr) if table.optimizer == "sgd" else math.inf


def ending(task: Task, kind: str) -> tuple[Task, tuple[float, ...]]:
    """The task and the units of its parts, whichever of a domain's last two questions it came with.

    The answer is computed once: the question how large it is comes first, and as one round later.

    Raises:
        RunError: the server asks for something else than a summary.
    """
    asked = task.ticket
    size, units = summary_parts(asked.manifest)
    round_ = asked.round - (kind == PEAK)
    return replace(task, ticket=replace(asked, manifest=summary_name(size), round=round_)), units
