"""A client's own training records, without those whose people withdrew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.values import Records
from ..data.stream import Stream
from . import withdrawn
from .parties import Client
from .shards import Shards


@dataclass(frozen=True, slots=True)
class Holdings:
    """What each client of this process holds.

    Attributes:
        shards: as they were dealt.
        stream: of this process.
    """

    shards: Shards
    stream: Stream

    def mine(self, client: Client, domain: str) -> Records:
        """The client's training records of one domain that may be used."""
        shard, gone = self.shards.of(client.index, domain, "train"), self.gone(client)
        return shard.where(lambda i: shard.ids[i] not in gone) if gone else shard

    def held(self, client: Client, domains: Sequence[str]) -> Records:
        """Those of several domains, one after another."""
        return sum((self.mine(client, name) for name in domains), Records())

    def withdrawn(self, client: Client, domains: Sequence[str]) -> Records:
        """Records of several domains that may not be used any more."""
        gone = self.gone(client)
        if not gone:
            return Records()
        shards = (self.shards.of(client.index, name, "train") for name in domains)
        found = sum(shards, Records())
        return found.where(lambda i: found.ids[i] in gone)

    def gone(self, client: Client) -> frozenset[str]:
        """Ids of all records whose people withdrew, as far as a list or a shard names them.

        Raises:
            RunError: the client's list of them is damaged.
        """
        found = withdrawn.read(client.store.folder)
        if not found.everything:
            return found.ids
        names = [domain.name for domain in self.stream.domains]
        shards = [self.shards.of(client.index, name, "train") for name in names]
        return found.ids.union(*(shard.ids for shard in shards))

    def left(self, client: Client) -> bool:
        """Whether the client as a whole withdrew.

        Raises:
            RunError: its list of the withdrawn is damaged.
        """
        return withdrawn.read(client.store.folder).everything
