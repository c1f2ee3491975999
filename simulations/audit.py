"""A config's privacy put to the test: per kind of canary, one training that claims epsilon 1.

The noise is planned for just this training at epsilon 1, where bugs show most: under a larger
claim much is allowed, and under a smaller one everything drowns. Whatever a bug does to noise or
clipping, it does at every epsilon. Two departures from the config's own round, neither of which a
promise depends on: at least four epochs, so that a record is drawn four times on average; and a
small learning rate, so that the onlooker knows the gradients that he looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core import check
from ..core.config import Train
from ..core.errors import RunError
from ..core.parts import Privatizer
from ..core.values import Records
from ..privacy import audit, canaries, scores
from ..privacy.audit import Audit, Bound, Kind
from .trial import Trial

CLAIM = 1.0
"""Epsilon that an audited training claims."""

CONFIDENCE = 0.95
"""Chance, at least, that a training that keeps its claim passes."""

_EPOCHS = 4
_RATE = 1e-4
_NORM = 100.0  # of a gradient canary over the clip: a sum that is not clipped shows
_MOST_VALUES = 200_000  # of the gradient, that an onlooker of record canaries keeps
_MOST_KNOWN = 300  # records of the shard whose gradients he takes into account

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Canaries per kind; more of them allow a higher bound."""

    gradient: int
    wrong_label: int


FULL = Sizes(1000, 200)
QUICK = Sizes(400, 100)


def run_audit(trial: Trial, sizes: Sizes, say: Say) -> Audit:
    """The audit of the trial's privatizer by both kinds of canaries.

    Args:
        trial: of the config.
        sizes: numbers of canaries.
        say: gets a line now and then for who waits.

    Raises:
        PrivacyError: a guard of the training refused a step, or no noise reaches the claim.
        RunError: no linear layer trains.
    """
    parts: list[tuple[str, Callable[[], Bound]]] = [
        ("gradient", lambda: _gradient(trial, sizes.gradient)),
        ("wrong_label", lambda: _wrong_label(trial, sizes.wrong_label)),
    ]
    promised = bool(check.build(trial.config, "privacy").unit)
    kinds = []
    for name, find in parts:
        say(f"audit: one training with {name.replace('_', ' ')} canaries")
        bound = find()
        kinds.append(Kind(name, bound, not promised or bound.epsilon <= CLAIM))
    delta = float(check.build(trial.config, "privacy").terms["delta"]) if promised else 0.0
    return Audit(CLAIM if promised else None, delta, CONFIDENCE, tuple(kinds))


def promising(trial: Trial, epsilon: float, epochs: int) -> Privatizer:
    """The config's privatizer, its noise planned for one training at `epsilon`.

    Where the config promises nothing, it is the config's own.

    Args:
        trial: of the config.
        epsilon: of this training.
        epochs: of the training.

    Raises:
        PrivacyError: the records do not fit the promise, or no noise reaches it.
    """
    from ..privacy.accounting import noise_for

    own: Privatizer = check.build(trial.config, "privacy")
    if not own.unit:
        return own
    # Canaries are no records of the client: whether delta and rate fit is asked of the shard.
    spends = own.spends(trial.strata(len(trial.shard)), epochs)
    uses = [(spend.sample_rate, spend.steps) for spend in spends]
    noise = noise_for(epsilon, float(own.terms["delta"]), uses)
    return check.build(trial.config, "privacy", noise_multiplier=noise)  # type: ignore[no-any-return]


def _table(trial: Trial) -> Train:
    table = trial.config.train
    rates = {"lr": min(_RATE, table.lr), "head_lr": min(_RATE, table.head_lr)}
    return table.model_copy(update={"epochs": max(_EPOCHS, table.epochs), **rates})


def _bound(
    trial: Trial, guesses: tuple[npt.NDArray[np.float64], ...], coins: npt.NDArray[np.bool_]
) -> Bound:
    """The bound by the best of several scores; scores and kinds share the chance of an error."""
    own: Privatizer = check.build(trial.config, "privacy")
    delta = float(own.terms["delta"]) if own.unit else 0.0
    confidence = 1.0 - (1.0 - CONFIDENCE) / (2 * len(guesses))
    found = [audit.bound(score, coins, delta, confidence) for score in guesses]
    best = max(found, key=lambda bound: bound.epsilon)
    return replace(best, confidence=1.0 - (1.0 - CONFIDENCE) / 2)


def _gradient(trial: Trial, count: int) -> Bound:
    table, model = _table(trial), trial.model
    trial.model.load(trial.start)
    chosen = canaries.entries(model, trial.trainable, count, trial.rng("entries"))
    if not chosen:
        raise RunError("an audit needs a linear layer that trains; the model has none")
    coins = audit.coins(len(chosen))
    inside = tuple(entry for entry, coin in zip(chosen, coins, strict=True) if coin)
    # What a carrier says does not matter, and a short one costs least.
    short = min(range(len(trial.shard)), key=lambda i: len(trial.shard.texts[i]))
    encoded = model.encode(trial.shard + trial.shard.take([short] * len(inside)))
    privatizer = promising(trial, CLAIM, table.epochs)
    clip = float(privatizer.terms.get("clip", 1.0))
    planted = canaries.PlantedModel(model, len(trial.shard), inside, _NORM * clip)
    seen = canaries.Seen(canaries.places_of(chosen))
    with planted.hooked():
        trial.trained(
            canaries.PlantedRecords(encoded),
            canaries.watched(privatizer, seen, planted.turn),
            table,
            planted,
        )
    return _bound(trial, (scores.gradient_scores(seen.rows),), coins)


def _wrong_label(trial: Trial, count: int) -> Bound:
    table, model = _table(trial), trial.model
    trial.model.load(trial.start)
    wrong = _mislabelled(trial, count)
    coins = audit.coins(len(wrong))
    known = trial.shard.take(np.arange(min(_MOST_KNOWN, len(trial.shard))))
    parameters = {n: p for n, p in model.parameters().items() if n in trial.trainable}
    places = canaries.some_places(parameters, _MOST_VALUES, trial.rng("places"))
    gradients = canaries.gradients(model, model.encode(wrong + known), parameters, places)
    encoded = model.encode(trial.shard + wrong.take(np.flatnonzero(coins)))
    privatizer = promising(trial, CLAIM, table.epochs)
    seen = canaries.Seen(places)
    trial.trained(encoded, canaries.watched(privatizer, seen, lambda: None), table)
    return _bound(trial, scores.record_scores(seen.rows, gradients, len(wrong)), coins)


def _mislabelled(trial: Trial, count: int) -> Records:
    """Real records, those of other domains and clients first, each with a wrong label."""
    pool = trial.rest + trial.others + trial.shard
    front = len(trial.rest) + len(trial.others)
    order = [*trial.rng("pool").permutation(front), *range(front, len(pool))][:count]
    records = pool.take(np.array(order, np.intp))
    wrong = _wrong_targets(trial, records)
    return replace(records, targets=tuple(wrong))


def _wrong_targets(trial: Trial, records: Records) -> Iterator[str]:
    # All labels in turn: directions that few canaries share are told apart best.
    labels = trial.model.labels or tuple(dict.fromkeys(records.targets))
    for index, target in enumerate(records.targets):
        others = [label for label in labels if label != target] or [target]
        yield others[index % len(others)]
