"""Many small digits in one slot: base-radix packing, whose sums never carry from digit to digit.

With K clients and digits 0..2**b - 1 the radix K * (2**b - 1) + 1 is one more than the largest
sum, so that slots add up digit by digit. Where clients add noise, which may be negative, the radix
is wider by the noise of a full sum on either side.

The sizing rule for BFV is measured: with t bits of slots, a modulus of t + 8 + log2(K) / 2 bits
leaves three bits of noise budget after K additions of fresh symmetric ciphertexts at degree 4096.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.uint64]
_Int = TypeVar("_Int", np.uint64, np.int64)

# The largest prime that SEAL takes.
_LARGEST_PRIME_BITS = 60
# Noise of a public-key encryption at degree 4096 against a symmetric one: the rounding of the
# special prime times a ternary secret is about 15 wide, fresh noise 3.2.
_PUBLIC_BITS = 3


@dataclass(frozen=True, slots=True)
class Packing:
    """Digits in slots.

    Law: `unpack(sum of pack(d_i))` equals `sum of d_i` for up to `capacity` vectors of digits
    below 2**bits, slots added modulo anything of radix**per_slot or more. With noise, the sum of
    the digits plus `tail` in each must be 0..radix - 1.

    Attributes:
        bits: of a digit.
        capacity: K, the most vectors that are added.
        per_slot: digits in a slot.
        tail: most that noise takes from a sum of digits, or adds to it.
    """

    bits: int
    capacity: int
    per_slot: int
    tail: int = 0

    @property
    def radix(self) -> int:
        """One more than the largest sum of digits, noise on either side included."""
        largest: int = 2**self.bits - 1
        return self.capacity * largest + 1 + 2 * self.tail

    @property
    def slot_bits(self) -> int:
        """Bits of the largest sum of slots."""
        largest: int = self.radix**self.per_slot - 1
        return largest.bit_length()

    def num_slots(self, num_digits: int) -> int:
        """Slots that hold `num_digits`."""
        return -(-num_digits // self.per_slot)

    def pack(self, digits: npt.NDArray[_Int], num_slots: int) -> npt.NDArray[_Int]:
        """Slots [num_slots] holding `digits` [n], n <= num_slots * per_slot; the rest is zero.

        Digit i lies in slot i modulo num_slots: each step of Horner's rule runs over whole rows.
        Signed digits make signed slots.
        """
        rows = np.zeros((self.per_slot, num_slots), digits.dtype)
        rows.reshape(-1)[: digits.size] = digits
        slots: npt.NDArray[_Int] = rows[-1].copy()
        for row in rows[-2::-1]:
            slots *= digits.dtype.type(self.radix)
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


def for_bfv(bits: int, capacity: int, *, public: bool, tail: int = 0) -> Packing:
    """The packing with the fewest bytes per digit whose modulus SEAL can hold.

    Raises:
        ValueError: not even one digit fits.
    """
    found = [
        (bfv_bits(packing.slot_bits, capacity, public) / packing.per_slot, packing)
        for packing in _candidates(bits, capacity, tail)
        if bfv_bits(packing.slot_bits, capacity, public) <= _LARGEST_PRIME_BITS
    ]
    if not found:
        raise ValueError(
            f"{_wanted(bits, capacity, tail)} must leave a digit sum that fits one slot "
            f"below a {_LARGEST_PRIME_BITS}-bit modulus; lower bits or capacity{_or_noise(tail)}"
        )
    return min(found, key=lambda pair: pair[0])[1]


def for_words(bits: int, capacity: int, largest: int = 60, *, tail: int = 0) -> Packing:
    """The packing with the fewest bits per digit in words of at most `largest` bits.

    Raises:
        ValueError: not even one digit fits.
    """
    found = [p for p in _candidates(bits, capacity, tail) if p.slot_bits <= largest]
    if not found:
        wanted, remedy = _wanted(bits, capacity, tail), f"lower bits or capacity{_or_noise(tail)}"
        raise ValueError(f"{wanted} must fit {largest}-bit words; {remedy}")
    # Of equals the one with fewer words: there are fewer to mask.
    return min(found, key=lambda packing: (packing.slot_bits / packing.per_slot, -packing.per_slot))


def _candidates(bits: int, capacity: int, tail: int) -> list[Packing]:
    return [Packing(bits, capacity, count, tail) for count in range(1, 9)]


def _wanted(bits: int, capacity: int, tail: int) -> str:
    noise = f" and noise of up to {tail} levels either way" if tail else ""
    return f"bits = {bits} and capacity = {capacity}{noise}"


def _or_noise(tail: int) -> str:
    return ", or the noise multiplier and clip of [user_privacy]" if tail else ""
