"""One exchange with the clients: a cohort is asked until enough of them answer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from ..core.errors import BudgetError, RefusedError, RunError
from ..core.log import placed
from ..core.sums import Opened, Pact
from ..core.values import ServerState, Update
from ..core.wire import PARAMS, SUMMARY, TRAIN, Task
from . import nodes, pending
from .events import EventLog
from .link import Question
from .pending import Pending
from .room import Room, task
from .round import ASTRAY, Tally, Terms, Verdict, collect, opened_sum
from .sums import Agreement, agree, quorum, unmask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round gave.

    Attributes:
        opened: the sum; of no values where nothing travelled or single updates are kept.
        updates: single updates by node, where the strategy needs them.
        lost: why the round is given up; empty where it is not. A key holder opens a round once,
            so that a sum with garbage in it cannot be replaced by another one.
        attempt: which attempt this is the outcome of.
        counted: nodes whose answers are in it.
        size_bytes: of their sealed bodies.
        rejected: how many answers were left out, by cause.
    """

    opened: Opened
    updates: Mapping[int, Update] = field(default_factory=dict)
    lost: str = ""
    attempt: int = 0
    counted: tuple[int, ...] = ()
    size_bytes: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that gave nothing.

    Attributes:
        reason: for the log.
        again: who is asked next; empty for a new choice.
    """

    reason: str
    again: tuple[int, ...] = ()


def exchange(
    room: Room,
    state: ServerState,
    kind: str,
    travels: str,
    size: int,
    counted: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
) -> Outcome:
    """What the clients gave, once enough of them answered.

    Args:
        room: of the run.
        state: before the round.
        kind: `train`; or what every client is asked at a domain's end.
        travels: hash of what travels up.
        size: number of values that travel up.
        counted: by node, the domains at whose end it was counted.

    Raises:
        RunError: too few answered, in every attempt.
    """
    with placed(domain=state.domain, round=state.round):
        return _exchanged(room, state, kind, travels, size, counted)


def _exchanged(
    room: Room,
    state: ServerState,
    kind: str,
    travels: str,
    size: int,
    counted: Mapping[int, tuple[int, ...]],
) -> Outcome:
    waiting = _waiting(room, state, travels)
    attempt, left = 0, room.config.round.retries
    again: tuple[int, ...] = ()
    while True:
        if waiting is not None:
            found, waiting = _resumed(room, waiting, kind), None
        else:
            found = _attempt(room, state, kind, travels, size, attempt, again, counted)
        if isinstance(found, Outcome):
            return found
        logger.warning("domain %d round %d: %s", state.domain, state.round, found.reason)
        if kind == TRAIN:
            place_ = {"domain": state.domain, "round": state.round, "attempt": attempt}
            room.log.emit("round_failed", **place_, reason=found.reason)
        # Those who answered are asked again at no cost: their updates are on their disks.
        left -= 0 if found.again else 1
        if left < 0:
            raise RunError(
                f"[round] min_replies = {quorum(room, size)} replies must count; in {attempt + 1} "
                f"attempts at round {state.round} of domain {state.domain} too few did. Last: "
                f"{found.reason}. {_advice(found.reason)}"
            )
        attempt, again = attempt + 1, found.again


def _advice(reason: str) -> str:
    """What to do about too few replies."""
    if any(words in reason for words in ASTRAY):
        return (
            "Such an update comes of training that went astray: lower [train] lr, or what pulls or "
            "scales its steps, in a new run."
        )
    return (
        "The clients' logs, in a simulation the run's log.txt, name the cause; the run can be "
        "resumed."
    )


def _attempt(
    room: Room,
    state: ServerState,
    kind: str,
    travels: str,
    size: int,
    attempt: int,
    again: tuple[int, ...],
    counted_before: Mapping[int, tuple[int, ...]],
) -> Outcome | Failure:
    started, told = time.monotonic(), kind == TRAIN
    # Every client ends the domain; only a cohort trains in a round.
    cohort = room.config.round.cohort if told else 0
    numbers = (state.domain, state.round, attempt)
    asked = again or nodes.choose(room.link.nodes(), cohort, room.config.run.seed, *numbers)
    asking = task(room, state, attempt, travels)
    peak = float(state.peaks[min(state.round, 1)]) if told else 0.0
    try:
        agreement = agree(room, asking, kind, peak, size, asked)
    except RunError as error:
        return Failure(str(error))
    tally, figures = _collect(room, state, kind, asking, agreement, counted_before)
    figures["attempt_seconds"] = time.monotonic() - started
    counted = [verdict.node for verdict in tally.accepted]
    asked_count = len(agreement.nodes)
    if len(counted) < quorum(room, size):
        _need_budget(tally, asking)
        return Failure(f"{len(counted)} of {asked_count} replies count: {tally.rejected}")
    if size and not room.secure_sum.drops and len(counted) < asked_count:
        return Failure(
            f"{asked_count - len(counted)} of {asked_count} clients left a sum that cannot lose "
            f"any: {tally.rejected}; the others are asked again",
            tuple(counted),
        )
    try:
        asks, reveals = unmask(room, asking, agreement, counted) if size else ({}, {})
    except RunError as error:
        return Failure(str(error))
    waiting = Pending(
        pact=agreement.pact,
        asked=asked_count,
        verdicts=tuple(tally.verdicts),
        asks=asks,
        reveals=reveals,
        body=b"" if tally.total is None else room.secure_sum.close(tally.total, agreement.pact),
        figures=figures,
    )
    return _open(room, waiting, tally, kind)


def _need_budget(tally: Tally, asking: Task) -> None:
    """Stop where clients refused because what they promised is spent: they will do so again."""
    spent = sum(n for cause, n in tally.rejected.items() if cause.endswith(BudgetError.__name__))
    if not spent:
        return
    at = asking.ticket
    raise BudgetError(
        f"{spent} clients refused round {at.round} of domain {at.domain}: it would cross the "
        "epsilon that they promised, and too few others answered. Nothing was trained; the last "
        "checkpoint is kept. `perennial plan FILE` says what more noise, fewer rounds or a smaller "
        "sample rate would leave room for, in a new run."
    )


def _collect(
    room: Room,
    state: ServerState,
    kind: str,
    asking: Task,
    agreement: Agreement,
    counted: Mapping[int, tuple[int, ...]],
) -> tuple[Tally, dict[str, float]]:
    table, told = room.config.round, kind == TRAIN
    terms = Terms(
        asking.ticket,
        agreement.pact,
        frozenset(agreement.nodes),
        # What a method sums at the end of a domain is no change of the parameters.
        table.max_change if told else math.inf,
        table.max_weight,
    )
    vectors = {PARAMS: state.params, SUMMARY: state.summary}
    down = len(agreement.nodes) * sum(vector.nbytes for vector in vectors.values())
    down += sum(len(note) for note in agreement.notes.values())
    place_ = _place(agreement.pact)
    if told:
        room.log.emit("round_started", **place_, asked=len(agreement.nodes), bytes_down=down)
    question = Question(kind, asking, vectors, agreement.pact, agreement.notes, counted)
    tally = collect(
        room.link.ask(question, agreement.nodes, table.deadline_s),
        terms,
        room.secure_sum,
        single=told and room.strategy.combine is not None,
        observe=partial(_told if told else _ended, room.log, place_),
    )
    for verdict in tally.verdicts:
        if verdict.cause:  # it may have lost its folder: let it join again
            room.cards.pop(verdict.node, None)
    return tally, {"bytes_down": down, "add_seconds": tally.add_seconds}


def _place(pact: Pact) -> dict[str, int]:
    return {"domain": pact.domain, "round": pact.round, "attempt": pact.attempt}


def _waiting(room: Room, state: ServerState, travels: str) -> Pending | None:
    if room.holder is None:
        return None
    run = f"{room.folder.name}-{room.token}"
    return pending.load(room.folder, run, state.domain, state.round, travels)


def _resumed(room: Room, waiting: Pending, kind: str) -> Outcome | Failure:
    """The outcome of a sum that was closed by an earlier process of this run."""
    pact = waiting.pact
    assert room.holder is not None
    if pact.key != room.holder.fingerprint():
        pending.drop(room.folder)
        return Failure("a sum was closed under a key that is no longer in force")
    place_ = _place(pact)
    if kind == TRAIN:
        down = int(waiting.figures["bytes_down"])
        room.log.emit("round_started", **place_, asked=waiting.asked, bytes_down=down)
        for verdict in waiting.verdicts:
            _told(room.log, place_, verdict)
    return _open(room, waiting, Tally(verdicts=list(waiting.verdicts)), kind)


def _open(room: Room, waiting: Pending, tally: Tally, kind: str) -> Outcome | Failure:
    """The opened sum; where a key holder opens it, what is asked of it is on disk before."""
    started, pact, sums = time.monotonic(), waiting.pact, room.secure_sum
    if not waiting.body:
        opened = Opened(np.zeros(pact.size), tally.weight, tally.loss * tally.weight)
    else:
        content = waiting.body
        if room.holder is not None:
            pending.save(room.folder, waiting)
            try:
                content = room.holder.open(pact, waiting.counted, waiting.body)
            except RefusedError as error:
                pending.drop(room.folder)
                return Failure(str(error))
        try:
            opened = opened_sum(tally, content, pact, sums, waiting.asks, waiting.reveals)
        except ValueError as error:
            if room.holder is None:
                return Failure(str(error))
            nothing = Opened(np.zeros(pact.size), 0.0)
            return Outcome(nothing, lost=str(error), attempt=pact.attempt)
    if room.user.unit and pact.size:
        opened = _noised(room, waiting, opened)
    seconds = time.monotonic() - started
    if kind == TRAIN:
        _tell(room, waiting, tally, opened, seconds)
    return Outcome(
        opened,
        tally.updates,
        attempt=pact.attempt,
        counted=tuple(waiting.counted),
        size_bytes=tally.size_bytes,
        rejected=dict(tally.rejected),
    )


def _noised(room: Room, waiting: Pending, opened: Opened) -> Opened:
    """The sum with the server's noise, where it is the server that adds it."""
    user, sums, pact = room.user, room.secure_sum, waiting.pact
    assert user.noise is not None
    sensitivity = sums.sensitivity(user.noise.clip, pact.size)
    counted = len(waiting.counted)
    room.log.emit(
        "noised",
        **_place(pact),
        manifest=pact.manifest,
        counted=counted,
        sensitivity=sensitivity,
        # Of those who really answered: more shares than were counted on are more noise.
        multiplier=user.multiplier or sums.multiplier(pact.size, counted),
    )
    return replace(opened, total=user.add(opened.total, sensitivity))


