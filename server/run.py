"""A run: the sequence of domain updates, round by round, checkpointed and recorded.

The state that passes from round to round is one value; everything else here is opened once and
only read. A run that is killed at any point goes on from its last checkpoint with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import check
from ..core.config import Config
from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.parts import Continual, Model, SecureSum, Strategy
from ..core.seeds import derive
from ..core.values import Domain, ServerState, Ticket, Vector
from ..core.wire import EVALUATE, FINISH, PARAMS, SUMMARY, TRAIN, Task
from ..data.deals import need_deal
from ..data.stream import Stream, stream
from ..models.place import place
from . import checkpoint, nodes
from .evaluate import TestRecords, of_clients
from .events import EventLog
from .link import Link
from .report import write_report
from .round import Tally, Terms, Verdict, close, collect, mean
from .tensorboard import ScalarLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """All that a run has open; nothing in it changes but the model's weights and the log."""

    config: Config
    folder: Path
    link: Link
    log: EventLog
    model: Model
    stream: Stream
    test: TestRecords
    strategy: Strategy
    secure_sum: SecureSum
    continual: Continual

    def domains(self, upto: int) -> tuple[Domain, ...]:
        """The domains 0..upto."""
        return self.stream.domains[: upto + 1]

    def labels(self, upto: int) -> tuple[str, ...]:
        """All labels of the domains 0..upto, in the order of the head."""
        return tuple(label for domain in self.domains(upto) for label in domain.labels)


def run(link: Link, text: str, folder: Path) -> None:
    """Run, or go on with, the whole sequence of domains of the config in `text`.

    Args:
        link: reaches the clients.
        text: the TOML text.
        folder: the run folder; made if missing. When it holds a checkpoint, the run goes on.

    Raises:
        PerennialError: config, data or model are at fault, or the run cannot go on.
    """
    config = check.read(text)
    # All that can be at fault is opened before anything is written.
    room_with = _open(config, folder, link)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.toml").exists():
        write_atomically(folder / "config.toml", text)
    with (
        ScalarLog(folder / "tensorboard", config.round.rounds) as scalars,
        EventLog(folder / "events.jsonl", also=scalars.add) as log,
    ):
        room = room_with(log=log)
        found = checkpoint.newest(folder / "checkpoints")
        state = _first(room) if found is None else _again(room, *found)
        _domains(room, state)
    write_report(folder)


def _open(config: Config, folder: Path, link: Link) -> partial[Room]:
    torch.manual_seed(derive(config.run.seed, "adapter"))
    model: Model = check.build(config, "model")
    place(model, config.train)
    splits = check.build(config, "data").read()
    domains = stream(splits, config.domains, causal=not model.labels_needed)
    need_deal(domains, config.shards, config.run.seed)
    return partial(
        Room,
        config=config,
        folder=folder,
        link=link,
        model=model,
        stream=domains,
        test=TestRecords(model, domains.splits, config.evaluate.batch_size),
        strategy=check.build(config, "strategy"),
        secure_sum=check.build(config, "secure_sum"),
        continual=check.build(config, "continual"),
    )


def _first(room: Room) -> ServerState:
    table = room.config.round
    there = nodes.wait(room.link.nodes, table.min_replies, table.deadline_s)
    room.model.fit_labels(room.labels(0))
    room.log.emit(
        "run_started",
        run=room.folder.name,
        version=version("perennial"),
        config=room.config.model_dump(mode="json"),
        model={
            "name": room.config.model.name,
            "identity": room.model.identity(),
            "trainable": room.model.manifest.size,
            "tensors": len(room.model.manifest.names),
        },
        domains=[{"name": d.name, "labels": list(d.labels)} for d in room.stream.domains],
        clients=len(there),
    )
    return ServerState(round=0, domain=0, params=room.model.vector())


def _again(room: Room, state: ServerState, stamp: str) -> ServerState:
    fitted = state.domain if state.round else max(state.domain - 1, 0)
    room.model.fit_labels(room.labels(fitted))
    if _stamp(room) != stamp:
        raise RunError(
            f"the checkpoint's stamp must be {_stamp(room)}, a hash of config, base and domains; "
            f"got {stamp}. Resume with the config, data and version that the run was started with."
        )
    room.log.emit("run_resumed", domain=state.domain, round=state.round)
    logger.info("resumed at domain %d, round %d", state.domain, state.round)
    return state


