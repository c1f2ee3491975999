"""Coordinate-wise median: one faulty or hostile client cannot carry the mean away.

Yin et al. 2018 (arXiv:1803.01498), Option I. It needs each client's own update, so the config
refuses it together with an encrypted sum. Weights are ignored, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from ..core.parts import Strategy
from ..core.values import Update, Vector
from . import fedavg


def build(*, server_lr: Annotated[float, Field(gt=0.0)] = 1.0) -> Strategy:
    """The strategy that moves by the median change of every value.

    Args:
        server_lr: step size on the median change, > 0.

    Example:
        >>> updates = [Update(np.full(1, x, np.float32), 1.0) for x in (1.0, 2.0, 900.0)]
        >>> build().combine(updates).tolist()
        [2.0]
    """
    rule = fedavg.build(server_lr=server_lr)

    def combine(updates: Sequence[Update]) -> Vector:
        kept = [update.delta for update in updates if update.weight > 0]
        if not kept:
            return np.zeros_like(updates[0].delta)
        return np.median(np.stack(kept), axis=0).astype(np.float32)

    return Strategy(init=rule.init, apply=rule.apply, trainable=rule.trainable, combine=combine)
