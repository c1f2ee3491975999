"""The two ends of a domain on the server: what it begins with, and what is learnt when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.parts import Lesson
from ..core.values import Records, ServerState
from ..core.wire import FINISH, PEAK, PEAKS, in_units, peak_name, summary_name, summary_parts
from ..data.stream import of_domain
from . import knowledge
from .exchange import Outcome, exchange
from .knowledge import Knowledge
from .room import Room

logger = logging.getLogger(__name__)

FOLDER = "knowledge"
"""Folder, below the run's, of what the server keeps between domains."""


def load(room: Room, domain: int) -> Knowledge:
    """What is known when `domain` begins.

    Raises:
        RunError: it cannot be read.
    """
    return knowledge.load(room.folder / FOLDER, domain, room.line)


def begin(
    room: Room, state: ServerState, known: Knowledge, index: int
) -> tuple[ServerState, Knowledge]:
    """The state and the knowledge with which a domain begins.

    Raises:
        RunError: the continual method has no room for another domain.
    """
    room.model.load(state.params)
    room.model.fit_labels(room.labels(index))
    params, manifest = room.model.vector(), room.model.manifest
    kept, params = room.continual.begin(known.kept, params, manifest, index)
    if kept is not known.kept:
        known = replace(known, kept=kept)
        knowledge.save(room.folder / FOLDER, index, known, room.line)
    state = replace(
        state, params=params, slots=room.strategy.init(params), summary=room.continual.told(kept)
    )
    return state, known


def finish(room: Room, state: ServerState, known: Knowledge) -> tuple[ServerState, Knowledge]:
    """The state and the knowledge at the end of a domain; what was learnt is on disk.

    Raises:
        RunError: what the clients learnt cannot be summed, or not be kept.
    """
    started = time.monotonic()
    size = room.continual.size(room.model.manifest)
    outcome, total = _summed(room, state, known, size)
    room.model.load(state.params)
    lesson = Lesson(
        domain=room.stream.domains[state.domain],
        index=state.domain,
        labels=room.labels(state.domain),
        total=total,
        clients=outcome.opened.weight,
        params=state.params,
        manifest=room.model.manifest,
        model=room.model,
        validation=_validation(room, state),
    )
    kept = room.continual.learn(known.kept, lesson)
    counted = {node: (*known.counted.get(node, ()), state.domain) for node in outcome.counted}
    missing = absent(room.link.nodes(), known, outcome.counted)
    known = Knowledge(kept, {**known.counted, **counted})
    if missing:
        logger.warning(
            "the end of domain %d was learnt without %d clients: %s; what a method can add later, "
            "such as sums of an analytic head, comes at the next end",
            state.domain,
            missing,
            dict(outcome.rejected),
        )
    knowledge.save(room.folder / FOLDER, state.domain + 1, known, room.line)
    room.log.emit(
        "learnt",
        domain=state.domain,
        facts=dict(room.continual.facts(kept)),
        values=size,
        bytes_up=outcome.size_bytes,
        bytes_down=len(outcome.counted) * (state.params.nbytes + state.summary.nbytes),
        clients=len(outcome.counted),
        missing=missing,
        rejected=dict(outcome.rejected),
        seconds=time.monotonic() - started,
    )
    head = np.asarray(room.continual.head(kept), np.float32)
    if not np.isfinite(head).all():
        raise RunError(
            f"what answers after domain {state.domain} must be finite; it is not. The clients' "
            "sums are damaged: look at their logs, and resume the run."
        )
    return replace(state, head=head), known


def absent(nodes: Iterable[int], known: Knowledge, counted: Collection[int]) -> int:
    """How many clients the end of a domain went without.

    Not the rejected answers: where a sum can lose nobody, those who answered are asked again, and
    the last attempt rejects none.

    Args:
        nodes: who is connected.
        known: with whoever an earlier end counted, connected or not.
        counted: whose answers are in the sum.
    """
    return len({*nodes, *known.counted}.difference(counted))


def _summed(
    room: Room, state: ServerState, known: Knowledge, size: int
) -> tuple[Outcome, npt.NDArray[np.float64]]:
    """The outcome of the last exchange of a domain, and the sum in its own units, float64 [m]."""
    lengths, places = room.continual.lengths(room.model.manifest), list[int | None]()
    clip = room.secure_sum.scale(0.0, 1.0) if size else 0.0
    # Users' privacy fixes the scale: how large their values are is not to be asked.
    if clip and not room.user.unit:
        places = _peaks(room, state, known, lengths, clip)
    name = summary_name(size, places)
    outcome = exchange(room, state, FINISH, name, size, known.counted)
    _need_sum(state, outcome)
    total = np.asarray(outcome.opened.total, np.float64)
    if places:
        total = in_units(total, lengths, [unit / clip for unit in summary_parts(name)[1]])
    if not np.isfinite(total).all():
        raise RunError(f"the sum at the end of domain {state.domain} must be finite; it is not")
    return outcome, total


def _peaks(
    room: Room, state: ServerState, known: Knowledge, lengths: tuple[int, ...], clip: float
) -> list[int | None]:
    """The half octave of the largest value of any client, by part; None where all are 0."""
    # As one round later: a key holder opens each round once.
    later, size = replace(state, round=state.round + 1), PEAKS * len(lengths)
    outcome = exchange(room, later, PEAK, peak_name(sum(lengths)), size, known.counted)
    _need_sum(state, outcome)
    marked = (outcome.opened.total > clip / 2).reshape(len(lengths), PEAKS)
    return [int(np.flatnonzero(row)[-1]) if row.any() else None for row in marked]


def _need_sum(state: ServerState, outcome: Outcome) -> None:
    if outcome.lost:
        raise RunError(
            f"what clients learnt in domain {state.domain} cannot be summed: {outcome.lost}. Find "
            "that client, leave it out, and start the domain anew."
        )


def _validation(room: Room, state: ServerState) -> Records:
    """The server's own records for choices; of domains so far."""
    records = room.stream.splits.validation
    return sum((of_domain(records, d.name) for d in room.domains(state.domain)), Records())
