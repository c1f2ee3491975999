"""Pairwise masks: neighbours share seeds, and what one adds to its vector the other takes off.

Bonawitz, Ivanov, Kreuter and others 2017, "Practical Secure Aggregation for Privacy-Preserving
Machine Learning" (CCS 2017, eprint 2017/281), with one mask per pair and no second mask, over the
random ring of `graph`. When a client drops out its neighbours reveal the seeds that they shared
with it.

What that does not cover: a client that is called dropped out, and whose body is at the server
nevertheless (late, or by the server's lie), has no mask left. Where seeds may be revealed, bodies
must therefore be encrypted under a key that the server does not hold; the masks then hide a body
from a key holder as long as the server tells the truth about who was counted. Without pins, a
server that lies from the first moment can invent clients, and is every client's only neighbour.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import ConfigError, Fault, PrivacyError, RunError
from ..core.sums import Pact, Party
from . import sessions, vault
from .cards import CARD_BYTES, Card, check_address, decode, encode, is_key
from .graph import cut_bits, neighbours_for, ring_graph
from .reveals import (
    FEWEST_KEPT,
    Request,
    check_request,
    read_answer,
    read_request,
    write_answer,
    write_request,
)

_LOG = logging.getLogger(__name__)
_CARD = ("exchange", "identity", "node", "signature")
_NOTE = ("cards", "exchange", "node", "session")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Both halves of pairwise masks; notes between them are bytes that nobody else reads.

    Attributes:
        min_clients: fewest clients in a sum, >= 3.
        neighbours: of each client; 0 to choose by the cohort and `collusion`.
        collusion: share of a cohort that may collude with the server or drop out, in (0, 1).
        pins: Ed25519 identities in hex that are let in; empty to trust each on first use.
        shares: of noise, that every sum is counted on to hold; 0 where clients add none. A client
            masks its vector only where it sees so many, itself and its neighbours.

    Raises:
        ConfigError: one of them is out of its range.
    """

    min_clients: int
    neighbours: int = 0
    collusion: float = 1 / 3
    pins: frozenset[str] = frozenset()
    shares: int = 0

    def __post_init__(self) -> None:
        rules = {
            "min_clients": (self.min_clients >= 3, "must be at least 3"),
            "neighbours": (self.neighbours == 0 or self.neighbours >= 2, "must be 0, or 2 or more"),
            "collusion": (0.0 < self.collusion < 1.0, "must be above 0 and below 1"),
            "identities": (all(map(is_key, self.pins)), "must be 64 lower-case hex digits each"),
        }
        if self.neighbours > 0 and self.neighbours + self.neighbours % 2 < self.shares - 1:
            text = (
                f"must be 0, or {self.shares - 1} or more, for noise in {self.shares} shares "
                "that each client sees; or fewer [user_privacy] clients"
            )
            rules["neighbours"] = (False, f"{text}; got {self.neighbours}")
        broken = [
            Fault(f"secure_sum.{key}", text) for key, (holds, text) in rules.items() if not holds
        ]
        if broken:
            raise ConfigError(broken)

    def join(self, party: Party, run: str) -> bytes:
        """Client: its card for `run`, public; the same each time. Makes keys on first use.

        Raises:
            RunError: its identity is not among the pins, or a key on its disk is damaged.
        """
        with vault.locked(party.folder):
            card = vault.own_card(party, run, make=True)
        if self.pins and card.identity not in self.pins:
            raise RunError(
                f"this client's identity {card.identity} must be among the identities that are "
                "let in; add it to that file at the server and at every client"
            )
        return encode(card.pack())

    def pair(self, pact: Pact, cards: Mapping[int, bytes]) -> dict[int, bytes]:
        """Server: for each node with a sound card, a note with its neighbours' cards.

        Neighbours are drawn anew for each session. Nodes whose cards are malformed, not theirs,
        not of this run, not pinned or not the only one with their keys are left out.

        Raises:
            RunError: fewer than `min_clients` cards are sound.
        """
        sound = self._sound(pact.run, cards)
        if len(sound) < self.min_clients:
            raise RunError(
                f"a sum needs at least {self.min_clients} clients with sound cards; "
                f"{len(sound)} of {len(cards)} are. The log says what is wrong with the others."
            )
        graph = ring_graph(sound, self._degree(len(sound)))
        return {
            node: _write_note(pact, sound[node], [sound[peer] for peer in peers])
            for node, peers in graph.items()
        }

    def seeds(
        self, pact: Pact, note: bytes, party: Party, content: bytes = b""
    ) -> list[tuple[int, bytes]]:
        """Client: sign and secret seed of each mask that it adds; for `keystream.mask`.

        The session is on disk before this returns: no other pact, note or content can be masked
        with these seeds later, nor these after they were revealed.

        Args:
            pact: of this sum.
            note: what `pair` gave for this node.
            party: this client.
            content: hash of what is to be masked. Without it a session that is asked again may
                mask a second vector, and the difference of the two bodies is then unmasked.

        Raises:
            RunError: the note cannot be trusted, or the masks are used up; nothing may be sent.
            PrivacyError: it shows fewer clients than the noise is counted on from.
        """
        with vault.locked(party.folder):
            own = vault.own_card(party, pact.run, make=False)
            peers = self._peers(pact, note, own)
            if not self.pins:
                known = {peer.node: peer.identity for peer in peers}
                vault.recognise(party.folder, pact.run, known)
            exchanges = {peer.node: peer.exchange for peer in peers}
            agreed = (pact.session, pact.digest().hex(), _hash(note), content.hex())
            sessions.begin(party.folder, sessions.Session(*agreed, exchanges))
            found = vault.seeds(pact, party, exchanges)
        return [(_sign(party.node, peer), seed) for peer, seed in found.items()]

    def ask(
        self, pact: Pact, notes: Mapping[int, bytes], counted: Collection[int]
    ) -> dict[int, bytes]:
        """Server: for each counted node with neighbours that were not counted, who they are.

        Raises:
            RunError: too few were counted for the nodes to answer; nobody need be asked.
            ValueError: a counted node was not paired.
        """
        if len(counted) < self.min_clients:
            raise RunError(
                f"a sum needs at least {self.min_clients} clients; {len(counted)} were counted"
            )
        if not set(counted) <= notes.keys():
            raise ValueError(f"nodes {sorted(set(counted) - notes.keys())} must be paired first")
        asks = {}
        for node in sorted(counted):
            peers = {card["node"] for card in decode(notes[node], _NOTE)["cards"]}
            dropped = sorted(peers.difference(counted))
            if dropped and len(peers) - len(dropped) < FEWEST_KEPT:
                raise RunError(f"too many neighbours of node {node} dropped out to open the sum")
            if dropped:
                asks[node] = write_request(pact, node, Request(sorted(counted), dropped))
        return asks

    def reveal(self, pact: Pact, note: bytes, party: Party) -> bytes:
        """Client: the seeds that it shares with the neighbours that `note` says dropped out.

        Only for the latest session, and only for one request; the same bytes get the same answer.

        Raises:
            RunError: the note asks for more than may be revealed; nothing is.
        """
        with vault.locked(party.folder):
            found = sessions.latest(party.folder)
            if found is None or found.session != pact.session:
                raise RunError(f"session {pact.session} is not the latest that this node sealed")
            if found.pact != pact.digest().hex():
                raise RunError(f"session {pact.session} was sealed for another pact")
            try:
                request = read_request(note, pact, party.node)
                check_request(request, party.node, set(found.neighbours), self.min_clients)
            except ValueError as error:
                raise RunError(f"this node reveals nothing for such a request: {error}") from error
            sessions.spend(party.folder, found, _hash(note))
            seeds = vault.seeds(
                pact, party, {node: found.neighbours[node] for node in request.dropped}
            )
        return write_answer(pact, party.node, seeds)

    def leftovers(
        self, pact: Pact, asks: Mapping[int, bytes], reveals: Mapping[int, bytes]
    ) -> list[tuple[int, bytes]]:
        """Server: sign and seed of each mask that stands alone in the sum, to be taken off.

        Raises:
            ValueError: a reveal is missing, malformed or not what was asked for.
        """
        if asks.keys() != reveals.keys():
            raise ValueError(f"{len(asks)} nodes must answer, and no others; {len(reveals)} did")
        found = []
        for node, ask in sorted(asks.items()):
            dropped = read_request(ask, pact, node).dropped
            seeds = read_answer(reveals[node], pact, node, dropped)
            found += [(_sign(node, other), seed) for other, seed in seeds.items()]
        return found

    def describe(self, cohort: int) -> str:
        """One line for people: with how many others each client shares a mask, and what for."""
        if cohort < self.min_clients:
            return f"masks between clients, of whom there must be at least {self.min_clients}"
        k = self._degree(cohort)
        bits = cut_bits(cohort, k, self.collusion)
        if math.isinf(bits):
            return f"masks with all {cohort - 1} others"
        chance = f"at most 2^-{math.floor(bits)}" if bits >= 1.0 else "not bounded"
        return (
            f"masks with {k} of {cohort - 1} neighbours each (up to {self.collusion:.0%} of "
            f"{cohort} clients colluding or gone, chance of a cut {chance})"
        )

    def _degree(self, cohort: int) -> int:
        if not self.neighbours:
            least = self.shares - 1
            return min(max(neighbours_for(cohort, self.collusion), least + least % 2), cohort - 1)
        return min(self.neighbours + self.neighbours % 2, cohort - 1)

    def _sound(self, run: str, cards: Mapping[int, bytes]) -> dict[int, Card]:
        sound = {}
        for node, data in sorted(cards.items()):
            try:
                card = Card.unpack(decode(data, _CARD, CARD_BYTES), run)
                if card.node != node:
                    raise ValueError(f"the card must be node {node}'s; it is node {card.node}'s")
                self._check_pin(card)
            except ValueError as error:
                _LOG.warning("node %d is left out of the sum: %s", node, error)
            else:
                sound[node] = card
        # Whoever copied a key cannot be told from its owner, so neither comes in.
        twice = _shared_keys(sound.values())
        for node in twice:
            _LOG.warning("node %d is left out of the sum: another node shows its key", node)
        return {node: card for node, card in sound.items() if node not in twice}

    def _peers(self, pact: Pact, note: bytes, own: Card) -> list[Card]:
        try:
            values = decode(note, _NOTE)
            check_address(values, pact, own.node)
            if values["exchange"] != own.exchange:
                raise ValueError("it is made from an old card of this node, which must join again")
            if not isinstance(values["cards"], list):
                raise ValueError("its cards must be a list")
            peers = [Card.unpack(card, pact.run) for card in values["cards"]]
            self._check_peers(peers, own)
        except ValueError as error:
            raise RunError(f"this node cannot be paired by such a note: {error}") from error
        return peers

    def _check_peers(self, peers: list[Card], own: Card) -> None:
        if len(peers) < self.shares - 1:
            raise PrivacyError(
                f"a sum must have noise from {self.shares} clients, and this node sees "
                f"{len(peers) + 1}: it sends nothing. Write fewer [user_privacy] clients, more "
                "[secure_sum] neighbours (0 chooses)"
            )
        # A cohort is at least `min_clients`, and a larger one never has fewer neighbours.
        fewest = max(FEWEST_KEPT, self._degree(self.min_clients))
        if len(peers) < fewest:
            raise ValueError(f"this node needs at least {fewest} neighbours; got {len(peers)}")
        if len({peer.node for peer in [own, *peers]}) <= len(peers):
            raise ValueError("a neighbour comes twice, or is this node itself")
        if _shared_keys([own, *peers]):
            raise ValueError("two nodes show the same key")
        for peer in peers:
            self._check_pin(peer)

    def _check_pin(self, card: Card) -> None:
        if self.pins and card.identity not in self.pins:
            raise ValueError(f"node {card.node}'s identity {card.identity} is not let in")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sign(node: int, other: int) -> int:
    return 1 if node < other else -1


def _write_note(pact: Pact, own: Card, peers: Sequence[Card]) -> bytes:
    # With the key that the server has of the node itself: were it an old one, no mask would cancel.
    shown = {"node": own.node, "exchange": own.exchange, "session": pact.session}
    return encode({"cards": [peer.pack() for peer in peers], **shown})


def _shared_keys(cards: Collection[Card]) -> set[int]:
    """Nodes whose exchange key or identity another card shows too."""
    exchanges = Counter(card.exchange for card in cards)
    identities = Counter(card.identity for card in cards)
    return {c.node for c in cards if exchanges[c.exchange] > 1 or identities[c.identity] > 1}