def _stamp(room: Room) -> str:
    """16 hex digits over what gives the parameters their meaning: shapes alone may agree.

    What may change between two starts of one run is left out: how it is simulated and watched,
    where it lies, and how long and for how many replies a round waits.
    """
    domains = [[domain.name, domain.labels] for domain in room.stream.domains]
    table = room.config.model_dump(
        mode="json",
        exclude={
            "simulation": True,
            "evaluate": True,
            "run": {"folder", "name"},
            "round": {"min_replies", "deadline_s", "retries"},
        },
    )
    text = json.dumps([table, room.model.manifest.hash, room.model.identity(), domains])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _domains(room: Room, state: ServerState) -> None:
    started = time.monotonic()
    for index in range(state.domain, len(room.stream.domains)):
        state = _domain(room, state, index)
    _save_adapter(room, state.params, room.folder / "adapter")
    room.log.emit(
        "run_finished",
        adapter_hash=adapter_hash(state.params),
        seconds=time.monotonic() - started,
    )


def adapter_hash(params: Vector) -> str:
    """16 hex digits over the bytes of a parameter vector."""
    return hashlib.sha256(np.ascontiguousarray(params, "<f4").tobytes()).hexdigest()[:16]


def _domain(room: Room, state: ServerState, index: int) -> ServerState:
    started = time.monotonic()
    domain, table = room.stream.domains[index], room.config.round
    if not state.round:
        state = _begin(room, state, index)
    else:
        room.model.fit_labels(room.labels(index))
    room.log.emit("domain_started", domain=index, name=domain.name, labels=len(room.labels(index)))
    while state.round < table.rounds:
        state = _round(room, state)
        every = room.config.evaluate.every
        if state.round == table.rounds or (every and state.round % every == 0):
            _evaluate(room, state)
        checkpoint.save(room.folder / "checkpoints", state, _stamp(room))
    state = _finish(room, state)
    _save_adapter(room, state.params, room.folder / "adapters" / _folder_of(index, domain.name))
    room.log.emit(
        "domain_finished", domain=index, name=domain.name, seconds=time.monotonic() - started
    )
    state = replace(state, round=0, domain=index + 1)
    checkpoint.save(room.folder / "checkpoints", state, _stamp(room))
    write_report(room.folder)
    return state


def _folder_of(index: int, name: str) -> str:
    """The name of a domain's adapter folder: `name` comes from the data and may be anything."""
    # 48 letters are at most 192 bytes; file systems allow 255.
    safe = re.sub(r"[^\w .-]", "_", name)[:48].rstrip(" .")
    return f"{index:02d}-{safe}"


def _begin(room: Room, state: ServerState, index: int) -> ServerState:
    room.model.load(state.params)
    room.model.fit_labels(room.labels(index))
    params = room.model.vector()
    return replace(state, params=params, slots=room.strategy.init(params))


def _task(room: Room, state: ServerState, attempt: int, travels: str) -> Task:
    domain = room.stream.domains[state.domain]
    return Task(
        ticket=Ticket(room.folder.name, state.domain, state.round, attempt, travels),
        rounds=room.config.round.rounds,
        labels=room.labels(state.domain),
        domain=domain,
        seen=tuple(d.name for d in room.domains(state.domain)),
        manifest=room.model.manifest.hash,
        base=room.model.identity(),
    )


def _round(room: Room, state: ServerState) -> ServerState:
    manifest = room.model.manifest
    travels = room.strategy.trainable(manifest, state.round)
    up = manifest.only(travels)
    tally, terms = _asked(room, state, TRAIN, up.hash, up.size)
    after = close(state, tally, terms, manifest.slices(travels), room.strategy, room.secure_sum)
    if not np.isfinite(after.params).all():
        raise RunError(
            f"the parameters must stay finite; after round {state.round} of domain "
            f"{state.domain} they are not. Lower [train] lr or [round] max_change."
        )
    return after


def _finish(room: Room, state: ServerState) -> ServerState:
    size = room.continual.size(room.model.manifest)
    tally, terms = _asked(room, state, FINISH, f"summary-{size}", size)
    summary = mean(tally, terms.ticket, size, room.secure_sum).astype(np.float32)
    return replace(state, summary=summary)


