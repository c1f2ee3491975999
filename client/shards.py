"""The records that a client process holds, dealt to its clients and encoded for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.config import Config
from ..core.parts import Answer, Encoded, EncodedRecords, Indices, Model, Score
from ..core.values import Records
from ..data.deals import deal_of
from ..data.stream import Stream


@dataclass(frozen=True, slots=True)
class Some:
    """Those records of `whole` that a round trains on, by their positions in it."""

    whole: Encoded
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Indices) -> Any:
        """The batch of the records at `indices`; see `Encoded.batch`."""
        return self.whole.batch(self.rows[indices])


class Shards:
    """Shards by client, domain and split; encoded ones are kept while their domain is learnt.

    Args:
        config: of the run.
        model: encodes records.
        stream: the records of this process.
    """

    def __init__(self, config: Config, model: Model, stream: Stream) -> None:
        self._config, self._model, self._stream = config, model, stream
        self._deals: dict[tuple[str, str], tuple[Records, ...]] = {}
        self._encoded: dict[tuple[int, str, str], EncodedRecords] = {}
        self._encoded_ids: dict[tuple[int, str, str], tuple[str, ...]] = {}
        self._learning: tuple[str, int] = ("", -1)

    def of(self, client: int, domain: str, split: str) -> Records:
        """The records of one client; none of a domain that is another client's."""
        key = (domain, split)
        if all(domain != known.name for known in self._stream.domains):
            # Another client's. Kept, the server's names would fill this process.
            records: Records = getattr(self._stream.splits, split)
            return records.take(())
        if key not in self._deals:
            table, seed = self._config.shards, self._config.run.seed
            self._deals[key] = deal_of(self._stream, table, seed, *key)
        return self._deals[key][client]

    def encoded(
        self, client: int, domain: str, index: int, records: Records, fresh: Sequence[bool]
    ) -> EncodedRecords:
        """`records` for training on `domain`, the run's `index`-th, the fresh ones first.

        Only the current domain's records stay encoded: old ones come back as replay. The two are
        encoded apart, because a continual method may replay others in each round.
        """
        if (domain, index) != self._learning:
            self._encoded = {k: v for k, v in self._encoded.items() if k[2] == "test"}
            self._learning = (domain, index)
        chosen = np.asarray(fresh, bool)
        parts = [
            self._part(client, domain, split, records.take(np.flatnonzero(mine)))
            for split, mine in (("fresh", chosen), ("replayed", ~chosen))
            if mine.any() or split == "fresh"
        ]
        return parts[0] if len(parts) == 1 else parts[0].joined(parts[1])

    def _part(self, client: int, domain: str, split: str, records: Records) -> EncodedRecords:
        key = (client, domain, split)
        if key not in self._encoded or self._encoded_ids.get(key) != records.ids:
            self._encoded[key] = self._model.encode(records)
            self._encoded_ids[key] = records.ids
        return self._encoded[key]

    def scores(
        self, client: int, domains: Sequence[str], answer: Answer | None = None
    ) -> dict[str, float]:
        """Loss, right answers and total of a client's test shard, by domain, as flat numbers.

        Args:
            client: whose records are asked.
            domains: by name; numbers are named by the place in it.
            answer: what answers in the model's place; None for the model.
        """
        numbers: dict[str, float] = {}
        for index, name in enumerate(domains):
            if answer is None:
                score = self.score(client, name)
            else:
                score = self.answered(client, name, answer)
            numbers |= {
                f"loss.{index}": score.loss,
                f"correct.{index}": float(score.correct),
                f"total.{index}": float(score.total),
            }
        return numbers

    def answered(self, client: int, domain: str, answer: Answer) -> Score:
        """The score on a client's test shard of what answers in the model's place."""
        shard, labels = self.of(client, domain, "test"), self._model.labels
        targets = [labels.index(target) for target in shard.targets]
        return Score.of(answer.logits(shard), targets) if len(shard) else Score()

    def score(self, client: int, domain: str) -> Score:
        """The model's score on a client's test shard."""
        key = (client, domain, "test")
        if key not in self._encoded:
            shard = self.of(client, domain, "test")
            if not len(shard):
                return Score()
            self._encoded[key] = self._model.encode(shard)
        return self._model.score(self._encoded[key], self._config.evaluate.batch_size)

    def forget(self) -> None:
        """Encode anew: the model's labels have another order."""
        self._encoded = {}
