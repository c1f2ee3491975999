"""Whether an exported graph may be used in the place of the float32 graph that it was made of.

All is measured on the files themselves and on held-out records. The interval of a loss is that of
Agresti and Min 2005 (doi:10.1002/sim.1781) for paired answers, which holds where few differ.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.config import Export as Limits
from ..core.parts import Bars
from ..core.values import Vector
from ..server.gate import Check
from ..server.units import percent, points
from .session import scores

_WIDE = 1.959964  # standard deviations of a 95 % interval
_TURNS, _TIMED = 7, 96  # measurements of CPU time, and texts in each


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a graph, against the float32 graph.

    Attributes:
        size: share of its bytes.
        accuracy: of the graph, 0..1.
        before: of the float32 graph, 0..1.
        loss: points of accuracy lost; below 0 where some were won.
        low: lower end of the loss's 95 % interval.
        high: its upper end.
        agreement: share of equal answers, 0..1.
        changed: share of answers that differ between single texts and random batches, 0..1.
        cpu_1: share of its CPU time, one text at a time.
        cpu_32: the same in batches of 32.
        domains: by domain: records, accuracy of the float32 graph, and of the graph.
        records: how many were asked.
    """

    size: float
    accuracy: float
    before: float
    loss: float
    low: float
    high: float
    agreement: float
    changed: float
    cpu_1: float
    cpu_32: float
    domains: Mapping[str, tuple[int, float, float]]
    records: int

    def pack(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Asked:
    """Held-out records as both graphs are asked.

    Attributes:
        tokens: ids of each text.
        targets: index of each label [n].
        domains: name of each domain.
    """

    tokens: Sequence[Sequence[int]]
    targets: npt.NDArray[np.intp]
    domains: Sequence[str]


def bars_of(bars: Bars, limits: Limits) -> Bars:
    """The bars of a profile, each overruled by what the config says."""
    given = {
        "size": limits.max_size,
        "loss": limits.max_loss,
        "domain_loss": limits.max_domain_loss,
        "agreement": limits.min_agreement,
        "changed": limits.max_changed,
        "cpu_1": limits.max_cpu_1,
        "cpu_32": limits.max_cpu_32,
    }
    return Bars(**{**asdict(bars), **{k: v for k, v in given.items() if v is not None}})


def measure(
    session: Any, reference: Any, sizes: tuple[int, int], asked: Asked, seed: int = 0
) -> Figures:
    """What `session` does with held-out records, against the float32 graph.

    Args:
        session: of the graph.
        reference: of the float32 graph.
        sizes: bytes of both, in this order.
        asked: one record or more.
        seed: of the random batches.
    """
    single = [[i] for i in range(len(asked.tokens))]
    mine = scores(session, asked.tokens, 32).argmax(1)
    theirs = scores(reference, asked.tokens, 32).argmax(1)
    alone = scores(session, asked.tokens, 1, single).argmax(1)
    order = np.random.default_rng(seed).permutation(len(asked.tokens))
    mixed = [order[i : i + 32].tolist() for i in range(0, len(order), 32)]
    among = scores(session, asked.tokens, 32, mixed).argmax(1)
    right, was = mine == asked.targets, theirs == asked.targets
    loss, low, high = interval(int((was & ~right).sum()), int((right & ~was).sum()), len(right))
    names = np.array(asked.domains)
    return Figures(
        size=sizes[0] / sizes[1],
        accuracy=float(right.mean()),
        before=float(was.mean()),
        loss=loss,
        low=low,
        high=high,
        agreement=float((mine == theirs).mean()),
        changed=float((alone != among).mean()),
        cpu_1=cpu_ratio(_asks(session, asked, 1), _asks(reference, asked, 1)),
        cpu_32=cpu_ratio(_asks(session, asked, 32), _asks(reference, asked, 32)),
        domains={
            name: (
                int((names == name).sum()),
                float(was[names == name].mean()),
                float(right[names == name].mean()),
            )
            for name in dict.fromkeys(asked.domains)
        },
        records=len(right),
    )


def interval(lost: int, won: int, count: int) -> tuple[float, float, float]:
    """Points of accuracy lost, and the ends of their 95 % interval.

    Args:
        lost: answers that were right and are wrong.
        won: answers that were wrong and are right.
        count: all answers.
    """
    b, c, n = lost + 0.5, won + 0.5, count + 2.0
    spread = _WIDE * math.sqrt(max(b + c - (b - c) ** 2 / n, 0.0)) / n
    middle = (b - c) / n
    return 100 * (lost - won) / count, 100 * (middle - spread), 100 * (middle + spread)


def cpu_ratio(mine: Callable[[], Any], theirs: Callable[[], Any], turns: int = _TURNS) -> float:
    """Median over turns of the CPU time of `mine` in that of `theirs`, taking turns."""
    ratios = []
    mine(), theirs()  # first calls allocate
    for _ in range(turns):
        start = time.process_time()
        mine()
        between = time.process_time()
        theirs()
        ratios.append((between - start) / max(time.process_time() - between, 1e-9))
    return statistics.median(ratios)


def judge(found: Figures, bars: Bars, *, sure: bool) -> list[Check]:
    """Each condition with its figure; one record is never too much to lose.

    Args:
        found: as measured.
        bars: what must be kept.
        sure: whether the upper end of the loss's interval must keep its bar.
    """
    record = 100.0 / found.records
    span = f"95 % interval {points(found.low / 100)} to {points(found.high / 100)}"
    said = f"{percent(found.before)} to {percent(found.accuracy)}, {span}"
    name, count, worst = _worst(found)
    checks = [
        _most("size", found.size, bars.size),
        Check(
            "accuracy",
            f"{said}; may lose {points(bars.loss / 100)}",
            found.loss <= max(bars.loss, record) + 1e-9,
        ),
        Check(
            "worst domain",
            f"{name} lost {points(worst / 100)} of {count} records; may lose "
            f"{points(bars.domain_loss / 100)}",
            worst <= max(bars.domain_loss, 100.0 / count) + 1e-9,
        ),
        _agreed(found, bars.agreement, sure=sure),
        Check(
            "stability",
            f"{100 * found.changed:.2f} % of the answers depend on the batch; at most "
            f"{100 * bars.changed:.2f} %",
            100 * found.changed <= max(100 * bars.changed, record) + 1e-9,
        ),
        _most("CPU time, single texts", found.cpu_1, bars.cpu_1),
        _most("CPU time, batches of 32", found.cpu_32, bars.cpu_32),
    ]
    if sure:
        words = f"upper end {points(found.high / 100)}; may be {points(bars.loss / 100)}"
        checks.append(Check("accuracy, surely", words, found.high <= bars.loss + 1e-9))
    return checks


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Both ends of the 95 % interval of a share 0..1 of `count` (Wilson 1927)."""
    square = _WIDE**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    spread *= _WIDE / (1 + square / count)
    return max(middle - spread, 0.0), min(middle + spread, 1.0)


def _agreed(found: Figures, least: float, *, sure: bool) -> Check:
    """Whether the agreement may be `least`; of few records one more or less is chance."""
    low, high = share_interval(found.agreement, found.records)
    span = f"95 % interval {percent(low)} to {percent(high)}"
    words = f"{percent(found.agreement)}, {span}; must be {percent(least)} or more"
    return Check("agreement", words, (low if sure else high) >= least - 1e-9)


def _worst(found: Figures) -> tuple[str, int, float]:
    losses = {name: 100 * (was - now) for name, (_, was, now) in found.domains.items()}
    name = max(losses, key=lambda key: losses[key])
    return name, found.domains[name][0], losses[name]


def _most(what: str, share: float, bar: float) -> Check:
    words = f"{percent(share)} of float32; at most {percent(bar)}"
    return Check(what, words, share <= bar + 1e-9)


def _asks(session: Any, asked: Asked, size: int) -> Callable[[], Vector]:
    part = asked.tokens[:: max(1, len(asked.tokens) // _TIMED)][:_TIMED]
    return lambda: scores(session, part, size)
