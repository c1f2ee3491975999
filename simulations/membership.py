"""Attack drill, first half: whose records stand behind an update of one round?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.values import Vector
from ..privacy import canaries, scores
from .trial import Trial
from .views import SEALED, SUM, View, privatizers, sealed

Say = Callable[[str], None]

_CLIENTS = 6  # most that a drill adds up
_MOST_VALUES = 100_000  # of an update, that the attacker looks at


@dataclass(frozen=True, slots=True)
class Membership:
    """Who was in: one view.

    Attributes:
        view: of the updates.
        area: under the ROC curve; 0.5 is guessing.
        found: share of the members found while 1 % of the others are taken for members.
        members: how many were asked for; as many others.
        curve: points (false, true positive rate).
    """

    view: View
    area: float
    found: float
    members: int
    curve: Sequence[tuple[float, float]]


def membership(trial: Trial, say: Say, most: int) -> list[Membership]:
    """Who was in: each client's records against as many that no client held; [] for too few.

    The records of the domain are dealt anew, evenly, to the clients and one more that is left
    out; each of them is left out once.

    Args:
        trial: of the config.
        say: gets a line now and then.
        most: records of one client.
    """
    pool = trial.shard + trial.others
    count = max(2, min(trial.config.shards.num_clients, _CLIENTS))
    size = min(most, len(pool) // (count + 1))
    if not size:
        return []
    order = trial.rng("membership").permutation(len(pool))[: size * (count + 1)]
    groups = np.split(order, count + 1)
    trial.model.load(trial.start)
    parameters = {n: p for n, p in trial.model.parameters().items() if n in trial.trainable}
    places = canaries.some_places(parameters, _MOST_VALUES, trial.rng("places"))
    encoded = [trial.model.encode(pool.take(group)) for group in groups]
    say(f"drill: gradients of {len(order)} records")
    known = [canaries.gradients(trial.model, part, parameters, places) for part in encoded]

    updates: dict[View, list[Vector]] = {}
    for view, privatizer in privatizers(trial).items():
        say(f"drill: {count + 1} clients train with {view.name}")
        updates[view] = [
            _at(trial, trial.trained(part, privatizer, trial.config.train), places)
            for part in encoded
        ]
    bare = next(iter(updates.values()))
    updates[View(SUM, f"sum of {count}, no noise")] = []
    updates[SEALED] = [sealed(update) for update in bare]
    return [_scored(view, rows, bare, known) for view, rows in updates.items()]


def _at(trial: Trial, update: Vector, places: Mapping[str, Any]) -> Vector:
    tensors = trial.model.manifest.unpack(update)
    return np.concatenate([tensors[n].reshape(-1)[where] for n, where in places.items()])


def _scored(
    view: View, rows: Sequence[Vector], bare: Sequence[Vector], known: Sequence[Any]
) -> Membership:
    members, others = [], []
    for index in range(len(bare)):
        out = (index + 1) % len(bare)
        if view.key == SUM:  # of all but the one that is left out
            update = np.sum([row for i, row in enumerate(bare) if i != out], axis=0)
        else:
            update = rows[index]
        both = scores.member_scores(update, np.concatenate([known[index], known[out]]))
        members.append(both[: len(known[index])])
        others.append(both[len(known[index]) :])
    inside, outside = np.concatenate(members), np.concatenate(others)
    return Membership(
        view,
        scores.area(inside, outside),
        scores.found_at(inside, outside, 0.01),
        len(inside),
        scores.curve(inside, outside),
    )
