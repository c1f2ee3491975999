"""What a model's whole life costs before it begins: noise, epsilon by epsilon, and the choices.

Pure arithmetic over `accounting`. The cohort that pays most is the first: it trains its own
update and, where records are replayed, is used again in every later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, log10, sqrt

from ..core.errors import PrivacyError
from ..core.private import EXAMPLE, USER
from ..core.values import Spend
from .accounting import MAX_NOISE, epsilon, noise_for, rdp_epsilon

QUALITY = "noise in the mean gradient of an update"
"""What `quality` gives: in clips over the number of records, lower is better."""

MOST_STEPS = 1_000_000
"""Noisy steps of one cohort over a model's whole life, at most."""

EXACT_STEPS = 100_000
"""Above so many, Renyi's bound stands in: it takes a little more noise, and no minutes."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The uses of records that are planned, and the promise that they keep.

    Attributes:
        unit: `example` or `user`; all that a user holds is used in each round, whole.
        target: epsilon at the end of life, > 0.
        delta: in (0, 1).
        updates: domain updates of the model's life, >= 1.
        rounds: of an update, >= 0.
        epochs: of a round, >= 1; 1 for users.
        sample_rate: probability of a new record to be in a step; 1 for users.
        replay_rate: likewise of a record of earlier updates; 0 where nothing is replayed.
        sums: noisy sums over the new records, or over all that a user holds, at the end of an
            update (statistics that steer later training), under the same noise.
        mechanism: of the noise.
    """

    unit: str
    target: float
    delta: float
    updates: int
    rounds: int
    epochs: int
    sample_rate: float
    replay_rate: float
    sums: int = 0
    mechanism: str = "gaussian"

    @property
    def steps(self) -> int:
        """Noisy steps of one round."""
        return max(1, round(self.epochs / self.sample_rate))

    def uses(self, updates: int) -> list[tuple[float, int]]:
        """(sample rate, steps) that the first cohort has paid after so many updates."""
        steps, again = self.rounds * self.steps, updates - 1 if self.replay_rate else 0
        uses = [(self.sample_rate, steps)] if steps else []
        if again and steps:
            uses.append((self.replay_rate, steps * again))
        if self.sums:
            # A record is new once; what a user holds is in the sums of each update.
            uses.append((1.0, self.sums * (updates if self.unit == USER else 1)))
        return uses

    def spends(self, updates: int, noise: float) -> list[Spend]:
        """The same as spends under `noise`."""
        return [Spend(q, noise, n, "first", self.mechanism) for q, n in self.uses(updates)]

    def noise(self) -> float:
        """The smallest noise multiplier that keeps the promise over the whole life.

        Raises:
            PrivacyError: no noise does, the promise is out of range, or there are too many steps.
        """
        if self.total() > MOST_STEPS:
            raise PrivacyError(
                f"the planned steps of a model's life must be at most {MOST_STEPS:,}; got "
                f"{self.total():,}. Write fewer epochs, rounds or updates, or a larger sample rate"
            )
        if self.total() <= EXACT_STEPS:
            return noise_for(self.target, self.delta, self.uses(self.updates), self.mechanism)
        return self._noise_by_renyi()

    def total(self, updates: int = 0) -> int:
        """Noisy steps of the first cohort after so many updates; 0 for all of them."""
        return sum(steps for _, steps in self.uses(updates or self.updates))

    def epsilon(self, updates: int, noise: float) -> float:
        """Epsilon of the first cohort after so many updates.

        Raises:
            PrivacyError: the noise or the promise is out of range.
        """
        bound = epsilon if self.total(updates) <= EXACT_STEPS else rdp_epsilon
        return bound(self.spends(updates, noise), self.delta)

    def _noise_by_renyi(self) -> float:
        low, high = 0.01, MAX_NOISE
        if self.epsilon(self.updates, high) > self.target:
            raise PrivacyError(
                f"epsilon must be reachable: even noise of {high:g} times the clip spends more "
                f"than {self.target:g} over {self.total():,} steps. Raise epsilon, or plan fewer"
            )
        while high > 1.0001 * low:
            middle = sqrt(low * high)
            within = self.epsilon(self.updates, middle) <= self.target
            low, high = (low, middle) if within else (middle, high)
        digit = 10.0 ** (floor(log10(high)) - 3)
        return float(f"{(floor(high / digit) + 1) * digit:.4g}")

    def fits(self, noise: float) -> int:
        """How many of the planned updates stay within the target; 0 where not even one does."""
        low, high = 0, self.updates + 1
        while high - low > 1:
            middle = (low + high) // 2
            within = self.epsilon(middle, noise) <= self.target * (1.0 + 1e-9)
            low, high = (middle, high) if within else (low, middle)
        return low

    def quality(self, noise: float) -> float:
        """Deviation of the noise in the mean over all steps of an update's noisy gradients.

        A step divides its noise by the records that it expects, sample_rate * N, and steps are
        independent: noise / (sample_rate * sqrt(steps)), in units of clip / N. What N records
        learn is drowned where this nears N.
        """
        steps = self.rounds * self.steps
        # Without steps there are sums over all records alone.
        return noise / (self.sample_rate * sqrt(steps)) if steps else noise


@dataclass(frozen=True, slots=True)
class Choice:
    """What another schedule would take under the same promise.

    Attributes:
        name: what is changed.
        value: to what.
        noise: noise multiplier that it needs; 0 where none is enough.
        quality: as `Schedule.quality`; 0 where no noise is enough.
    """

    name: str
    value: str
    noise: float
    quality: float


def choices(schedule: Schedule) -> list[Choice]:
    """The schedule as it is, then with one thing changed at a time, where that can be planned."""
    return [
        _choice(name, value, other)
        for name, value, other in _others(schedule)
        if not name or other.total() <= MOST_STEPS
    ]


def _choice(name: str, value: str, schedule: Schedule) -> Choice:
    try:
        noise = schedule.noise()
    except PrivacyError:
        return Choice(name, value, 0.0, 0.0)
    return Choice(name, value, noise, schedule.quality(noise))


def _others(plan: Schedule) -> Iterator[tuple[str, str, Schedule]]:
    yield "as planned", "", plan
    if plan.unit == EXAMPLE:
        rate = plan.sample_rate
        for other in (rate / 2, min(1.0, 2 * rate), 1.0):
            # A replayed record that follows the sample rate goes on following it.
            follows = plan.replay_rate == rate
            replay = other if follows else plan.replay_rate
            if other != rate and (other < 1.0 or 2 * rate > 1.0 or rate < 0.5):
                changed = replace(plan, sample_rate=other, replay_rate=replay)
                yield "sample rate", f"{other:g}", changed
    for rounds in (max(1, plan.rounds // 2), 2 * plan.rounds):
        if rounds != plan.rounds:
            yield "rounds", str(rounds), replace(plan, rounds=rounds)
    if plan.unit == EXAMPLE and plan.updates > 1:
        replays = (0.0, plan.replay_rate / 2, min(1.0, 2 * plan.replay_rate))
        for replay in sorted(set(replays) - {plan.replay_rate}):
            yield "replay rate", f"{replay:g}", replace(plan, replay_rate=replay)
    yield "updates", str(2 * plan.updates), replace(plan, updates=2 * plan.updates)
