"""Privacy for users by a trusted server: clients keep a clip, the server adds noise to the sum.

The gaussian mechanism on the sum of one round's updates (McMahan, Ramage, Talwar and Zhang 2018,
"Learning Differentially Private Recurrent Language Models", arXiv:1710.06963), with uniform
weights and without sampling of clients. Server and key holder see the sum before its noise: what
is private is the model, and all that is made of it. Where they are not trusted with that,
`distributed` is.

A user is all that one client holds; neighbours are sums with one client's update and without.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..core.errors import PrivacyError
from ..core.parts import Ledger, UserPrivatizer
from ..core.private import USER, Noise
from .shares import cut_to_norm
from .stream import Stream

# Of the noise's standard deviation. What a float64 holds below it could tell the sum from the
# noise (Mironov 2012, CCS, "On significance of the least significant bits").
_GRID = 2.0**-20


def build(
    *,
    epsilon: Annotated[float, Field(gt=0.0)],
    delta: Annotated[float, Field(gt=0.0, lt=1.0)],
    clip: Annotated[float, Field(ge=1e-6, le=1e6)],
    noise_multiplier: Annotated[float, Field(ge=1e-3, le=1e6)],
    updates: Annotated[int, Field(ge=0)] = 0,
) -> UserPrivatizer:
    """Gaussian noise by the server on each sum, of noise_multiplier times its sensitivity.

    Void where weights are not 1, where anything else of a client's data is sent, and towards
    whoever sees a sum before its noise.

    Args:
        epsilon: that no client ever passes.
        delta: at which epsilon is said; well below one over the number of clients.
        clip: largest L2 norm of one client's update.
        noise_multiplier: standard deviation of the noise over the sensitivity of the sum.
        updates: domain updates that are planned; 0 where that is open.
    """

    def add(total: npt.NDArray[np.float64], sensitivity: float) -> npt.NDArray[np.float64]:
        return _noised(total, noise_multiplier * sensitivity)

    def ledger(folder: Path, client: str) -> Ledger:
        from .ledger import open_ledger

        return open_ledger(folder, client, unit=USER, epsilon=epsilon, delta=delta)

    return UserPrivatizer(
        unit=USER,
        terms=MappingProxyType(
            {
                "mechanism": "gaussian noise on the sum of clipped updates",
                "where": "server",
                "epsilon": epsilon,
                "delta": delta,
                "clip": clip,
                "noise_multiplier": noise_multiplier,
                "clients": 1,
                "updates": updates,
            }
        ),
        noise=Noise(clip, 0.0, 1),
        bound=lambda update: cut_to_norm(update, clip),
        multiplier=noise_multiplier,
        add=add,
        ledger=ledger,
    )


def _noised(total: npt.NDArray[np.float64], deviation: float) -> npt.NDArray[np.float64]:
    """`total` [n] with fresh noise, each value a multiple of a power of two.

    Raises:
        PrivacyError: the sum is not finite, or nothing is known of what one client adds to it.
    """
    if not 0.0 < deviation < math.inf:
        raise PrivacyError(f"noise must have a deviation that is finite and above 0; {deviation}")
    if not np.isfinite(total).all():
        raise PrivacyError("a sum must be finite to be noised; this one is not, and is not used")
    step = 2.0 ** math.floor(math.log2(deviation * _GRID))
    noised: npt.NDArray[np.float64] = total + deviation * Stream().normal(total.size)
    return np.rint(noised / step) * step
