"""FFA-LoRA: A is frozen at its common start, so that averaging B is exact.

Sun et al. 2024 (arXiv:2403.12313), section 4: the mean of products B_k A equals the product of
the mean of B_k with A only where A is the same on every client. Half of the LoRA values neither
train nor travel up.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..core.parts import Strategy
from ..core.values import Manifest
from . import fedavg


def build(
    *,
    server_lr: Annotated[float, Field(gt=0.0)] = 1.0,
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
) -> Strategy:
    """Federated averaging of everything but the LoRA factors A.

    Args:
        server_lr: step size on the mean change, > 0.
        momentum: share of the last step kept, in [0, 1).

    Example:
        >>> manifest = Manifest(("q.lora_A", "q.lora_B", "head"), ((2, 4), (4, 2), (3,)))
        >>> sorted(build().trainable(manifest, 0))
        ['head', 'q.lora_B']
    """
    rule = fedavg.build(server_lr=server_lr, momentum=momentum)
    return Strategy(init=rule.init, apply=rule.apply, trainable=all_but_a)


def all_but_a(manifest: Manifest, round: int) -> frozenset[str]:
    """Every tensor of the manifest that is not a LoRA factor A."""
    return frozenset(name for name in manifest.names if not name.endswith("lora_A"))
