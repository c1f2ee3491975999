"""The records that a client process holds, dealt to its clients and encoded for the model."""

from __future__ import annotations

from ..core.config import Config
from ..core.parts import Encoded, Model, Score
from ..core.values import Records
from ..data.deals import deal_of
from ..data.stream import Stream


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
        self._encoded: dict[tuple[int, str, str], Encoded] = {}
        self._encoded_ids: dict[int, tuple[str, ...]] = {}
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

    def encoded(self, client: int, domain: str, index: int, records: Records) -> Encoded:
        """`records` for training on `domain`, the run's `index`-th.

        Only the current domain's records stay encoded: old ones come back as replay.
        """
        if (domain, index) != self._learning:
            self._encoded = {k: v for k, v in self._encoded.items() if k[2] != "train"}
            self._learning = (domain, index)
        key = (client, domain, "train")
        # A continual method may swap records between rounds; the ids tell.
        if key not in self._encoded or self._encoded_ids.get(client) != records.ids:
            self._encoded[key] = self._model.encode(records)
            self._encoded_ids[client] = records.ids
        return self._encoded[key]

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
