"""One exchange with the clients: a cohort is asked until enough of them answer."""

from __future__ import annotations

import logging
import math
import time
from functools import partial

from ..core.errors import RunError
from ..core.values import ServerState
from ..core.wire import PARAMS, SUMMARY, TRAIN
from . import nodes
from .events import EventLog
from .room import Room, task
from .round import Tally, Terms, Verdict, collect

logger = logging.getLogger(__name__)


def exchange(
    room: Room, state: ServerState, kind: str, travels: str, size: int
) -> tuple[Tally, Terms]:
    """The tally of a round in which enough clients answered, and the terms they answered to.

    Args:
        room: of the run.
        state: before the round.
        kind: `train`, or `train.finish`, which every client is asked.
        travels: hash of what travels up.
        size: number of values that travel up.

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
    asking = task(room, state, attempt, travels)
    terms = Terms(asking.ticket, size, frozenset(asked), table.max_change, table.max_weight)
    place_ = {"domain": state.domain, "round": state.round, "attempt": attempt}
    vectors = {PARAMS: state.params, SUMMARY: state.summary}
    down = len(asked) * sum(vector.nbytes for vector in vectors.values())
    told = kind == TRAIN
    if told:
        room.log.emit("round_started", **place_, asked=len(asked), bytes_down=down)
    tally = collect(
        room.link.ask(kind, vectors, asking, asked, table.deadline_s),
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
