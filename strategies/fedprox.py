"""FedProx: each client is held near the round's global parameters.

Li et al. 2020 (arXiv:1812.06127), equation 2: the local objective gains (mu / 2) |w - w_t|^2.
Departure: its gradient mu (w - w_t) is added after clipping and noise rather than through the
loss, because under DP-SGD a penalty in the loss changes nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..core.parts import Strategy, Tensors
from . import fedavg


def build(
    *,
    mu: Annotated[float, Field(ge=0.0)] = 0.01,
    server_lr: Annotated[float, Field(gt=0.0)] = 1.0,
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
) -> Strategy:
    """Federated averaging with a proximal pull on the client.

    Args:
        mu: strength of the pull, >= 0; 0 is federated averaging.
        server_lr: step size on the mean change, > 0.
        momentum: share of the last step kept, in [0, 1).

    Example:
        >>> import numpy as np
        >>> pull = build(mu=0.5).pull
        >>> pull({"w": np.array([3.0])}, {"w": np.array([1.0])})["w"].tolist()
        [1.0]
    """
    rule = fedavg.build(server_lr=server_lr, momentum=momentum)

    def pull(parameters: Tensors, anchor: Tensors) -> Tensors:
        return {name: mu * (value - anchor[name]) for name, value in parameters.items()}

    return Strategy(init=rule.init, apply=rule.apply, trainable=rule.trainable, pull=pull)
