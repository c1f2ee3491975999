"""One client's training outside any run: what audits and attack drills train and look at.

It is the client's own code path (`client.train` with the model, records, table and privatizer of
the config); only server, transport and ledger are left out, so that nothing is charged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..client.train import Forces, Schedule, train
from ..core import check
from ..core.config import Config, Train
from ..core.errors import DataError
from ..core.parts import Encoded, Model, Privatizer, Strata
from ..core.private import one_cohort
from ..core.seeds import generator
from ..core.values import Records, Vector
from ..data.deals import deal_of
from ..data.stream import Stream, of_domain, stream
from ..models.place import place, seed_adapter

_START = 0.02  # of what starts at zero: without it LoRA's A would have no gradient
_FOR_TRIALS = "for trials"


@dataclass(frozen=True, slots=True)
class Trial:
    """A model at a known start, and whose records are whose.

    Attributes:
        config: of the run.
        model: with a row for every label of the stream.
        start: the parameters that the server sent; known to everybody.
        domain: name of the domain that is learnt.
        shard: the training records of the client that holds most of that domain.
        others: training records of that domain at other clients.
        rest: all other records of the stream.
        trainable: names of the tensors that train in the first round.
    """

    config: Config
    model: Model
    start: Vector
    domain: str
    shard: Records
    others: Records
    rest: Records
    trainable: frozenset[str]

    def rng(self, *labels: str | int) -> np.random.Generator:
        """A generator for choices that are no secret."""
        return generator(self.config.run.seed, _FOR_TRIALS, *labels)

    def strata(self, count: int) -> Strata:
        """`count` records of the domain that is learnt."""
        return one_cohort(count, self.domain)

    def trained(
        self,
        encoded: Encoded,
        privatizer: Privatizer,
        table: Train,
        model: Model | None = None,
        start: Vector | None = None,
    ) -> Vector:
        """The update [n] of one round on `encoded`; the model stays as the round left it.

        Args:
            encoded: records of the client.
            privatizer: of the config, or a stronger or weaker one.
            table: how it trains.
            model: stands for `self.model`, around which it is.
            start: parameters to start from; `self.start` when not given.
        """
        start = self.start if start is None else start
        self.model.load(start)
        train(
            model or self.model,
            encoded,
            self.strata(len(encoded)),
            table,
            Schedule(0, 1, 0.0, "constant"),
            privatizer,
            Forces(),
            self.trainable,
            [],
            self.rng("batches"),
        )
        return self.model.vector() - start


def open_trial(config: Config, **model_options: object) -> Trial:
    """The trial of a config's first domain.

    Args:
        config: of the run.
        model_options: in place of the options of `[model]`.

    Raises:
        PerennialError: model or data do not hold what the config says, or there is no record.
    """
    seed_adapter(config.run.seed)
    model: Model = check.build(config, "model", **model_options)
    place(model, config.train)
    found = _stream(config, causal=not model.labels_needed)
    domain = found.domains[0]
    model.fit_labels([label for each in found.domains for label in each.labels])
    shard, others = _holders(config, found, domain.name)
    if len(shard) < 2:
        raise DataError(
            f"an audit needs a client with two training records or more of the domain "
            f"{domain.name!r}; the largest shard has {len(shard)}"
        )
    splits = found.splits
    every = splits.train.where(lambda i: splits.train.domains[i] != domain.name)
    strategy = check.build(config, "strategy")
    start = model.vector()
    zero = start == 0.0
    noise = generator(config.run.seed, _FOR_TRIALS, "start").normal(0.0, _START, len(start))
    start[zero] = noise[zero]
    return Trial(
        config,
        model,
        start,
        domain.name,
        shard,
        others,
        every + splits.validation + splits.test,
        strategy.trainable(model.manifest, 0),
    )


def _stream(config: Config, causal: bool) -> Stream:
    partial = config.shards.split == "local"
    source = check.build(config, "data")
    return stream(source.read(), config.domains, causal=causal, partial=partial)


def _holders(config: Config, found: Stream, domain: str) -> tuple[Records, Records]:
    if config.shards.split == "local":  # one node's own data stands for the client
        return of_domain(found.splits.train, domain), Records()
    deals = deal_of(found, config.shards, config.run.seed, domain, "train")
    most = max(range(len(deals)), key=lambda i: len(deals[i]))
    others = Records()
    for index, dealt in enumerate(deals):
        others = others if index == most else others + dealt
    return deals[most], others


def relabelled(records: Records, targets: tuple[str, ...]) -> Records:
    """`records` with other targets."""
    return replace(records, targets=targets)
