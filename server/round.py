"""One round as a fold over an iterable of replies: each is judged, added as it comes, dropped.

Memory does not grow with the number of clients, unless the strategy needs single updates. A
bad reply is counted under its cause and left out; whether enough came is the caller's to decide.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.log import placed
from ..core.parts import Reply, SecureSum, Strategy
from ..core.private import EXAMPLE, USER
from ..core.sums import Opened, Pact
from ..core.values import ServerState, Ticket, Update, Vector, scatter

logger = logging.getLogger(__name__)

_NOT_FINITE, _TOO_FAR = "not finite", "change out of range"
ASTRAY = (_NOT_FINITE, _TOO_FAR)
"""Why an update is rejected that comes of training gone astray."""

ACCOUNT = tuple(
    f"{word}.{unit}" for word in ("epsilon", "left", "releases") for unit in (EXAMPLE, USER)
)
"""Numbers of a client's ledger that may come with an answer."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a reply must hold to count; all of it the server's own.

    Attributes:
        ticket: the round that is asked.
        pact: of the sum that the replies are added to.
        nodes: who was asked.
        max_change: largest believable |change| of one value.
        max_weight: largest believable number of records of one client.
    """

    ticket: Ticket
    pact: Pact
    nodes: frozenset[int]
    max_change: float
    max_weight: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reply, judged.

    Attributes:
        node: who answered.
        cause: why it is left out; empty when it counts.
        size_bytes: length of the sealed body.
        weight: its weight in the mean; nan where it is sealed.
        loss: mean training loss; nan when it was not given or is sealed.
        seconds: the client's own time; nan when it was not given.
        seal_seconds: the part of it for sealing; nan when it was not given.
        privacy: what its ledger says, such as `epsilon.example`; empty where nothing is promised.
    """

    node: int
    cause: str = ""
    size_bytes: int = 0
    weight: float = 0.0
    loss: float = math.nan
    seconds: float = math.nan
    seal_seconds: float = math.nan
    privacy: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What has been added up so far; `add_seconds` is the server's own time for it."""

    total: Any = None
    weight: float = 0.0
    updates: dict[int, Update] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    add_seconds: float = 0.0

    @property
    def accepted(self) -> list[Verdict]:
        """Verdicts that count, by node: the order of arrival is chance."""
        return sorted((v for v in self.verdicts if not v.cause), key=lambda v: v.node)

    @property
    def rejected(self) -> Mapping[str, int]:
        """Number of replies left out, by cause."""
        causes = [v.cause for v in self.verdicts if v.cause]
        return {cause: causes.count(cause) for cause in sorted(set(causes))}

    @property
    def size_bytes(self) -> int:
        """Bytes of all bodies that came, bad ones too."""
        return sum(verdict.size_bytes for verdict in self.verdicts)

    @property
    def loss(self) -> float:
        """Weighted mean training loss of the accepted; nan when nobody gave one."""
        told = [v for v in self.accepted if v.weight > 0 and math.isfinite(v.loss)]
        weight = sum(v.weight for v in told)
        return sum(v.weight * v.loss for v in told) / weight if weight else math.nan


def collect(
    replies: Iterable[Reply],
    terms: Terms,
    secure_sum: SecureSum,
    *,
    single: bool = False,
    observe: Callable[[Verdict], None] = lambda verdict: None,
) -> Tally:
    """The tally of all replies, in constant memory unless `single`.

    Args:
        replies: consumed one at a time.
        terms: what counts.
        secure_sum: adds the sealed bodies.
        single: keep each update, for a strategy with `combine`.
        observe: called with each verdict as it falls.
    """
    tally = Tally()
    for reply in replies:
        with placed(node=reply.node):
            verdict = judge(reply, terms, secure_sum, tally.answered)
            if not verdict.cause:
                verdict = _add(tally, reply, verdict, terms, secure_sum, single)
        _note(tally, verdict, observe)
    for node in sorted(terms.nodes - {verdict.node for verdict in tally.verdicts}):
        _note(tally, Verdict(node, cause="no reply"), observe)
    return tally


def _note(tally: Tally, verdict: Verdict, observe: Callable[[Verdict], None]) -> None:
    tally.verdicts.append(verdict)
    observe(verdict)


