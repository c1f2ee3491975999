"""No privacy for single records: training as it is, spending nothing and promising nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..core.errors import DataError, PrivacyError
from ..core.parts import Privatizer, Session, Strata, added
from ..core.private import EXAMPLE, LEDGER, Batches, Statement
from ..core.values import Records, Spend
from .audit_log import entries_of


def build() -> Privatizer:
    """The privatizer that returns its input: shuffled batches, no clipping, no noise, no spend."""

    def batches(strata: Strata, batch_size: int, epochs: int, rng: np.random.Generator) -> Batches:
        return shuffled(len(strata), batch_size, epochs, rng)

    return Privatizer(
        unit="",
        terms=MappingProxyType({}),
        largest_part=0,
        batches=batches,
        session=_session,
        steps=lambda epochs: 0,
        spends=lambda strata, epochs: (),
        summed=lambda rows, clip: added(rows, Records(), clip),
        sum_spends=lambda strata: (),
        ledger=lambda folder, client: NoLedger(folder, EXAMPLE),
    )


def shuffled(num_records: int, batch_size: int, epochs: int, rng: np.random.Generator) -> Batches:
    """Each epoch's positions in a new order, cut into batches whose sizes differ by at most 1.

    Equal batches keep every step's gradient equally noisy: a last batch of two records would
    move the adapter as far as a full one.
    """
    if not num_records:
        return
    num_batches = -(-num_records // batch_size)
    for _ in range(epochs):
        yield from np.array_split(rng.permutation(num_records), num_batches)


@contextmanager
def _session(module: Any, parameters: Mapping[str, Any], batch_size: int) -> Iterator[Session]:
    yield _Clear()


class _Clear:
    """Gradients as they are: their mean over the records of the step."""

    def backward(self, losses: Any, step_size: int) -> None:
        (losses.sum() / step_size).backward()

    def release(self, optimizer: Any) -> None:
        return None

    def stepped(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class NoLedger:
    """The account of a client that promises nothing now, and never did.

    Attributes:
        folder: of the client.
        unit: that is not protected.
    """

    folder: Path
    unit: str

    def charge(self, place: Mapping[str, Any], spends: Sequence[Spend]) -> Statement:
        """Nothing is charged.

        Raises:
            PrivacyError: as `statement`.
        """
        return self.statement()

    def released(self, place: Mapping[str, Any]) -> None:
        """Nothing was charged, and nothing is written."""

    def statement(self, update: Sequence[Spend] = ()) -> Statement:
        """Nothing was spent.

        Raises:
            PrivacyError: this client's ledger is damaged, or holds a promise for this unit:
                training without noise would break it, for records that are in the model already.
        """
        path = self.folder / LEDGER
        try:
            lines = entries_of(path) if path.exists() else []
        except DataError as error:
            raise PrivacyError(f"the ledger must be whole and readable: {error}") from error
        if any(line.get("unit") == self.unit for line in lines):
            table = "privacy" if self.unit == EXAMPLE else "user_privacy"
            raise PrivacyError(
                f"{path} holds a promise of privacy for each {self.unit}, and this run makes "
                f"none: one step without noise would break it. Write [{table}] as in the runs "
                "before, or give this client a new folder if all of those models are withdrawn."
            )
        return Statement("", 0.0, 0.0, 0.0, 0)
