"""The sum in the clear: the server sees every update; for trusted servers and for comparison.

The sum does not depend on the order in which updates arrive: every value is rounded to a
multiple of 2**-32 first, so that float64 additions are exact while
`total weight * max |delta| < 2**21`. Thus a run over a network, where the order is chance,
ends with the same bits as a simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.parts import SecureSum
from ..core.values import Ticket, Vector

# float64 holds integers up to 2**53 exactly; 32 fractional bits leave 21 for weight * delta.
_GRID = float(2**32)


def build() -> SecureSum:
    """The sum that hides nothing; error per value at most 2**-33 times the total weight."""
    return _PlainSum()


@dataclass(frozen=True, slots=True)
class _PlainSum:
    single_updates: bool = True

    def seal(self, delta: Vector, weight: float, ticket: Ticket) -> bytes:
        """`delta` [n] as little-endian float32 bytes; the weight travels beside them."""
        return np.ascontiguousarray(delta, "<f4").tobytes()

    def add(
        self, total: npt.NDArray[np.float64] | None, body: bytes, weight: float, size: int
    ) -> npt.NDArray[np.float64]:
        """The running sum of weight * delta on the grid, float64 [size].

        Raises:
            ValueError: the body is not `size` float32 values.
        """
        term = self.read(body, size).astype(np.float64)
        term *= _GRID
        np.rint(term, out=term)
        term *= weight
        if total is None:
            return term
        total += term
        return total

    def read(self, body: bytes, size: int) -> Vector:
        """The delta [size] inside `body`.

        Raises:
            ValueError: the body is not `size` float32 values.
        """
        if len(body) != 4 * size:
            raise ValueError(f"the body must be {4 * size} bytes of float32; got {len(body)}")
        return np.frombuffer(body, "<f4")

    def open(self, total: npt.NDArray[np.float64], ticket: Ticket) -> npt.NDArray[np.float64]:
        """The weighted sum of the deltas, float64 [n]."""
        return total / _GRID
