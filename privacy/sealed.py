"""A sum that hides its parts, put together: a codec, a wrapping, masks between neighbours.

`bfv`, `ckks` and `masks` differ in the codec (whole numbers or floats) and in the wrapping
(ciphertexts or words); the steps are the same. A body is a head of fixed length and a content of
fixed length: no part of it is parsed before its length, digest and checksum are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.private import Noise
from ..core.sums import Chance, Figures, Opened, Pact, Party, Scheme
from ..core.values import Vector
from .codec import LARGEST_WEIGHT
from .keystream import mask
from .pairs import Pairs
from .shares import Shares

_MAGIC = b"PSUM"
_DIGEST, _CHECK = 32, 16
_HEAD = len(_MAGIC) + _DIGEST + _CHECK

# Room for growth from one round to the next; a value above it is cut and counted.
_MARGIN = 1.5


class Codec(Protocol):
    """Vectors to blocks of slots that add up, and sums of blocks back."""

    @property
    def modulus(self) -> int:
        """Slots are added modulo this; 0 for floats, which cannot be masked."""
        ...

    @property
    def shares(self) -> Shares | None:
        """What clients owe a sum that is private to users; None where they owe nothing."""
        ...

    def blocks(self, size: int) -> int:
        """Blocks for a vector of `size` values."""
        ...

    def encode(self, delta: Vector, figures: Figures, pact: Pact, chance: Chance) -> Any:
        """Slots [blocks, width] of one client."""
        ...

    def decode(self, slots: Any, num_clients: int, pact: Pact) -> Opened:
        """The sum of `num_clients` encoded vectors; ValueError if it is none."""
        ...


class Wrapping(Protocol):
    """What is put round the slots on their way, and how wrapped slots are added."""

    @property
    def scheme(self) -> Scheme | None:
        """Of the key; None without."""
        ...

    def wrap(self, slots: Any, pact: Pact, party: Party) -> bytes:
        """Client: slots [blocks, width] as content of fixed length."""
        ...

    def size_bytes(self, blocks: int) -> int:
        """Length of the content."""
        ...

    def add(self, total: Any, content: bytes, blocks: int) -> Any:
        """Server: the total with one more content; ValueError if it is malformed."""
        ...

    def close(self, total: Any) -> bytes:
        """Server: the total for the key holder."""
        ...

    def unwrap(self, opened: bytes, blocks: int) -> Any:
        """Server: slots [blocks, width] of what the key holder gave; ValueError if malformed."""
        ...


@dataclass(frozen=True, slots=True)
class SealedSum:
    """The `SecureSum` of a codec, a wrapping and masks.

    Attributes:
        name: of the plug-in, for people.
        codec: vectors to slots.
        wrapping: slots to bytes.
        pairs: masks between neighbours; None without.
        clip: the largest |change| of one value that is ever sent.
        min_clients: fewest clients whose sum may be opened.
        capacity: most clients that one sum has room for.
        drops: whether a sum can be read after clients dropped out.
        terms: what else the parties must agree on; bound to every body.

    Raises:
        ConfigError: clients see too few neighbours to know that the noise is in the sum.
    """

    name: str
    codec: Codec
    wrapping: Wrapping
    pairs: Pairs | None
    clip: float
    min_clients: int
    capacity: int
    drops: bool
    terms: tuple[object, ...]
    single_updates: bool = False

    def __post_init__(self) -> None:
        noise = self.noise
        if self.pairs and noise and noise.multiplier:
            object.__setattr__(self, "pairs", replace(self.pairs, shares=noise.clients))

    @property
    def pairwise(self) -> bool:
        """Whether there are masks."""
        return self.pairs is not None

    @property
    def scheme(self) -> Scheme | None:
        """Of the key; None without."""
        return self.wrapping.scheme

    @property
    def noise(self) -> Noise | None:
        """What clients owe a sum that is private to users; None where they owe nothing."""
        return self.codec.shares.noise if self.codec.shares else None

    def sensitivity(self, clip: float, size: int) -> float:
        """The clip that each client keeps, rounding included, whatever `clip` is.

        Raises:
            ValueError: clients keep no clip, or rounding `size` values leaves too little of it.
        """
        if self.codec.shares is None:
            raise ValueError(
                f"what one client adds to a sum must be bounded; {self.name} bounds it only in "
                "runs that are private to users, and CKKS never: use 'bfv', 'masks' or 'plain'"
            )
        self.codec.shares.kept(size)
        return self.codec.shares.noise.clip

    def multiplier(self, size: int, counted: int) -> float:
        """Of the noise in a sum of `counted` shares, as a gaussian's; 0 without noise."""
        shares = self.codec.shares
        return shares.multiplier(size, counted) if shares and shares.noise.multiplier else 0.0

    def describe(self, cohort: int) -> str:
        """Scheme, keys, masks and noise in one line."""
        masks = self.pairs.describe(cohort) if self.pairs else "no masks"
        line = f"{self.name}; {masks}; sums of {self.min_clients} to {self.capacity} clients"
        if not self.noise or not self.noise.multiplier:
            return line
        noise = f"{self.noise.multiplier:g} times the clip in a sum of {self.noise.clients}"
        return f"{line}; each adds its share of Skellam noise, {noise}"

    def scale(self, peak: float, most: float) -> float:
        """Half as much again as the last peak, and never above clip * most.

        In a run that is private to users it is the clip: weights are 1, and peaks are not told.
        """
        if self.noise:
            return self.clip
        largest = self.clip * most
        return min(_MARGIN * peak, largest) if peak > 0.0 else largest

    def join(self, party: Party, run: str) -> bytes:
        """The client's card for its neighbours."""
        return self.pairs.join(party, run) if self.pairs else b""

    def pair(self, pact: Pact, cards: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """The neighbours' cards, for each node whose own card is sound."""
        return self.pairs.pair(pact, cards) if self.pairs else {}

    def seal(
        self,
        delta: Vector,
        figures: Figures,
        pact: Pact,
        note: bytes,
        party: Party,
        chance: Chance,
    ) -> bytes:
        """Clipped, rounded, packed, masked and wrapped; then head and content.

        Raises:
            RunError: delta, weight, pact, note or key do not hold; nothing leaves the client.
            PrivacyError: the note shows fewer clients than the noise is counted on from.
        """
        weight = figures.weight
        if not (0.0 <= weight <= LARGEST_WEIGHT and float(weight).is_integer()):
            raise RunError(f"a weight must be whole and 0..2**20; got {weight}")
        slots = self.codec.encode(delta, figures, pact, chance)
        if self.pairs:
            # Two contents under one mask would give their difference away.
            content = hashlib.sha256(slots.tobytes()).digest()
            slots = self._masked(slots, self.pairs.seeds(pact, note, party, content), 1)
        wrapped = self.wrapping.wrap(slots, pact, party)
        return _MAGIC + self._digest(pact) + _checksum(wrapped) + wrapped

    def add(self, total: Any, body: bytes, weight: float, pact: Pact) -> Any:
        """The running total with one more body, in constant memory.

        Raises:
            ValueError: the body is not one of this pact; the total is as it was.
        """
        blocks = self.codec.blocks(pact.size)
        wanted = _HEAD + self.wrapping.size_bytes(blocks)
        if len(body) != wanted:
            raise ValueError(f"the body must be {wanted} bytes; got {len(body)}")
        if body[: len(_MAGIC)] != _MAGIC or body[len(_MAGIC) :][:_DIGEST] != self._digest(pact):
            raise ValueError("the body must be sealed for this round, key and scale; it is not")
        content = body[_HEAD:]
        if body[len(_MAGIC) + _DIGEST : _HEAD] != _checksum(content):
            raise ValueError("the body must come as it was sent; its checksum differs")
        return self.wrapping.add(total, content, blocks)

    def single(self, body: bytes, pact: Pact) -> Vector:
        """Refused: single updates are what this sum hides.

        Raises:
            ValueError: always.
        """
        raise ValueError("a sealed update cannot be read; it must be summed")

    def ask(
        self, pact: Pact, notes: Mapping[int, bytes], counted: Collection[int]
    ) -> Mapping[int, bytes]:
        """Whose masks the counted nodes must reveal."""
        return self.pairs.ask(pact, notes, counted) if self.pairs else {}

    def reveal(self, pact: Pact, note: bytes, party: Party) -> bytes:
        """The seeds that this node shares with neighbours that dropped out.

        Raises:
            RunError: the note asks for more than may be revealed, or masks cannot be lifted.
        """
        if self.pairs is None or not self.drops:
            raise RunError("this sum reveals nothing; the server must not ask")
        return self.pairs.reveal(pact, note, party)

    def answers(self, pact: Pact, node: int, ask: bytes, reveal: bytes) -> bool:
        """Whether the seeds that were asked for are in it; a false seed is not noticed here."""
        if self.pairs is None:
            return False
        try:
            self.pairs.leftovers(pact, {node: ask}, {node: reveal})
        except ValueError:
            return False
        return True

    def close(self, total: Any, pact: Pact) -> bytes:
        """The total as the key holder gets it."""
        return self.wrapping.close(total)

    def result(
        self,
        opened: bytes,
        pact: Pact,
        counted: Collection[int],
        asks: Mapping[int, bytes],
        reveals: Mapping[int, bytes],
    ) -> Opened:
        """The sum, after the masks that stand alone are taken off.

        Raises:
            ValueError: this is no sum of sealed vectors: a peer sent garbage.
        """
        if len(counted) > self.capacity:
            raise ValueError(
                f"a sum must be of at most {self.capacity} clients; this is of {len(counted)}"
            )
        slots = self.wrapping.unwrap(opened, self.codec.blocks(pact.size))
        if self.pairs and asks:
            slots = self._masked(slots, self.pairs.leftovers(pact, asks, reveals), -1)
        return self.codec.decode(slots, len(counted), pact)

    def _masked(self, slots: Any, seeds: list[tuple[int, bytes]], sign: int) -> Any:
        modulus = np.uint64(self.codec.modulus)
        shade = mask([(sign * s, seed) for s, seed in seeds], slots.size, self.codec.modulus)
        masked: npt.NDArray[np.uint64] = slots + shade.reshape(slots.shape)
        return np.minimum(masked, masked - modulus)  # below 2 * modulus; wraps far up if below

    def _digest(self, pact: Pact) -> bytes:
        noise = (self.noise,) if self.noise else ()
        return pact.digest(self.name, self.capacity, self.clip, *self.terms, *noise)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK).digest()
