"""Evaluations of a run: of the adapter with its own head, and of what answers in its place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.parts import Score
from ..core.values import ServerState
from ..core.wire import EVALUATE, HEAD, PARAMS
from .evaluate import of_clients, summed
from .events import read_events
from .link import Question
from .room import Room, task

logger = logging.getLogger(__name__)

MODEL, HEAD_OF_METHOD = "model", "head"
"""Who answers: the model's own head, or that of the continual method."""

# Largest believable number of answers of one client in one domain.
_MOST_ANSWERS = 2.0**20


def due(room: Room, state: ServerState) -> bool:
    """Whether the state after so many rounds is to be evaluated."""
    every = room.config.evaluate.every
    return state.round == room.rounds or bool(every and state.round % every == 0)


def evaluated(room: Room, state: ServerState) -> bool:
    """Whether the log holds what this state scored."""
    return any(
        event["event"] == "evaluated"
        and (event["domain"], event["round"]) == (state.domain, state.round)
        and event.get("by", MODEL) == MODEL
        for event in read_events(room.folder / "events.jsonl")
    )


def evaluate(room: Room, state: ServerState, by: str, *, ahead: bool = False) -> None:
    """Score the domains so far, and say so in the log.

    Args:
        room: of the run.
        state: whose parameters, and whose head, are scored.
        by: `model` or `head`.
        ahead: score later domains too, where no label is needed that was not learnt yet.
    """
    names = [domain.name for domain in room.domains(state.domain)]
    told: dict[str, Any] = {}
    if room.config.evaluate.where == "server":
        scores = _by_server(room, state, by, names)
        later = _known_already(room, state) if ahead else []
        if later:
            found = _by_server(room, state, by, later)
            told["ahead"] = {name: found[name].accuracy for name in later if found[name].total}
    else:
        each = _by_clients(room, state, by, names)
        scores = summed(each, names)
        told["clients"] = _per_client(each, names)
    room.log.emit(
        "evaluated",
        domain=state.domain,
        round=state.round,
        where=room.config.evaluate.where,
        by=by,
        accuracy={name: scores[name].accuracy for name in names if scores[name].total},
        loss={name: scores[name].mean_loss for name in names if scores[name].total},
        totals={name: scores[name].total for name in names},
        **told,
    )


def baseline(room: Room, state: ServerState) -> None:
    """What the adapter scores before it learnt anything, where no label is needed for that."""
    if room.config.evaluate.where != "server" or not _known_already(room, state):
        return
    names = [room.stream.domains[0].name, *_known_already(room, state)]
    scores = room.test.scores(state.params, names)
    room.log.emit(
        "baseline", accuracy={name: scores[name].accuracy for name in names if scores[name].total}
    )


def _known_already(room: Room, state: ServerState) -> list[str]:
    """Later domains without labels of their own, whose answers a causal model may know."""
    later = room.stream.domains[state.domain + 1 :]
    return [domain.name for domain in later if not domain.labels]


def _by_server(room: Room, state: ServerState, by: str, names: Sequence[str]) -> dict[str, Score]:
    if by == MODEL or room.continual.answer is None:
        return room.test.scores(state.params, names)
    room.model.load(state.params)
    answer = room.continual.answer(state.head, room.model, room.labels(state.domain))
    return room.test.answered(answer, names)


def _by_clients(
    room: Room, state: ServerState, by: str, names: Sequence[str]
) -> dict[int, list[Score]]:
    asking = task(room, state, 0, f"scores-{by}")
    asked: Iterable[int] = sorted(room.link.nodes())
    head = state.head if by == HEAD_OF_METHOD else state.head[:0]
    question = Question(EVALUATE, asking, {PARAMS: state.params, HEAD: head})
    replies = room.link.ask(question, list(asked), room.config.round.deadline_s)
    scores, bad = of_clients(replies, asking.ticket, names, _MOST_ANSWERS)
    if bad:
        logger.warning("%d replies to an evaluation were left out", bad)
    return scores


def _per_client(
    scores: Mapping[int, Sequence[Score]], names: Sequence[str]
) -> dict[str, dict[str, list[int]]]:
    return {
        str(node): {
            name: [score.correct, score.total]
            for name, score in zip(names, found, strict=True)
            if score.total
        }
        for node, found in scores.items()
    }
