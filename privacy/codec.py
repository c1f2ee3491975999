"""A vector of floats as small whole numbers that add up: clip, round stochastically, pack.

Values are scaled to -h..h with h = 2**(b-1) - 1, rounded up or down at random so that the
expected value is kept (Alistarh et al. 2017, arXiv:1610.02132), and shifted to digits 0..2h.
Zero stays exactly zero. In front of the values travel figures of the client that nobody may see
but as a sum: weight, loss, how many values were cut, and in which quarter octave the largest
value lies, from which the server agrees the next scale.

Where a sum is private to users, nothing but the values tells of a client's data, and they are
bounded and noised first (`shares`): the scale is the clip, always, and the figures are constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core.errors import PrivacyError, RunError
from ..core.sums import Chance, Figures, Opened, Pact
from ..core.values import Vector
from .packing import Packing, Slots
from .shares import Shares

# Whole numbers in front, and the bits each has room for per client.
_WEIGHT_BITS, _LOSS_BITS, _CUT_BITS = 21, 40, 40
LARGEST_WEIGHT = 2.0**20
# Losses are kept to 2**-10 and below 2**9.
LARGEST_LOSS = 2.0**9
_LOSS_STEP = 2.0**10
# Below it weight / scale * h would leave float32, and zero times infinity is no digit.
LEAST_SCALE = 2.0**-90
# Quarter octaves from 2**-40 to 2**24; the first bin is for zero.
NUM_BINS, _LOWEST = 256, -40


@dataclass(frozen=True, slots=True)
class Bounded:
    """A delta that fits a sum.

    Attributes:
        values: |values| at most the clip, and |weight * values| at most the scale, float32 [n].
        cut: how many were larger.
        peak: the largest |weight * value| before the cut at the scale.
    """

    values: Vector
    cut: int
    peak: float


def bound(delta: Vector, weight: float, clip: float, pact: Pact) -> Bounded:
    """`delta` [n] cut to the clip and the scale.

    Raises:
        RunError: it is not finite, or not of the pact's size, or the scale is out of range.
    """
    if delta.shape != (pact.size,):
        raise RunError(f"the update must have {pact.size} values; it has {delta.shape}")
    if not LEAST_SCALE <= pact.scale < math.inf:
        raise RunError(f"the scale must be finite and at least 2**-90; got {pact.scale}")
    largest = float(np.abs(delta).max(initial=0.0))
    if not math.isfinite(largest):
        raise RunError(
            "the update must be finite; it is not, and nothing is sent. Lower [train] lr."
        )
    limit = min(clip, pact.scale / weight) if weight else clip
    peak = min(largest, clip) * weight
    if largest <= limit:
        return Bounded(delta, 0, peak)
    cut = int(np.count_nonzero(np.abs(delta) > limit))
    return Bounded(np.clip(delta, -limit, limit), cut, peak)


@dataclass(frozen=True, slots=True)
class Front:
    """What stands before the values: whole numbers in digits, then one mark for the peak's bin.

    Law: `read` of the sum of what several clients `write` gives the sums of their figures.

    Attributes:
        bits: of a digit.
    """

    bits: int

    @property
    def size(self) -> int:
        """Number of digits."""
        return sum(self._lengths()) + NUM_BINS

    def write(self, figures: Figures, bounded: Bounded) -> Slots:
        """Digits [size] of one client, each below 2**bits."""
        loss = figures.loss if math.isfinite(figures.loss) else 0.0
        loss = min(max(loss, 0.0), LARGEST_LOSS) * figures.weight * _LOSS_STEP
        numbers = (int(figures.weight), round(loss), bounded.cut)
        digits = [
            number >> (self.bits * place) & (2**self.bits - 1)
            for number, length in zip(numbers, self._lengths(), strict=True)
            for place in range(length)
        ]
        bins = np.zeros(NUM_BINS, np.uint64)
        bins[peak_bin(bounded.peak)] = 1
        return np.concatenate([np.array(digits, np.uint64), bins])

    def read(
        self, sums: npt.NDArray[np.int64], num_clients: int, total: npt.NDArray[np.float64]
    ) -> Opened:
        """`total` with the figures that were summed beside it.

        Args:
            sums: digits [size], summed.
            num_clients: over how many.
            total: of the values, float64 [n].

        Raises:
            ValueError: not every client marked one bin.
        """
        *numbers, bins = np.split(sums, np.cumsum(self._lengths()))
        if int(bins.sum()) != num_clients or int(bins.min()) < 0:
            raise garbage(num_clients)
        weight, loss, cut = (self._number(digits) for digits in numbers)
        peak = peak_edge(int(np.flatnonzero(bins)[-1]))
        return Opened(total, float(weight), loss / _LOSS_STEP, cut, peak)

    def _lengths(self) -> list[int]:
        return [-(-room // self.bits) for room in (_WEIGHT_BITS, _LOSS_BITS, _CUT_BITS)]

    def _number(self, digits: npt.NDArray[np.int64]) -> int:
        return sum(int(digit) << (self.bits * place) for place, digit in enumerate(digits))


@dataclass(frozen=True, slots=True)
class IntCodec:
    """Vectors to packed slots and sums of slots back.

    Law: decoding the sum of encoded vectors gives the sum of `round(x_i * h / scale) * scale / h`
    exactly, where the rounding is the codec's own.

    Attributes:
        clip: the largest |change| of one value that is ever sent.
        packing: digits in slots.
        width: slots in a block; the number of slots is a multiple of it.
        modulus: slots are added modulo this; larger than the largest sum.
        shares: what clients owe a sum that is private to users; None where they owe nothing.
    """

    clip: float
    packing: Packing
    width: int
    modulus: int
    shares: Shares | None = None

    @property
    def half(self) -> int:
        """h, the largest level."""
        return int(2 ** (self.packing.bits - 1) - 1)

    def blocks(self, size: int) -> int:
        """Blocks for a vector of `size` values."""
        return -(-self.packing.num_slots(Front(self.packing.bits).size + size) // self.width)

    def encode(self, delta: Vector, figures: Figures, pact: Pact, chance: Chance) -> Slots:
        """Slots [blocks, width] of one client.

        Raises:
            RunError: the delta is not finite, or of another size than the pact's; or weight,
                scale or secret are not those of a sum that is private to users.
        """
        if self.shares:
            return self._noised(delta, figures, pact, chance, self.shares)
        bounded = bound(delta, figures.weight, self.clip, pact)
        digits = self._digits(bounded.values, figures.weight / pact.scale, chance.rounding)
        front = Front(self.packing.bits).write(figures, bounded)
        num_slots = self.blocks(pact.size) * self.width
        slots = self.packing.pack(np.concatenate([front, digits]), num_slots)
        return slots.reshape(-1, self.width)

    def decode(self, slots: Slots, num_clients: int, pact: Pact) -> Opened:
        """The sum of `num_clients` encoded vectors.

        Args:
            slots: [blocks, width], summed modulo `modulus`.
            num_clients: how many were added.
            pact: of the sum.

        Raises:
            ValueError: no sum of so many encoded vectors looks like this.
        """
        front = Front(self.packing.bits)
        digits = self._unpacked(slots, front.size, pact.size)
        digits, spare = np.split(digits, [front.size + pact.size])
        noise = self.shares.tail(num_clients) if self.shares else 0
        least, most = int(digits.min(initial=0)), int(digits.max(initial=0))
        if least < -noise or most > num_clients * (2**self.packing.bits - 1) + noise or spare.any():
            raise garbage(num_clients)
        levels = digits[front.size :] - num_clients * self.half
        total = levels.astype(np.float64) * (pact.scale / self.half)
        found = front.read(digits[: front.size], num_clients, total)
        return replace(found, loss=math.nan) if self.shares else found

    def _noised(
        self, delta: Vector, figures: Figures, pact: Pact, chance: Chance, shares: Shares
    ) -> Slots:
        # A scale that follows the updates, and weights that do, would tell of them unnoised.
        if pact.scale != self.clip:
            raise PrivacyError(
                f"the scale of a sum that is private to users must be the clip, {self.clip}; the "
                f"server's is {pact.scale}. Nothing is sent."
            )
        if figures.weight != 1.0:
            raise PrivacyError(
                "the weight in a sum that is private to users must be 1, whatever the client "
                f'holds; got {figures.weight}. Write [round] weight = "uniform".'
            )
        values = bound(delta, 1.0, self.clip, pact).values
        levels = shares.part(values, chance.rounding) + shares.share(pact.size, chance.secret)
        front = Front(self.packing.bits).write(Figures(1.0), Bounded(values, 0, 0.0))
        digits = np.concatenate([front.astype(np.int64), levels + self.half])
        slots = self.packing.pack(digits, self.blocks(pact.size) * self.width)
        # Digits of one client may be negative: their sum with others' is none.
        reduced: Slots = np.mod(slots, np.int64(self.modulus)).astype(np.uint64)
        return reduced.reshape(-1, self.width)

    def _unpacked(self, slots: Slots, front: int, size: int) -> npt.NDArray[np.int64]:
        """Sums of digits, those of the values less than zero where noise made them so."""
        flat, count = slots.reshape(-1), self.packing.per_slot * slots.size
        if not self.packing.tail:
            return self.packing.unpack(flat, count)
        room = np.zeros(count, np.uint64)
        room[front : front + size] = self.packing.tail
        flat = (flat + self.packing.pack(room, flat.size)) % np.uint64(self.modulus)
        return self.packing.unpack(flat, count) - room.astype(np.int64)

    def _digits(self, values: Vector, unit: float, rng: np.random.Generator) -> Slots:
        levels = values * np.float32(unit * self.half)
        # Products of floats come out a hair above h: -h - 1 would borrow from the digit beside.
        np.clip(levels, -self.half, self.half, out=levels)
        whole = np.floor(levels)
        # Exact, and 1 with the chance of the rest; levels + noise would round up too often.
        levels -= whole
        levels -= rng.random(levels.size, dtype=np.float32)
        whole += np.ceil(levels, out=levels)
        whole += np.float32(self.half)
        digits: Slots = whole.astype(np.uint64)
        return digits


def peak_bin(peak: float) -> int:
    """The quarter octave, 1..255, that holds `peak`; 0 for zero."""
    if peak <= 0.0:
        return 0
    return min(max(math.ceil(4 * (math.log2(peak) - _LOWEST)), 1), NUM_BINS - 1)


def peak_edge(index: int) -> float:
    """The upper edge of a quarter octave; 0 for index 0."""
    return 2.0 ** (index / 4 + _LOWEST) if index else 0.0


def garbage(num_clients: int) -> ValueError:
    """What is said of a sum that is none."""
    return ValueError(
        f"the opened sum must be one of {num_clients} sealed vectors; it is not: at least one "
        "client sent garbage"
    )
