"""What a run has open: config, model, records, plug-ins, link and log; only read from then on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..core import check
from ..core.check_continual import LASTING, lasting, need_ranks
from ..core.config import Config
from ..core.parts import (
    Continual,
    KeyHolder,
    Model,
    Privatizer,
    SecureSum,
    Strategy,
    UserPrivatizer,
)
from ..core.seeds import derive
from ..core.values import Domain, ServerState, Ticket
from ..core.wire import Task
from ..data.deals import need_deal
from ..data.stream import Stream, stream
from ..models.place import place, seed_adapter
from .evaluate import TestRecords
from .events import EventLog
from .link import Link


@dataclass(frozen=True, slots=True)
class Room:
    """All that a run has open; only the model's weights, the log and the cards change.

    Attributes:
        token: random, made once in the life of a run: sums of another run of the same name
            are not sums of this one.
        line: name and token of the run that this one goes on from, through all between; its own
            for a run that began anew. Indices of domains, and what methods keep, are the line's.
        privatizer: of single records; what it promises is told, the clients keep it.
        user: of what each client holds; adds noise to sums where the server is trusted to.
        holder: opens sums; None where no key does.
        cards: what clients said of themselves when they joined, by node; of this process.
    """

    config: Config
    folder: Path
    link: Link
    log: EventLog
    token: str
    line: str
    model: Model
    stream: Stream
    test: TestRecords
    strategy: Strategy
    secure_sum: SecureSum
    privatizer: Privatizer
    user: UserPrivatizer
    holder: KeyHolder | None
    continual: Continual
    cards: dict[int, bytes] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds of a domain, those of the continual method at its end included."""
        return self.config.round.rounds + self.continual.rounds

    def domains(self, upto: int) -> tuple[Domain, ...]:
        """The domains 0..upto."""
        return self.stream.domains[: upto + 1]

    def labels(self, upto: int) -> tuple[str, ...]:
        """All labels of the domains 0..upto, in the order of the head."""
        return tuple(label for domain in self.domains(upto) for label in domain.labels)


def open_room(
    config: Config, folder: Path, link: Link, keyholder: Mapping[str, Any]
) -> partial[Room]:
    """The room but for `log`, `token` and `line`, so that all that can be at fault is opened first.

    Args:
        config: of the run.
        folder: of the run; nothing is written.
        link: reaches the clients.
        keyholder: replaces options of `[keyholder]`.

    Raises:
        PerennialError: config, data or model do not hold what they promise.
    """
    seed_adapter(derive(config.run.seed, "adapter"))
    model: Model = check.build(config, "model")
    place(model, config.train)
    splits = check.build(config, "data").read()
    domains = stream(splits, config.domains, causal=not model.labels_needed)
    need_deal(domains, config.shards, config.run.seed)
    continual: Continual = check.build(config, "continual")
    need_ranks(config, continual, len(domains.domains))
    secure_sum: SecureSum = check.build(config, "secure_sum")
    keyed = secure_sum.scheme is not None
    return partial(
        Room,
        config=config,
        folder=folder,
        link=link,
        model=model,
        stream=domains,
        test=TestRecords(model, domains.splits, config.evaluate.batch_size),
        strategy=check.build(config, "strategy"),
        secure_sum=secure_sum,
        privatizer=check.build(config, "privacy"),
        user=check.build(config, "user_privacy"),
        holder=check.build(config, "keyholder", **keyholder) if keyed else None,
        continual=continual,
    )


def stamp(room: Room) -> str:
    """16 hex digits over what gives the parameters their meaning: shapes alone may agree.

    What may change between two starts of one run is left out: how it is simulated and watched,
    where it lies, and how long and for how many replies a round waits.
    """
    table = room.config.model_dump(
        mode="json",
        exclude={
            "simulation": True,
            "evaluate": True,
            "keyholder": True,
            "update": True,
            "export": True,
            "run": {"folder", "name"},
            "round": {"min_replies", "deadline_s", "retries"},
        },
    )
    return _digest(room, table, len(room.stream.domains))


def descent(room: Room, learnt: int) -> str:
    """16 hex digits over what a run must share with the one it goes on from.

    How it trains, what it promises and where its data lies may change from one domain update to
    the next; base, shapes, labels, and what continual methods in force and strategy keep, may not.

    Args:
        room: the model's labels are those of the domains learnt.
        learnt: number of domains learnt.
    """
    return _digest(room, lasting(room.config), learnt)


def older_descents(room: Room, learnt: int) -> frozenset[str]:
    """What `descent` may have been where it was made of the tables as they are written.

    Releases of such versions stay updatable. Which default methods were in force it does not tell:
    `perennial update` reads that in the release's config before it begins.

    Args:
        room: as for `descent`.
        learnt: number of domains learnt.
    """
    table = room.config.model_dump(mode="json", include=set(LASTING))
    named, tables = table["continual"].get("methods", ()), [table]
    if all(set(method) == {"name"} for method in named):  # it may have left them to the default
        rest = {key: value for key, value in table["continual"].items() if key != "methods"}
        tables.append(table | {"continual": rest})
    return frozenset(_digest(room, each, learnt) for each in tables)


def _digest(room: Room, table: Mapping[str, Any], num_domains: int) -> str:
    domains = [[domain.name, domain.labels] for domain in room.stream.domains[:num_domains]]
    text = json.dumps([table, room.model.manifest.hash, room.model.identity(), domains])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def task(room: Room, state: ServerState, attempt: int, travels: str) -> Task:
    """What the clients are asked in this round.

    Args:
        room: of the run.
        state: before the round.
        attempt: 0, then one more each time the round is tried again.
        travels: hash of what travels up.
    """
    domain = room.stream.domains[state.domain]
    return Task(
        ticket=Ticket(room.folder.name, state.domain, state.round, attempt, travels),
        rounds=room.rounds,
        labels=room.labels(state.domain),
        domain=domain,
        seen=tuple(d.name for d in room.domains(state.domain)),
        manifest=room.model.manifest.hash,
        base=room.model.identity(),
        line=room.line,
    )
