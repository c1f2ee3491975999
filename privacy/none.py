"""No privacy for single records: training as it is, spending nothing and promising nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..core.parts import Indices, Privatizer, Tensors
from ..core.values import Spend


def build() -> Privatizer:
    """The privatizer that returns its input: shuffled batches, no clipping, no noise, no spend."""

    def backward(losses: Any, step_size: int, batch_size: int) -> None:
        (losses.sum() / step_size).backward()

    def release(parameters: Tensors, batch_size: int) -> None:
        return None

    def spends(num_records: int, batch_size: int, epochs: int) -> tuple[Spend, ...]:
        return ()

    return Privatizer(
        batches=shuffled,
        attach=lambda module: nullcontext(),
        backward=backward,
        release=release,
        spends=spends,
    )


def shuffled(
    num_records: int, batch_size: int, epochs: int, rng: np.random.Generator
) -> Iterator[Indices]:
    """Each epoch's positions in a new order, cut into batches whose sizes differ by at most 1.

    Equal batches keep every step's gradient equally noisy: a last batch of two records would
    move the adapter as far as a full one.
    """
    if not num_records:
        return
    num_batches = -(-num_records // batch_size)
    for _ in range(epochs):
        yield from np.array_split(rng.permutation(num_records), num_batches)
