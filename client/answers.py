"""One answer of a client: computed once, kept, sealed for a sum, and sent again as it was."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..core.config import Config
from ..core.errors import RunError
from ..core.parts import SecureSum
from ..core.seeds import derive, generator
from ..core.sums import Chance, Figures
from ..core.values import Ticket, Update, Vector
from ..core.wire import PEAKS, in_units, peaks_of, split
from .parties import Client, Sealing
from .promise import Promise
from .store import Kept

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a client.

    Attributes:
        ticket: the round.
        salt: hash of all that the answer depends on.
        sealing: what the answer is sealed to.
        lengths: of the parts of the answer that have a scale of their own.
        units: what counts as 1 in the sum, by part; none for values as they are.
    """

    ticket: Ticket
    salt: str
    sealing: Sealing
    lengths: tuple[int, ...] = ()
    units: tuple[float, ...] = ()


def answer(
    question: Question,
    client: Client,
    config: Config,
    sums: SecureSum,
    promise: Promise,
    work: Callable[[], Update],
) -> tuple[bytes, dict[str, float]]:
    """The sealed update and the numbers that go with it.

    Args:
        question: one that was answered before gets the same update again, and the same bytes
            where it is for the same sum.
        client: whose disk keeps the answer.
        config: of the run.
        sums: seals.
        promise: decides which numbers may leave.
        work: computes the update; called once a question.
    """
    ticket, salt, sealing = question.ticket, question.salt, question.sealing
    kept = client.store.recall(ticket, salt)
    if kept is None:
        kept = _worked(promise, work)
        if promise.holds:  # sealing may fail, and is tried again at no further charge
            client.store.remember(ticket, salt, kept, sync=True)
    elif kept.body and kept.session == sealing.pact.session:
        logger.info("client %d answers round %s again", client.index, ticket)
        return kept.body, dict(kept.metrics)
    kept = _sealed(question, client, config, sums, promise, kept)
    # In the clear the body is the delta once more.
    stored = replace(kept, body=b"") if sums.single_updates else kept
    client.store.remember(ticket, salt, stored, sync=promise.holds)
    return kept.body, dict(kept.metrics)


def peak(
    question: Question,
    client: Client,
    config: Config,
    sums: SecureSum,
    work: Callable[[], Update],
    promise: Promise,
) -> bytes:
    """In which half octave the largest value of each part of an answer lies, sealed.

    The answer itself is computed and kept for the question that follows.

    Args:
        question: the one that follows, sealed to the sum of this one.
        client: as of `answer`.
        config: as of `answer`.
        sums: seals.
        work: as of `answer`.
        promise: as of `answer`.
    """
    kept = client.store.recall(question.ticket, question.salt)
    if kept is None:
        kept = _worked(promise, work)
        client.store.remember(question.ticket, question.salt, kept, sync=promise.holds)
    if not np.isfinite(kept.delta).all():
        raise RunError(
            "what is learnt at the end of a domain must be finite; it is not. Nothing leaves the "
            "client. Lower [train] lr, or look at its records."
        )
    marked = np.zeros((len(question.lengths), PEAKS), np.float32)
    for part, place in enumerate(peaks_of(kept.delta, question.lengths)):
        if place is not None and kept.weight:
            marked[part, place] = sums.scale(0.0, 1.0)
    # Rounding draws nothing: the mark is a whole number of the largest value that is sent.
    chance = Chance(generator(0, "peak", question.ticket.domain), kept.secret)
    party, pact = question.sealing.party, question.sealing.pact
    return sums.seal(
        marked.ravel(), Figures(min(kept.weight, 1.0)), pact, question.sealing.note, party, chance
    )


def _worked(promise: Promise, work: Callable[[], Update]) -> Kept:
    started = time.perf_counter()
    update = work()
    metrics, loss = dict(update.metrics), math.nan
    if not promise.holds:  # how long it took, and how well, tells about the records
        loss = metrics.get("loss", math.nan)
        metrics["seconds"] = time.perf_counter() - started
    metrics.pop("loss", None)
    delta = promise.user.bound(update.delta)
    return Kept(delta, update.weight, loss, metrics, secret=secrets.token_bytes(32))


def _sealed(
    question: Question,
    client: Client,
    config: Config,
    sums: SecureSum,
    promise: Promise,
    kept: Kept,
) -> Kept:
    ticket, sealing = question.ticket, question.sealing
    metrics, figures = dict(kept.metrics), Figures(kept.weight, kept.loss)
    if not sums.single_updates:  # weight and loss travel inside the seal
        most = _largest_weight(config)
        if kept.weight > most:
            words = "client %d trained on %d records and counts for [round] max_weight = %d"
            logger.warning(words, client.index, kept.weight, most)
        figures = replace(figures, weight=min(kept.weight, most))
    else:
        metrics["weight"] = kept.weight
        metrics |= {"loss": kept.loss} if math.isfinite(kept.loss) else {}
    if not kept.delta.size:
        return replace(kept, metrics=metrics, session=sealing.pact.session)
    started = time.perf_counter()
    seed = derive(config.run.seed, "client", client.index, "domain", ticket.domain)
    body = sums.seal(
        _in_units(kept.delta, question, sums),
        figures,
        sealing.pact,
        sealing.note,
        sealing.party,
        Chance(generator(seed, "rounding", ticket.round), kept.secret),
    )
    if not sums.single_updates and not promise.holds:
        metrics["seal_seconds"] = time.perf_counter() - started
    return replace(kept, metrics=metrics, session=sealing.pact.session, body=body)


def _in_units(delta: Vector, question: Question, sums: SecureSum) -> Vector:
    """`delta` such that a part's unit becomes the largest value that is ever sent."""
    if not question.units:
        return delta
    if len(question.units) != len(question.lengths):
        raise RunError(
            f"a summary of {len(question.lengths)} parts must have as many units; got "
            f"{len(question.units)}. Install the same version at both ends."
        )
    for part, unit in zip(split(delta, question.lengths), question.units, strict=True):
        largest = float(np.abs(part).max(initial=0.0))
        if largest > unit * (1.0 + 1e-6):
            raise RunError(
                f"a summary must keep to the unit that was agreed, {unit:g}; its largest value is "
                f"{largest:g}. This client was not asked how large it is, or not heard. Nothing "
                "is sent; what it learnt counts at the next domain's end."
            )
    most = sums.scale(0.0, 1.0)
    factors = [most / unit if unit else 0.0 for unit in question.units]
    return in_units(delta, question.lengths, factors)


def _largest_weight(config: Config) -> float:
    table = config.round
    return 1.0 if table.weight == "uniform" else float(int(table.max_weight))