def _tell(room: Room, waiting: Pending, tally: Tally, opened: Opened, seconds: float) -> None:
    pact, figures = waiting.pact, waiting.figures
    place_ = _place(pact)
    # A sealed loss that nobody gave is a 0.
    private = bool(room.privatizer.unit or room.user.unit)
    loss = math.nan if private or not opened.weight else opened.loss / opened.weight
    if not room.secure_sum.single_updates:
        room.log.emit(
            "sum_opened",
            **place_,
            counted=len(waiting.counted),
            dropped=waiting.asked - len(waiting.counted),
            revealed=len(waiting.reveals),
            values=pact.size * len(waiting.counted),
            saturated=opened.saturated,
            scale=pact.scale,
            peak=opened.peak,
            key=pact.key,
            bytes_per_value=_bytes_per_value(tally, pact.size),
            seal_seconds=_or_none(_mean_seal(tally)),
            add_seconds=figures["add_seconds"],
            open_seconds=seconds,
        )
    room.log.emit(
        "round_finished",
        **place_,
        accepted=len(waiting.counted),
        rejected=dict(tally.rejected),
        bytes_up=tally.size_bytes,
        bytes_down=int(figures["bytes_down"]),
        seconds=figures["attempt_seconds"] + seconds,
        loss=_or_none(loss),
    )


def _bytes_per_value(tally: Tally, size: int) -> float:
    bodies = [verdict.size_bytes for verdict in tally.accepted]
    return sum(bodies) / len(bodies) / size if bodies and size else 0.0


def _mean_seal(tally: Tally) -> float:
    told = [v.seal_seconds for v in tally.accepted if math.isfinite(v.seal_seconds)]
    return sum(told) / len(told) if told else math.nan


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
        epsilon=_by_unit(verdict).get("epsilon", {}),
        releases=_by_unit(verdict).get("releases", {}),
    )


def _ended(log: EventLog, place_: dict[str, int], verdict: Verdict) -> None:
    if verdict.cause:
        logger.warning("node %d at the end of a domain: %s", verdict.node, verdict.cause)
    elif verdict.privacy:
        log.emit("statement", domain=place_["domain"], node=verdict.node, **_by_unit(verdict))


def _by_unit(verdict: Verdict) -> dict[str, dict[str, float]]:
    """What the node's ledger says: word -> unit -> number."""
    found: dict[str, dict[str, float]] = {}
    for name, value in verdict.privacy.items():
        word, unit = name.split(".")
        found.setdefault(word, {})[unit] = value
    return found


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
