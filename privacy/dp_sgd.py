"""DP-SGD: Poisson-sampled steps of clipped per-example gradients with Gaussian noise.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1. The steps themselves are in `steps`; here is
what is promised, who is drawn, and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..core.errors import PrivacyError
from ..core.parts import Ledger, Privatizer, Session, Strata
from ..core.private import EXAMPLE, Batches
from ..core.values import Spend, Vector
from .stream import Stream

MECHANISM = "Gaussian noise on sums of clipped per-example gradients, Poisson sampling"


def build(
    *,
    epsilon: Annotated[float, Field(gt=0.0)],
    delta: Annotated[float, Field(gt=0.0, lt=1.0)],
    noise_multiplier: Annotated[float, Field(ge=1e-3, le=1e6)],
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)],
    clip: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0,
    replay_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0,
    micro_batch: Annotated[int, Field(ge=1)] = 128,
    route: Literal["activations", "opacus"] = "activations",
    updates: Annotated[int, Field(ge=0)] = 0,
) -> Privatizer:
    """DP-SGD, private to one record wherever it is used.

    Args:
        epsilon: target that the ledger never crosses.
        delta: at which epsilon is said; below 1 / number of records.
        noise_multiplier: standard deviation of the noise over the clip.
        sample_rate: probability of a record of the new domain to be in a step.
        clip: largest L2 norm of one record's gradient.
        replay_rate: likewise of a replayed record; 0 for `sample_rate`.
        micro_batch: most records in one backward pass.
        route: how gradients per example are found: `activations` for linears alone, fastest;
            `opacus` for layers of any kind.
        updates: domain updates planned for the model's life, for the planner; 0 for the data's.
    """
    replay_rate = replay_rate or sample_rate
    rates = (sample_rate, replay_rate)
    terms = {
        "mechanism": MECHANISM,
        "epsilon": epsilon,
        "delta": delta,
        "clip": clip,
        "noise_multiplier": noise_multiplier,
        "sample_rate": sample_rate,
        "replay_rate": replay_rate,
        "updates": updates,
    }

    def num_steps(epochs: int) -> int:
        return max(1, round(epochs / sample_rate))

    def batches(strata: Strata, batch_size: int, epochs: int, rng: np.random.Generator) -> Batches:
        return poisson(strata, sample_rate, replay_rate, num_steps(epochs))

    def spends(strata: Strata, epochs: int) -> tuple[Spend, ...]:
        _check_fit(strata, sample_rate, delta)
        return tuple(
            Spend(rates[i >= strata.fresh], noise_multiplier, num_steps(epochs), name)
            for i, (name, size) in enumerate(zip(strata.cohorts, strata.sizes, strict=True))
            if size
        )

    def sum_spends(strata: Strata) -> tuple[Spend, ...]:
        _check_delta(strata, delta)
        pairs = zip(strata.cohorts, strata.sizes, strict=True)
        return tuple(Spend(1.0, noise_multiplier, 1, name) for name, size in pairs if size)

    def session(
        module: Any, parameters: Mapping[str, Any], batch_size: int
    ) -> AbstractContextManager[Session]:
        from . import steps  # torch: reading a config must not load it

        return steps.session(
            module,
            parameters,
            batch_size,
            clip=clip,
            noise_multiplier=noise_multiplier,
            route=route,
        )

    def summed(rows: Iterable[Vector], clip: float) -> Vector:
        from . import steps

        return steps.noisy_sum(rows, clip, noise_multiplier=noise_multiplier)

    def ledger(folder: Path, client: str) -> Ledger:
        from .ledger import open_ledger

        return open_ledger(folder, client, unit=EXAMPLE, epsilon=epsilon, delta=delta)

    return Privatizer(
        unit=EXAMPLE,
        terms=MappingProxyType(terms),
        largest_part=micro_batch,
        batches=batches,
        session=session,
        steps=num_steps,
        spends=spends,
        summed=summed,
        sum_spends=sum_spends,
        ledger=ledger,
    )


def _check_fit(strata: Strata, sample_rate: float, delta: float) -> None:
    if not len(strata):
        return
    _check_delta(strata, delta)
    needed, held = math.ceil(1.0 / sample_rate), strata.sizes[0]
    if held < needed:
        raise PrivacyError(
            f"a sample rate of {sample_rate:g} needs at least {needed} records, one a step; "
            f"{strata.cohorts[0]!r} has {held}. Raise the sample rate, or bring more records."
        )


def _check_delta(strata: Strata, delta: float) -> None:
    if len(strata) and delta > 1.0 / len(strata):
        raise PrivacyError(
            f"delta must be at most 1 / number of records, 1/{len(strata)}; got {delta:g}: a "
            "larger one allows to publish a record as it is. Lower delta."
        )


def poisson(strata: Strata, sample_rate: float, replay_rate: float, steps: int) -> Batches:
    """Positions of each step: every record by itself with its cohort's rate, maybe none.

    Args:
        strata: the records; without any there is no step.
        sample_rate: probability of a record of the first cohort.
        replay_rate: of a record of any other.
        steps: number of steps.
    """
    if not len(strata):
        return
    stream = Stream()
    rates = np.where(strata.of == 0, sample_rate, replay_rate)
    for _ in range(steps):
        yield np.flatnonzero(stream.uniform(len(strata)) < rates)
