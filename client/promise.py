"""What a client promised about its records: charged before they are used, told when it answers.

Nothing here depends on what the records are, so that all of it may leave the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import check
from ..core.config import Config
from ..core.errors import PrivacyError
from ..core.parts import Privatizer, SecureSum, Strata, UserPrivatizer
from ..core.private import Statement
from ..core.values import Records, Spend, Ticket, Vector
from .cohorts import Cohorts
from .parties import Own
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

    def admit(self, store: ClientStore) -> None:
        """Refuse whatever a run asks that promises less than this client's ledger holds.

        Raises:
            PrivacyError: the run promises nothing for a unit that was promised, or the ledger is
                damaged or another client's.
        """
        for part in (self.example, self.user):
            part.ledger(store.folder, store.client).statement()

    def strata(self, store: ClientStore, records: Records, domain: str, own: Records) -> Strata:
        """The cohorts of `records`, each under the name that it first paid under.

        Args:
            store: of the client.
            records: of the phase.
            domain: being learnt.
            own: the client's shard of it.

        Raises:
            PrivacyError: it cannot be told under which cohorts records paid.
        """
        if not self.example.unit:
            return strata_of(records, domain, own)
        ledger = self.example.ledger(store.folder, store.client)
        cohorts = Cohorts(store.folder, begun=ledger.statement().releases > 0)
        mine = frozenset(own.ids)
        pairs = zip(records.ids, records.domains, strict=True)
        asked = [(id_, domain if id_ in mine else name) for id_, name in pairs]
        names = cohorts.named(asked)
        cohorts.keep({id_: name for (id_, _), name in zip(asked, names, strict=True)})
        return strata_of(records, domain, own, names)

    def charge_training(
        self, store: ClientStore, ticket: Ticket, salt: str, strata: Strata, epochs: int
    ) -> None:
        """Charge a round of training on the records of `strata`.

        Raises:
            PrivacyError: the promise cannot be kept; nothing must be trained.
        """
        spends = self.example.spends(strata, epochs)
        self._charge_example(store, _place(ticket, "train", salt), spends)

    def released(self, store: ClientStore, ticket: Ticket, salt: str) -> None:
        """Say that what was charged is about to be kept: asked again, it is charged again.

        Before, a crash lost it, and the same charge pays for the next try.
        """
        for part in (self.example, self.user):
            ledger = part.ledger(store.folder, store.client)
            ledger.released(_place(ticket, "train", salt))

    def charge_statistics(self, store: ClientStore, ticket: Ticket, strata: Strata) -> None:
        """Charge one noisy sum over the records of `strata`.

        Raises:
            PrivacyError: the promise cannot be kept; nothing must be computed.
        """
        place = _place(ticket, "statistics")
        self._charge_example(store, place, self.example.sum_spends(strata))

    def _charge_example(
        self, store: ClientStore, place: Mapping[str, str | int], spends: Sequence[Spend]
    ) -> None:
        self.example.ledger(store.folder, store.client).charge(place, spends)

    def charge_release(
        self, store: ClientStore, ticket: Ticket, kind: str, size: int, salt: str = ""
    ) -> None:
        """Charge one release of `size` values, by the client's own count, to the user's account.

        Raises:
            PrivacyError: the promise cannot be kept; nothing must leave the client.
        """
        spends = self._release(size) if size else ()
        self.user.ledger(store.folder, store.client).charge(_place(ticket, kind, salt), spends)

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
        """Epsilon spent and charges so far, per unit, as numbers that may leave the client.

        A server that hears of fewer charges than before knows that a ledger was put back.
        """
        numbers: dict[str, float] = {}
        for s in self._statements(store, (), ()):
            numbers |= {f"epsilon.{s.unit}": s.epsilon, f"releases.{s.unit}": float(s.releases)}
        return numbers

    def left(
        self, store: ClientStore, strata: Strata, epochs: int, rounds: int, size: int, sums: int = 0
    ) -> dict[str, float]:
        """Epsilon spent, and how many more domain updates like this one fit.

        Args:
            store: of the client.
            strata: the records of this update.
            epochs: of a round.
            rounds: of a domain.
            size: number of values that a round releases.
            sums: noisy sums over the new records at the end of a domain.
        """
        spends: tuple[Spend, ...] = ()
        ends: tuple[Spend, ...] = ()
        if self.example.unit:
            new = replace(strata, of=strata.of[strata.of < strata.fresh])
            spends = self.example.spends(strata, epochs)
            ends = self.example.sum_spends(new)
        numbers: dict[str, float] = {}
        for s in self._statements(
            store,
            [*_times(spends, rounds), *_times(ends, sums)],
            _times(self._release(size), rounds),
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


def make(config: Config, sums: SecureSum, own: Own) -> Promise:
    """The promise of a run.

    Args:
        config: of the run.
        sums: of the run.
        own: what this node's operator allows.

    Raises:
        PrivacyError: the run promises less than the operator asks.
    """
    example, user = check.build(config, "privacy"), check.build(config, "user_privacy")
    terms = {part.unit: part.terms for part in (example, user) if part.unit}
    # Noise that the server adds is no protection from the server.
    alone = [unit for unit, said in terms.items() if said.get("where") != "server"]
    if own.most_epsilon and not alone:
        raise PrivacyError(
            "this node trains only where noise is added before anything leaves it; the run "
            "promises nothing of the kind. Its config needs [privacy] dp_sgd, or [user_privacy] "
            "distributed."
        )
    for unit, said in terms.items():
        for word, most in (("epsilon", own.most_epsilon), ("delta", own.most_delta)):
            if most and float(said[word]) > most:
                raise PrivacyError(
                    f"this node trains only where {word} is at most {most:g}; the run promises "
                    f"{word} {float(said[word]):g} per {unit}. Ask for less in its config, or "
                    f"raise the node's max-{word}."
                )
    return Promise(example, user, sums)


def strata_of(
    records: Records, domain: str, own: Records, names: Sequence[str] | None = None
) -> Strata:
    """The cohorts of `records`: those of `own` are new, the others are replayed.

    Args:
        records: of the phase.
        domain: being learnt.
        own: the client's shard of it.
        names: cohort of each record; by default the domain for new ones, and their own for others.
    """
    mine = frozenset(own.ids)
    fresh = [id_ in mine for id_ in records.ids]
    if names is None:
        pairs = zip(fresh, records.domains, strict=True)
        names = [domain if new else name for new, name in pairs]
    pairs_ = list(zip(names, fresh, strict=True))
    new = sorted({name for name, is_new in pairs_ if is_new} - {domain})
    old = sorted({name for name, is_new in pairs_ if not is_new})
    kinds = [(domain, True), *((name, True) for name in new), *((name, False) for name in old)]
    index = {kind: i for i, kind in enumerate(kinds)}
    of = np.array([index[pair] for pair in pairs_], np.intp)
    return Strata(tuple(name for name, _ in kinds), of, 1 + len(new))


def once(records: Records) -> Records:
    """`records` without those whose id came before.

    Two copies of a record in one step would move it by twice the clip, which no account covers.
    """
    first: dict[str, int] = {}
    for place, id_ in enumerate(records.ids):
        first.setdefault(id_, place)
    return records if len(first) == len(records) else records.take(list(first.values()))


def one_row_each(rows: Iterable[Vector], records: Records) -> Iterator[Vector]:
    """`rows` as they come, [b, m] at a time.

    Raises:
        PrivacyError: there are more rows than records, or a record stands twice: noise for one
            clipped row would not hide it.
    """
    left = len(set(records.ids))
    for block in rows:
        left -= len(block)
        if left < 0 or len(records) != len(set(records.ids)):
            raise PrivacyError(
                f"a noisy sum takes one row for each of {len(set(records.ids))} records, each "
                "once; it was given more. Nothing of it leaves the client."
            )
        yield block


def _times(spends: Sequence[Spend], times: int) -> list[Spend]:
    return [
        Spend(s.sample_rate, s.noise_multiplier, s.steps * times, s.cohort, s.mechanism)
        for s in spends
        if times
    ]


def _place(ticket: Ticket, kind: str, salt: str = "") -> Mapping[str, str | int]:
    place: dict[str, str | int] = {
        "run": ticket.run,
        "kind": kind,
        "domain": ticket.domain,
        "round": ticket.round,
    }
    return {**place, "salt": salt} if salt else place
