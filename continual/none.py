"""No continual method: each domain is learnt as it comes, and earlier ones may be forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.parts import Continual, Phase, no_tensors
from ..core.values import Records, Vector


def build() -> Continual:
    """The method that remembers nothing, adds nothing and masks nothing."""

    def start(phase: Phase) -> Any:
        return ()

    def dataset(memory: Any, shard: Records) -> Records:
        return shard

    def finish(memory: Any, shard: Records, model: Any, phase: Phase) -> Vector:
        return np.zeros(0, np.float32)

    return Continual(
        start=start,
        dataset=dataset,
        pull=no_tensors,
        mask=no_tensors,
        size=lambda manifest: 0,
        finish=finish,
        private=True,
    )
