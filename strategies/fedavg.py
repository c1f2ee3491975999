"""Federated averaging: the server moves by the weighted mean of the clients' changes.

McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, with the server step size and momentum of
Hsu et al. 2019 (arXiv:1909.06335), Algorithm 1. With `server_lr=1, momentum=0` it is plain
averaging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from ..core.parts import Strategy
from ..core.values import Manifest, ServerState, Vector


def build(
    *,
    server_lr: Annotated[float, Field(gt=0.0)] = 1.0,
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
) -> Strategy:
    """The strategy in which every tensor trains and travels in every round.

    Args:
        server_lr: step size on the mean change, > 0; 1 moves to the mean of the clients.
        momentum: share of the last step kept, in [0, 1).

    Example:
        >>> strategy = build()
        >>> state = ServerState(round=0, domain=0, params=np.zeros(2, np.float32))
        >>> strategy.apply(state, np.array([1.0, 2.0], np.float32)).params.tolist()
        [1.0, 2.0]
    """

    def init(params: Vector) -> Mapping[str, Vector]:
        return {"velocity": np.zeros_like(params)} if momentum else {}

    def apply(state: ServerState, delta: Vector) -> ServerState:
        step = delta
        slots = state.slots
        if momentum:
            step = (momentum * slots["velocity"] + delta).astype(np.float32)
            slots = {"velocity": step}
        params = (state.params + np.float32(server_lr) * step).astype(np.float32)
        return replace(state, params=params, slots=slots)

    return Strategy(init=init, apply=apply, trainable=every_tensor)


def every_tensor(manifest: Manifest, round: int) -> frozenset[str]:
    """All tensors of the manifest, whatever the round."""
    return frozenset(manifest.names)
