"""The two protocols of a secure sum: who adds what nobody reads, and who opens the sum alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from .private import Noise
from .sums import Chance, Figures, Opened, Pact, Party, Scheme
from .values import Vector


class SecureSum(Protocol):
    """How vectors are summed: clients seal, the server adds, the key holder opens.

    One sum goes through these steps; the notes between them are bytes that only this plug-in
    understands. `join` once a run, then per sum: `pair` (server), `seal` (clients), `add` as the
    bodies come, `ask` and `reveal` when clients dropped out, `close`, `KeyHolder.open` where the
    sum is `keyed`, `result`.

    Law: `result` is the weighted sum of the deltas of those whose bodies were added, within the
    plug-in's stated error, whatever the order of the additions.

    Attributes:
        single_updates: the server sees each update by itself, as `combine` needs; weight and
            loss then travel in the clear beside the body.
        pairwise: clients hide their bodies from each other's keys by masks: they `join` first.
        drops: a sum without some of the clients that were paired can still be read.
        scheme: of the key that a key holder must hold; None where no key opens the sum.
        min_clients: fewest clients whose sum may be opened.
        capacity: most clients that one sum has room for; 0 for any number.
        noise: what clients owe a sum that is private to users; None where they owe nothing.
    """

    @property
    def single_updates(self) -> bool: ...  # noqa: D102
    @property
    def pairwise(self) -> bool: ...  # noqa: D102
    @property
    def drops(self) -> bool: ...  # noqa: D102
    @property
    def scheme(self) -> Scheme | None: ...  # noqa: D102
    @property
    def min_clients(self) -> int: ...  # noqa: D102
    @property
    def capacity(self) -> int: ...  # noqa: D102
    @property
    def noise(self) -> Noise | None: ...  # noqa: D102

    def sensitivity(self, clip: float, size: int) -> float:
        """The largest L2 norm of what one client adds to a sum of `size` values, rounding included.

        Args:
            clip: the largest L2 norm of its delta.
            size: number of values.

        Raises:
            ValueError: this sum gives no such bound.
        """
        ...

    def multiplier(self, size: int, counted: int) -> float:
        """Of the noise in a sum of `counted` shares, over its L2 sensitivity; 0 without noise.

        A gaussian of this multiplier has no smaller Renyi divergences.
        """
        ...

    def describe(self, cohort: int) -> str:
        """One line for people: how a sum over `cohort` clients is protected."""
        ...

    def scale(self, peak: float, most: float) -> float:
        """Server: the scale of the next sum.

        Args:
            peak: the largest |weight * value| of the last comparable sum; 0 when unknown.
            most: the largest weight that a client may have.
        """
        ...

    def join(self, party: Party, run: str) -> bytes:
        """Client: its card for the run, for the server and the other clients; may be empty."""
        ...

    def pair(self, pact: Pact, cards: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """Server: what each node must know before it seals; nodes with a bad card are left out."""
        ...

    def seal(
        self,
        delta: Vector,
        figures: Figures,
        pact: Pact,
        note: bytes,
        party: Party,
        chance: Chance,
    ) -> bytes:
        """Client: `delta` [n] as bytes for the server.

        Raises:
            RunError: the pact or the note cannot be kept; nothing leaves the client.
        """
        ...

    def add(self, total: Any, body: bytes, weight: float, pact: Pact) -> Any:
        """Server: the running total (None at first) with one more body.

        Args:
            total: may be changed in place; use what is returned.
            body: a client's, as it came.
            weight: as told in the clear; only where `single_updates` holds.
            pact: of this sum.

        Raises:
            ValueError: the body is not one of this pact; the total is as it was.
        """
        ...

    def single(self, body: bytes, pact: Pact) -> Vector:
        """Server: one update's delta [n]; only where `single_updates` holds.

        Raises:
            ValueError: the body is not one of this pact.
        """
        ...

    def ask(
        self, pact: Pact, notes: Mapping[int, bytes], counted: Collection[int]
    ) -> Mapping[int, bytes]:
        """Server: what the counted nodes must reveal because others dropped out; may be empty.

        Args:
            pact: of this sum.
            notes: what `pair` gave.
            counted: nodes whose bodies were added.
        """
        ...

    def reveal(self, pact: Pact, note: bytes, party: Party) -> bytes:
        """Client: the answer to what `ask` gave for this node; once a session.

        Raises:
            RunError: the note asks for more than may be revealed.
        """
        ...

    def answers(self, pact: Pact, node: int, ask: bytes, reveal: bytes) -> bool:
        """Server: whether `reveal` is the answer of `node` to what `ask` gave for it."""
        ...

    def close(self, total: Any, pact: Pact) -> bytes:
        """Server: the total as the key holder gets it; where there is none, for `result`."""
        ...

    def result(
        self,
        opened: bytes,
        pact: Pact,
        counted: Collection[int],
        asks: Mapping[int, bytes],
        reveals: Mapping[int, bytes],
    ) -> Opened:
        """Server: the sum.

        Args:
            opened: what the key holder gave, or `close` where there is none.
            pact: of this sum.
            counted: nodes whose bodies were added.
            asks: what `ask` gave.
            reveals: the nodes' answers to it.

        Raises:
            ValueError: this is no sum of sealed vectors: a peer sent garbage.
        """
        ...


class KeyHolder(Protocol):
    """Who opens sums, and nothing but sums: apart from server and clients."""

    def fingerprint(self) -> str:
        """Of the key that is in force.

        Raises:
            RunError: the key holder cannot be reached.
        """
        ...

    def open(self, pact: Pact, nodes: Collection[int], body: bytes) -> bytes:
        """The slots of a sum, for `SecureSum.result`.

        The same request gets the same answer; another sum of the same round gets none.

        Args:
            pact: of this sum.
            nodes: whose bodies were added.
            body: what `SecureSum.close` gave.

        Raises:
            RefusedError: it refuses, and says why.
            RunError: it cannot be reached.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections; it may be asked again all the same."""
        ...