def judge(
    reply: Reply, terms: Terms, secure_sum: SecureSum, answered: Iterable[int] = ()
) -> Verdict:
    """Whether `reply` counts, against the server's own terms and never against other replies."""
    metrics = reply.metrics or {}
    verdict = Verdict(
        reply.node,
        size_bytes=len(reply.body),
        weight=_number(metrics.get("weight")),
        loss=_number(metrics.get("loss")),
        seconds=_number(metrics.get("seconds")),
        seal_seconds=_number(metrics.get("seal_seconds")),
        privacy=_account(metrics),
    )
    return replace(verdict, cause=_cause(reply, verdict, terms, secure_sum, answered))


def _cause(
    reply: Reply, verdict: Verdict, terms: Terms, secure_sum: SecureSum, answered: Iterable[int]
) -> str:
    if reply.node not in terms.nodes:
        return "not asked"
    if reply.node in answered:
        return "answered twice"
    if reply.error:
        return reply.error
    if reply.ticket is None or dict(reply.ticket) != asdict(terms.ticket):
        return "wrong ticket"
    if not secure_sum.single_updates:
        return ""
    if not 0.0 <= verdict.weight <= terms.max_weight:
        return "weight out of range"
    if not verdict.weight.is_integer():  # the sum is exact for whole weights only
        return "weight not whole"
    return _unlike(reply.body, terms, secure_sum)


def _unlike(body: bytes, terms: Terms, secure_sum: SecureSum) -> str:
    try:
        delta = secure_sum.single(body, terms.pact)
    except ValueError:
        return "wrong length"
    if not delta.size:
        return ""
    # One pass each way; a nan makes both comparisons false.
    largest = max(float(delta.max()), -float(delta.min()))
    if largest <= terms.max_change:
        return ""
    return _TOO_FAR if np.isfinite(delta).all() else _NOT_FINITE


def _account(metrics: Mapping[str, Any]) -> dict[str, float]:
    named = {name: _number(metrics.get(name)) for name in ACCOUNT if name in metrics}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number above every float
        return math.nan


def _add(
    tally: Tally,
    reply: Reply,
    verdict: Verdict,
    terms: Terms,
    secure_sum: SecureSum,
    single: bool,
) -> Verdict:
    started = time.perf_counter()
    try:
        if single:
            delta = secure_sum.single(reply.body, terms.pact)
            tally.updates[reply.node] = Update(delta, verdict.weight)
        elif terms.pact.size or secure_sum.single_updates:
            tally.total = secure_sum.add(tally.total, reply.body, verdict.weight, terms.pact)
        elif reply.body:  # nothing travels, so nothing is sealed
            raise ValueError("the body must be empty")
    except ValueError as error:
        logger.warning("node %d: %s", reply.node, error)
        return replace(verdict, cause="malformed body")
    tally.add_seconds += time.perf_counter() - started
    tally.weight += verdict.weight
    tally.answered.add(reply.node)
    return verdict


def opened_sum(
    tally: Tally,
    opened: bytes,
    pact: Pact,
    secure_sum: SecureSum,
    asks: Mapping[int, bytes],
    reveals: Mapping[int, bytes],
) -> Opened:
    """The sum of what was added, with its weight and loss.

    Args:
        tally: of the accepted replies.
        opened: what the key holder gave, or the closed total itself.
        pact: of the sum.
        secure_sum: reads it.
        asks: what was asked of the clients because others dropped out.
        reveals: what they answered.

    Raises:
        ValueError: this is no sum of sealed vectors.
    """
    counted = [verdict.node for verdict in tally.accepted]
    found = secure_sum.result(opened, pact, counted, asks, reveals)
    if not secure_sum.single_updates:
        return found
    return replace(found, weight=tally.weight, loss=tally.loss * tally.weight)


def mean(opened: Opened) -> npt.NDArray[np.float64]:
    """The weighted mean of what was summed, float64 [n]; zero when all weights are zero."""
    return opened.total / opened.weight if opened.weight else np.zeros(opened.total.size)


def close(
    state: ServerState,
    moved: Vector,
    places: list[slice],
    strategy: Strategy,
) -> ServerState:
    """The state after the round: the strategy applied, one round more.

    Args:
        state: before the round.
        moved: mean change of the values that travelled, float32 [m].
        places: where they lie in `state.params`.
        strategy: server arithmetic.
    """
    delta = scatter(np.zeros_like(state.params), places, moved)
    after = strategy.apply(state, delta)
    return replace(after, round=state.round + 1)
