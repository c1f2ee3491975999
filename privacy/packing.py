"""Many small digits in one slot: base-radix packing, whose sums never carry from digit to digit.

With K clients and digits 0..2**b - 1 the radix K * (2**b - 1) + 1 is one more than the largest
sum, so that slots add up digit by digit. The sizing rule for BFV is measured: with t bits of
slots, a modulus of t + 8 + log2(K) / 2 bits leaves three bits of noise budget after K additions
of fresh symmetric ciphertexts at degree 4096.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.uint64]

# The largest prime that SEAL takes.
_LARGEST_PRIME_BITS = 60
# Noise of a public-key encryption at degree 4096 against a symmetric one: the rounding of the
# special prime times a ternary secret is about 15 wide, fresh noise 3.2.
_PUBLIC_BITS = 3


@dataclass(frozen=True, slots=True)
class Packing:
    """Digits in slots.

    Law: `unpack(sum of pack(d_i))` equals `sum of d_i` for up to `capacity` vectors of digits
    below 2**bits, slots added modulo anything larger than radix**per_slot.

    Attributes:
        bits: of a digit.
        capacity: K, the most vectors that are added.
        per_slot: digits in a slot.
    """

    bits: int
    capacity: int
    per_slot: int

    @property
    def radix(self) -> int:
        """One more than the largest sum of digits."""
        largest: int = 2**self.bits - 1
        return self.capacity * largest + 1

    @property
    def slot_bits(self) -> int:
        """Bits of the largest sum of slots."""
        largest: int = self.radix**self.per_slot - 1
        return largest.bit_length()

    def num_slots(self, num_digits: int) -> int:
        """Slots that hold `num_digits`."""
        return -(-num_digits // self.per_slot)

    def pack(self, digits: Slots, num_slots: int) -> Slots:
        """Slots [num_slots] holding `digits` [n], n <= num_slots * per_slot; the rest is zero.

        Digit i lies in slot i modulo num_slots: each step of Horner's rule runs over whole rows.
        """
        rows = np.zeros((self.per_slot, num_slots), np.uint64)
        rows.reshape(-1)[: digits.size] = digits
        slots: Slots = rows[-1].copy()
        for row in rows[-2::-1]:
            slots *= np.uint64(self.radix)
            slots += row
        return slots

    def unpack(self, slots: Slots, num_digits: int) -> npt.NDArray[np.int64]:
        """Digits [num_digits] of `slots`; the last of a slot may be anything if it is no sum."""
        rows = np.empty((self.per_slot, slots.size), np.int64)
        rest = slots.copy()
        for row in rows[:-1]:
            higher = rest // np.uint64(self.radix)
            row[:] = rest - higher * np.uint64(self.radix)
            rest = higher
        rows[-1] = rest
        return rows.reshape(-1)[:num_digits]


def bfv_bits(slot_bits: int, capacity: int, public: bool) -> int:
    """Bits of the ciphertext modulus for a plain modulus of `slot_bits` and `capacity` clients."""
    noise = math.ceil(8 + math.log2(max(capacity, 2)) / 2)
    return slot_bits + noise + (_PUBLIC_BITS if public else 0)


def for_bfv(bits: int, capacity: int, *, public: bool) -> Packing:
    """The packing with the fewest bytes per digit whose modulus SEAL can hold.

    Raises:
        ValueError: not even one digit fits.
    """
    found = [
        (bfv_bits(packing.slot_bits, capacity, public) / packing.per_slot, packing)
        for packing in _candidates(bits, capacity)
        if bfv_bits(packing.slot_bits, capacity, public) <= _LARGEST_PRIME_BITS
    ]
    if not found:
        raise ValueError(
            f"bits = {bits} and capacity = {capacity} must leave a digit sum that fits one slot "
            f"below a {_LARGEST_PRIME_BITS}-bit modulus; lower bits or capacity"
        )
    return min(found, key=lambda pair: pair[0])[1]


def for_words(bits: int, capacity: int, largest: int = 60) -> Packing:
    """The packing with the fewest bits per digit in words of at most `largest` bits.

    Raises:
        ValueError: not even one digit fits.
    """
    found = [p for p in _candidates(bits, capacity) if p.slot_bits <= largest]
    if not found:
        raise ValueError(f"bits = {bits} and capacity = {capacity} must fit {largest}-bit words")
    # Of equals the one with fewer words: there are fewer to mask.
    return min(found, key=lambda packing: (packing.slot_bits / packing.per_slot, -packing.per_slot))


def _candidates(bits: int, capacity: int) -> list[Packing]:
    return [Packing(bits, capacity, count) for count in range(1, 9)]
