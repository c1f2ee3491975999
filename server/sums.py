"""One secure sum from the server's side: what is agreed before, what is asked after, the opening.

The server holds no key here and imports nothing that decrypts: it adds bytes and passes notes on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..core.errors import RunError
from ..core.sums import Pact
from ..core.wire import JOIN, REVEAL, TRAIN, Task
from .link import Question
from .room import Room

logger = logging.getLogger(__name__)

# Larger answers to a join or a reveal are no answers: a card has a few hundred bytes.
_LARGEST_NOTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a cohort seals to.

    Attributes:
        pact: of the sum.
        notes: what each node must know, by node.
        nodes: who can take part.
    """

    pact: Pact
    notes: Mapping[int, bytes]
    nodes: tuple[int, ...]


def quorum(room: Room, size: int) -> int:
    """Fewest replies that make a round."""
    fewest = room.config.round.min_replies
    return max(fewest, room.secure_sum.min_clients) if size else fewest


def agree(
    room: Room, task: Task, kind: str, peak: float, size: int, asked: Sequence[int]
) -> Agreement:
    """The pact of a new sum, and the notes for those who can take part.

    Args:
        room: of the run.
        task: of the round.
        kind: `train`; or what is asked at a domain's end, where all weights are 1.
        peak: largest |weight * value| of the last comparable sum; 0 when unknown.
        size: number of values that travel up.
        asked: the cohort.

    Raises:
        RunError: the key holder cannot be reached, or too few clients joined.
    """
    sums, table = room.secure_sum, room.config.round
    if size and sums.capacity and len(asked) > sums.capacity:
        raise RunError(
            f"[secure_sum] capacity = {sums.capacity} must have room for the {len(asked)} clients "
            "that are connected; start fewer, or make keys for more"
        )
    fields = asdict(task.ticket) | {"run": f"{task.ticket.run}-{room.token}"}
    uniform = table.weight == "uniform" or kind != TRAIN
    pact = Pact(
        **fields,
        session=secrets.token_hex(16),
        size=size,
        scale=sums.scale(peak, 1.0 if uniform else table.max_weight) if size else 0.0,
        key=room.holder.fingerprint() if room.holder is not None and size else "",
    )
    if not size or not sums.pairwise:
        return Agreement(pact, {}, tuple(asked))
    _join(room, task, pact, [node for node in asked if node not in room.cards])
    notes = sums.pair(pact, {node: room.cards[node] for node in asked if node in room.cards})
    return Agreement(pact, notes, tuple(node for node in asked if node in notes))


def _join(room: Room, task: Task, pact: Pact, nodes: Sequence[int]) -> None:
    if not nodes:
        return
    question = Question(JOIN, task, pact=pact)
    for reply in room.link.ask(question, nodes, room.config.round.deadline_s):
        if reply.node in nodes and reply.body and len(reply.body) <= _LARGEST_NOTE:
            room.cards[reply.node] = reply.body
        else:
            logger.warning("node %d did not join: %s", reply.node, reply.error or "bad card")


def unmask(
    room: Room, task: Task, agreement: Agreement, counted: Collection[int]
) -> tuple[Mapping[int, bytes], Mapping[int, bytes]]:
    """What had to be asked because clients dropped out, and the answers.

    Raises:
        RunError: not everyone answered; the sum stays closed.
    """
    asks = room.secure_sum.ask(agreement.pact, agreement.notes, counted)
    if not asks:
        return {}, {}
    question = Question(REVEAL, task, pact=agreement.pact, notes=asks)
    reveals: dict[int, bytes] = {}
    for reply in room.link.ask(question, sorted(asks), room.config.round.deadline_s):
        node, body = reply.node, reply.body
        small = node in asks and 0 < len(body) <= _LARGEST_NOTE
        if small and room.secure_sum.answers(agreement.pact, node, asks[node], body):
            reveals[node] = body
        else:
            logger.warning("node %d did not reveal: %s", reply.node, reply.error or "bad answer")
    missing = sorted(set(asks) - set(reveals))
    if missing:
        raise RunError(
            f"{len(missing)} of {len(asks)} neighbours of dropped clients must reveal their "
            f"masks; they did not: nodes {missing[:5]}"
        )
    return asks, reveals
