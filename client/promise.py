"""What a client promised about its records: charged before they are used, told when it answers.

Nothing here depends on what the records are, so that all of it may leave the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core import check
from ..core.config import Config
from ..core.errors import PrivacyError
from ..core.parts import Privatizer, SecureSum, Strata, UserPrivatizer
from ..core.private import Statement
from ..core.values import Records, Spend, Ticket
from .store import ClientStore

USER_COHORT = "all"
"""The one cohort of a user's account: whatever a client holds."""


@dataclass(frozen=True, slots=True)
class Promise:
    """The two privatizers of a run, with what the node's operator asks of them.

    Attributes:
        example: of single records.
        user: of all that the client holds.
        sums: seals the updates; its noise is part of the promise to users.
    """

    example: Privatizer
    user: UserPrivatizer
    sums: SecureSum

    @property
    def holds(self) -> bool:
        """Whether anything is promised: only what the ledger covers may then leave."""
        return bool(self.example.unit or self.user.unit)

    def charge_training(
        self, store: ClientStore, ticket: Ticket, strata: Strata, epochs: int
    ) -> None:
        """Charge a round of training on the records of `strata`.

        Raises:
            PrivacyError: the promise cannot be kept; nothing must be trained.
        """
        self._charge_example(store, ticket, "train", self.example.spends(strata, epochs))

    def charge_statistics(self, store: ClientStore, ticket: Ticket, strata: Strata) -> None:
        """Charge one noisy sum over the records of `strata`.

        Raises:
            PrivacyError: the promise cannot be kept; nothing must be computed.
        """
        self._charge_example(store, ticket, "statistics", self.example.sum_spends(strata))

    def _charge_example(
        self, store: ClientStore, ticket: Ticket, kind: str, spends: Sequence[Spend]
    ) -> None:
        ledger = self.example.ledger(store.folder, store.client)
        ledger.charge(_place(ticket, kind), spends)

    def charge_release(self, store: ClientStore, ticket: Ticket, kind: str, size: int) -> None:
        """Charge one release of `size` values to the user's account.

        Raises:
            PrivacyError: the promise cannot be kept; nothing must leave the client.
        """
        spends = self._release(size) if size else ()
        self.user.ledger(store.folder, store.client).charge(_place(ticket, kind), spends)

    def _release(self, size: int) -> tuple[Spend, ...]:
        noise = self.user.noise
        if noise is None:
            return ()
        if not noise.multiplier:  # the server adds it
            return (Spend(1.0, self.user.multiplier, 1, USER_COHORT),)
        # As many shares as are sure to be in a sum; who really answered is not the client's to know
        multiplier = self.sums.multiplier(size, noise.clients)
        return (Spend(1.0, multiplier, 1, USER_COHORT, "skellam"),)

    def spent(self, store: ClientStore) -> dict[str, float]:
        """Epsilon spent so far, per unit, as numbers that may leave the client."""
        return {f"epsilon.{s.unit}": s.epsilon for s in self._statements(store, (), ())}

    def left(
        self, store: ClientStore, strata: Strata, epochs: int, rounds: int, size: int
    ) -> dict[str, float]:
        """Epsilon spent, and how many more domain updates like this one fit.

        Args:
            store: of the client.
            strata: the records of this update.
            epochs: of a round.
            rounds: of a domain.
            size: number of values that a round releases.
        """
        spends = self.example.spends(strata, epochs) if self.example.unit else ()
        numbers: dict[str, float] = {}
        for s in self._statements(
            store, _times(spends, rounds), _times(self._release(size), rounds)
        ):
            numbers |= {
                f"epsilon.{s.unit}": s.epsilon,
                f"left.{s.unit}": float(s.updates_left),
                f"releases.{s.unit}": float(s.releases),
            }
        return numbers

    def _statements(
        self, store: ClientStore, example: Sequence[Spend], user: Sequence[Spend]
    ) -> list[Statement]:
        pairs = ((self.example, example), (self.user, user))
        return [
            part.ledger(store.folder, store.client).statement(update)
            for part, update in pairs
            if part.unit
        ]


def make(config: Config, sums: SecureSum, most_epsilon: float) -> Promise:
    """The promise of a run.

    Args:
        config: of the run.
        sums: of the run.
        most_epsilon: what this node's operator allows; 0 for no limit.

    Raises:
        PrivacyError: the run promises less than the operator asks.
    """
    example, user = check.build(config, "privacy"), check.build(config, "user_privacy")
    promised = [float(part.terms["epsilon"]) for part in (example, user) if part.unit]
    if most_epsilon and min(promised, default=float("inf")) > most_epsilon:
        said = f"epsilon {min(promised):g}" if promised else "nothing"
        raise PrivacyError(
            f"this node trains only where epsilon is at most {most_epsilon:g}; the run promises "
            f"{said}. Ask for a smaller epsilon in [privacy], or raise the node's max-epsilon."
        )
    return Promise(example, user, sums)


def strata_of(records: Records, domain: str, own: Records) -> Strata:
    """The cohorts of `records`: those of `own` pay as `domain`, replayed ones as their own.

    Args:
        records: of the phase.
        domain: being learnt.
        own: the client's shard of it.
    """
    mine = frozenset(own.ids)
    pairs = zip(records.ids, records.domains, strict=True)
    names = [domain if id_ in mine else name for id_, name in pairs]
    cohorts = (domain, *sorted(set(names) - {domain}))
    index = {name: i for i, name in enumerate(cohorts)}
    return Strata(cohorts, np.array([index[name] for name in names], np.intp))


def once(records: Records) -> Records:
    """`records` without those whose id came before.

    Two copies of a record in one step would move it by twice the clip, which no account covers.
    """
    first: dict[str, int] = {}
    for place, id_ in enumerate(records.ids):
        first.setdefault(id_, place)
    return records if len(first) == len(records) else records.take(list(first.values()))


def _times(spends: Sequence[Spend], rounds: int) -> list[Spend]:
    return [
        Spend(s.sample_rate, s.noise_multiplier, s.steps * rounds, s.cohort, s.mechanism)
        for s in spends
    ]


def _place(ticket: Ticket, kind: str) -> Mapping[str, str | int]:
    return {"run": ticket.run, "kind": kind, "domain": ticket.domain, "round": ticket.round}