def _asked(
    room: Room, state: ServerState, kind: str, travels: str, size: int
) -> tuple[Tally, Terms]:
    """Ask a cohort until enough clients answer.

    Raises:
        RunError: too few did, in every attempt.
    """
    table = room.config.round
    for attempt in range(table.retries + 1):
        tally, terms = _attempt(room, state, kind, travels, size, attempt)
        if len(tally.accepted) >= table.min_replies:
            return tally, terms
        reason = f"{len(tally.accepted)} of {len(terms.nodes)} replies count: {tally.rejected}"
        logger.warning("domain %d round %d: %s", state.domain, state.round, reason)
        if kind == TRAIN:
            place_ = {"domain": state.domain, "round": state.round, "attempt": attempt}
            room.log.emit("round_failed", **place_, reason=reason)
    raise RunError(
        f"[round] min_replies = {table.min_replies} replies must count; in "
        f"{table.retries + 1} attempts at round {state.round} of domain {state.domain} too few "
        f"did. Last: {reason}. The clients' logs name the cause; the run can be resumed."
    )


def _attempt(
    room: Room, state: ServerState, kind: str, travels: str, size: int, attempt: int
) -> tuple[Tally, Terms]:
    table, started = room.config.round, time.monotonic()
    # Every client ends the domain; only a cohort trains in a round.
    cohort = table.cohort if kind == TRAIN else 0
    numbers = (state.domain, state.round, attempt)
    asked = nodes.choose(room.link.nodes(), cohort, room.config.run.seed, *numbers)
    task = _task(room, state, attempt, travels)
    terms = Terms(task.ticket, size, frozenset(asked), table.max_change, table.max_weight)
    place_ = {"domain": state.domain, "round": state.round, "attempt": attempt}
    vectors = {PARAMS: state.params, SUMMARY: state.summary}
    down = len(asked) * sum(vector.nbytes for vector in vectors.values())
    told = kind == TRAIN
    if told:
        room.log.emit("round_started", **place_, asked=len(asked), bytes_down=down)
    tally = collect(
        room.link.ask(kind, vectors, task, asked, table.deadline_s),
        terms,
        room.secure_sum,
        single=kind == TRAIN and room.strategy.combine is not None,
        observe=partial(_told, room.log, place_) if told else _untold,
    )
    if told and len(tally.accepted) >= table.min_replies:
        room.log.emit(
            "round_finished",
            **place_,
            accepted=len(tally.accepted),
            rejected=dict(tally.rejected),
            bytes_up=tally.size_bytes,
            bytes_down=down,
            seconds=time.monotonic() - started,
            loss=_or_none(tally.loss),
        )
    return tally, terms


def _told(log: EventLog, place_: dict[str, int], verdict: Verdict) -> None:
    log.emit(
        "reply",
        **place_,
        node=verdict.node,
        ok=not verdict.cause,
        cause=verdict.cause,
        bytes_up=verdict.size_bytes,
        records=_or_none(verdict.weight),
        loss=_or_none(verdict.loss),
        seconds=_or_none(verdict.seconds),
    )


def _untold(verdict: Verdict) -> None:
    if verdict.cause:
        logger.warning("node %d at the end of a domain: %s", verdict.node, verdict.cause)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _evaluate(room: Room, state: ServerState) -> None:
    names = [domain.name for domain in room.domains(state.domain)]
    where = room.config.evaluate.where
    if where == "server":
        scores = room.test.scores(state.params, names)
    else:
        scores = _by_clients(room, state, names)
    room.log.emit(
        "evaluated",
        domain=state.domain,
        round=state.round,
        where=where,
        accuracy={name: scores[name].accuracy for name in names if scores[name].total},
        loss={name: scores[name].mean_loss for name in names if scores[name].total},
        totals={name: scores[name].total for name in names},
    )


def _by_clients(room: Room, state: ServerState, names: Sequence[str]) -> Any:
    task = _task(room, state, 0, "scores")
    asked: Iterable[int] = sorted(room.link.nodes())
    vectors = {PARAMS: state.params, SUMMARY: state.summary}
    replies = room.link.ask(EVALUATE, vectors, task, list(asked), room.config.round.deadline_s)
    most = room.config.round.max_weight
    scores, bad = of_clients(replies, task.ticket, names, most)
    if bad:
        logger.warning("%d replies to an evaluation were left out", bad)
    return scores


def _save_adapter(room: Room, params: Vector, folder: Path) -> None:
    """Write the adapter beside its place first, so that a reader sees all of it or the old one."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    room.model.load(params)
    room.model.save(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
