"""Privacy for users without trust in the server: each client's share of noise is inside its seal.

Clients cut their update, round it to whole numbers and add a share of Skellam noise before it is
masked and encrypted (Agarwal, Kairouz and Liu 2021, arXiv:2110.04995); the shares add up to the
noise of the sum. Nobody ever holds the sum without it, nor one update without its mask. See
`shares` for what is added, `skellam` for what it is worth.

A user is all that one client holds; neighbours are sums with one client's part and without, its
share of noise in both. A client knows its own share: towards one of them `clients` - 1 shares
count, and towards more that collude, as many fewer. A client that is asked for a round again gives
the same share again: two sums of one round that differ by a client have its share of noise alone
between them. With `bfv` the key holder opens a round once; `masks` trust the server in this.

How many shares a sum has, each client sees by its masks: it seals only where it shares one with
`clients` - 1 others. Keys that the server made up are told from clients by pins alone. Without
masks (`bfv`, masks = false) nothing but the key holder's own `min_clients` keeps a sum of fewer
shares from being opened.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from ..core.parts import Ledger, UserPrivatizer
from ..core.private import USER, Noise
from .shares import cut_to_norm


def build(
    *,
    epsilon: Annotated[float, Field(gt=0.0)],
    delta: Annotated[float, Field(gt=0.0, lt=1.0)],
    clip: Annotated[float, Field(ge=1e-6, le=1e6)],
    noise_multiplier: Annotated[float, Field(ge=1e-3, le=1e6)],
    clients: Annotated[int, Field(ge=1)],
    updates: Annotated[int, Field(ge=0)] = 0,
) -> UserPrivatizer:
    """Skellam noise in every client's sealed share, of noise_multiplier times the clip in a sum.

    Void where weights are not 1, where anything else of a client's data is sent, and where fewer
    than `clients` of those that were counted added their share: the noise of dishonest clients
    does not protect the others.

    Args:
        epsilon: that no client ever passes.
        delta: at which epsilon is said; well below one over the number of clients.
        clip: largest L2 norm of one client's update, after rounding too.
        noise_multiplier: standard deviation of the noise in a sum of `clients` shares over clip.
        clients: fewest shares that the promise counts on; sums of more have more noise.
        updates: domain updates that are planned; 0 where that is open.
    """

    def ledger(folder: Path, client: str) -> Ledger:
        from .ledger import open_ledger

        return open_ledger(folder, client, unit=USER, epsilon=epsilon, delta=delta)

    return UserPrivatizer(
        unit=USER,
        terms=MappingProxyType(
            {
                "mechanism": "skellam noise in each client's sealed share of the sum",
                "where": "clients",
                "epsilon": epsilon,
                "delta": delta,
                "clip": clip,
                "noise_multiplier": noise_multiplier,
                "clients": clients,
                "updates": updates,
            }
        ),
        noise=Noise(clip, noise_multiplier, clients),
        bound=lambda update: cut_to_norm(update, clip),
        multiplier=0.0,
        add=lambda total, sensitivity: total,
        ledger=ledger,
    )
