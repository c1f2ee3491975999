"""What an attacker may get to see of an update: bare, with noise, in a sum, sealed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core import check, plugins
from ..core.parts import Privatizer, SecureSum
from ..core.sums import Chance, Figures, Pact, Party
from ..core.values import Vector
from .trial import Trial

_NODES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class View:
    """What an attacker sees.

    Attributes:
        key: `bare`, `dp`, `dp_1`, `sum` or `sealed`.
        name: in words.
    """

    key: str
    name: str


SUM = "sum"
"""Key of the view of a sum without noise."""

SEALED = View("sealed", "one sealed body")
"""The view of whoever holds what one client sent, before anything is added."""

_RECORDS = 120  # for which noise is planned where the config promises nothing


def privatizers(trial: Trial) -> dict[View, Privatizer]:
    """No protection, the config's own, and the same at epsilon 1 for one round.

    Where the config promises nothing, the last is DP-SGD as it could be turned on.
    """
    from ..privacy.accounting import noise_for

    own: Privatizer = check.build(trial.config, "privacy")
    options = dict(trial.config.privacy.options)
    found = {View("bare", "no protection"): plugins.load("privacy", "none", {}, Privatizer)}
    name = trial.config.privacy.name
    if own.unit:
        found[View("dp", "noise as configured")] = own
    else:
        name = "dp_sgd"
        options = {"epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.5, "noise_multiplier": 1.0}
    count = len(trial.shard) if own.unit else _RECORDS
    planned: Privatizer = plugins.load("privacy", name, options, Privatizer)
    spends = planned.spends(trial.strata(count), trial.config.train.epochs)
    uses = [(spend.sample_rate, spend.steps) for spend in spends]
    options["noise_multiplier"] = noise_for(1.0, float(options["delta"]), uses)
    found[View("dp_1", "noise for epsilon 1")] = plugins.load("privacy", name, options, Privatizer)
    return found


def sealed(update: Vector) -> Vector:
    """What the server holds of `update` [n] under pairwise masks, taken for numbers [n]."""
    clip = max(float(np.abs(update).max()), 2.0**-20)
    sums: SecureSum = plugins.load("privacy", "masks", {"clip": min(clip, 2.0**20)}, SecureSum)
    with tempfile.TemporaryDirectory() as home:
        parties = {node: Party(node, Path(home) / str(node)) for node in _NODES}
        for party in parties.values():
            party.folder.mkdir()
        cards = {node: sums.join(party, "drill") for node, party in parties.items()}
        session = np.random.default_rng().bytes(16).hex()
        scale = sums.scale(0.0, 1.0)
        pact = Pact("drill", 0, 0, 0, "drill", session, len(update), scale, "")
        notes = sums.pair(pact, cards)
        chance = Chance(np.random.default_rng())
        first = _NODES[0]
        body = sums.seal(update, Figures(1.0), pact, notes[first], parties[first], chance)
    # Behind the header come packed words; their last bytes are masked values without exception.
    words = np.frombuffer(body[len(body) % 2 :], "<i2")
    return np.resize(words[::-1], len(update)).astype(np.float32)
