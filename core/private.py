"""The shapes of what makes training private: to one record, or to one user, for a model's life.

Two units, never mixed: `example` (one record, wherever it is used) and `user` (all that one
client holds). Whatever a client releases is charged to the ledger on its own disk first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .values import Spend, Vector

LEDGER = "ledger.jsonl"
"""File name of a client's ledger in its folder."""

EXAMPLE, USER = "example", "user"
"""The units of privacy."""

Batches: TypeAlias = Iterator[npt.NDArray[np.intp]]
"""Positions of the records of each step; a step may be empty."""


@dataclass(frozen=True, slots=True)
class Strata:
    """The records of a phase by cohort: who pays when they are used.

    Attributes:
        cohorts: names of those who pay; a name may stand twice, once as new and once as replayed.
        of: index into `cohorts` per record, intp [n].
        fresh: how many of the first cohorts are of the domain being learnt; the others are
            replayed.
    """

    cohorts: tuple[str, ...]
    of: npt.NDArray[np.intp]
    fresh: int = 1

    def __len__(self) -> int:
        return len(self.of)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of records per cohort."""
        counts = np.bincount(self.of, minlength=len(self.cohorts))
        return tuple(int(count) for count in counts)


def one_cohort(num_records: int, name: str = "all") -> Strata:
    """Strata of `num_records` records that are all of one cohort."""
    return Strata((name,), np.zeros(num_records, np.intp))


@dataclass(frozen=True, slots=True)
class Statement:
    """What a ledger says; nothing in it depends on what the records are.

    Attributes:
        unit: `example` or `user`.
        epsilon: spent so far, the maximum over cohorts.
        delta: at which epsilon is said.
        target: epsilon that is never crossed.
        releases: number of charges so far.
        updates_left: how many more domain updates fit; -1 where it was not asked.
    """

    unit: str
    epsilon: float
    delta: float
    target: float
    releases: int
    updates_left: int = -1


class Ledger(Protocol):
    """One client's account of one unit, on its own disk: append-only, chained, synced."""

    def charge(self, place: Mapping[str, Any], spends: Sequence[Spend]) -> Statement:
        """Write `spends` down, on disk when this returns; only then may records be used.

        A crash between a charge and `released` costs nothing: where the unit's last charge was
        the same, of training, and nothing that it paid for was released, it is used again.

        Args:
            place: what they are for: `run`, `kind`, `domain`, `round`, and for training `salt`,
                a hash of all that the answer depends on; plain values. Without it each charge
                is another one.
            spends: per cohort.

        Raises:
            BudgetError: they would cross the target; nothing is written.
            PrivacyError: the ledger is damaged, another client's, or cannot be written.
        """
        ...

    def released(self, place: Mapping[str, Any]) -> None:
        """Write down, synced, that what was charged for `place` is about to be kept and to leave.

        From then on asking again is another charge. Nothing happens where nothing was charged for
        that place. Not before this returns may the answer be kept or sent.

        Args:
            place: as it was charged.

        Raises:
            PrivacyError: as `charge`; or all that was charged for it has left already, such as
                by another process of this client. The answer must be dropped.
        """
        ...

    def statement(self, update: Sequence[Spend] = ()) -> Statement:
        """What was spent so far, and how many more updates like `update` fit.

        Raises:
            PrivacyError: the ledger is damaged or another client's.
        """
        ...


class Session(Protocol):
    """The steps of one round of private training; open while its context is."""

    def backward(self, losses: Any, step_size: int) -> None:
        """Add a part's share of the step's gradient.

        Args:
            losses: per example of the part, tensor [b], with its graph.
            step_size: records in the whole step.
        """
        ...

    def release(self, optimizer: Any) -> None:
        """Set `grad` of every parameter, clipped and noised; once a step, parts or none.

        Args:
            optimizer: that will step; it must hold these parameters and no others.

        Raises:
            PrivacyError: a guard found that the step would not be private.
        """
        ...

    def stepped(self) -> None:
        """After the optimizer's step.

        Raises:
            PrivacyError: a parameter that was given noise did not move.
        """
        ...


@dataclass(frozen=True, slots=True)
class Privatizer:
    """What makes one client's training private to a record.

    Attributes:
        unit: `example`; empty where nothing is promised.
        terms: what is promised, in plain values for the report: `mechanism`, `epsilon`,
            `delta`, `clip`, `noise_multiplier`, `sample_rate`, `replay_rate`; empty without.
        largest_part: most records in one backward pass; 0 for any number.
        batches: (strata, batch size, epochs, generator) -> positions, step by step.
        session: (module, parameters that train by name, expected batch size) -> a context.
        steps: (epochs) -> steps of a round, empty ones too; 0 where nobody counts them.
        spends: (strata, epochs) -> what a round uses, per cohort; PrivacyError where the strata
            do not fit the promise.
        summed: (rows in blocks float32 [b, m], clip) -> their sum [m], each row's L2 norm cut to
            the clip, with noise: for statistics of raw records that later steer training.
        sum_spends: (strata) -> what one use of `summed` over all of them costs, per cohort.
        ledger: (client's folder, client's id) -> its ledger.
    """

    unit: str
    terms: Mapping[str, Any]
    largest_part: int
    batches: Callable[[Strata, int, int, np.random.Generator], Batches]
    session: Callable[[Any, Mapping[str, Any], int], AbstractContextManager[Session]]
    steps: Callable[[int], int]
    spends: Callable[[Strata, int], tuple[Spend, ...]]
    summed: Callable[[Iterable[Vector], float], Vector]
    sum_spends: Callable[[Strata], tuple[Spend, ...]]
    ledger: Callable[[Path, str], Ledger]


@dataclass(frozen=True, slots=True)
class Noise:
    """What clients owe a sum that is private to users.

    Attributes:
        clip: largest L2 norm of one client's update, > 0.
        multiplier: standard deviation of the noise in a sum of `clients` shares over the sum's
            L2 sensitivity; 0 where the server adds the noise and clients only keep the clip.
        clients: fewest shares whose noise is counted on; a sum of more has more noise.
    """

    clip: float
    multiplier: float
    clients: int


@dataclass(frozen=True, slots=True)
class UserPrivatizer:
    """What makes the sum of a round private to a user: all that one client holds.

    Attributes:
        unit: `user`; empty where nothing is promised.
        terms: as of `Privatizer`, with `where` the noise is added.
        noise: what clients owe; None where nothing is promised.
        bound: (delta [n]) -> delta with an L2 norm of at most the clip.
        multiplier: of the noise that `add` adds; 0 where the clients add it.
        add: (opened sum float64 [n], its L2 sensitivity) -> the sum with the server's noise.
        ledger: (client's folder, client's id) -> its ledger.
    """

    unit: str
    terms: Mapping[str, Any]
    noise: Noise | None
    bound: Callable[[Vector], Vector]
    multiplier: float
    add: Callable[[npt.NDArray[np.float64], float], npt.NDArray[np.float64]]
    ledger: Callable[[Path, str], Ledger]
