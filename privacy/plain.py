"""The sum in the clear: the server sees every update; for trusted servers and for comparison.

The sum does not depend on the order in which updates arrive: every value is rounded to a
multiple of 2**-32 first, so that float64 additions are exact while
`total weight * max |delta| < 2**21`. Thus a run over a network, where the order is chance,
ends with the same bits as a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.parts import SecureSum
from ..core.private import Noise
from ..core.sums import Chance, Figures, Opened, Pact, Party, Scheme
from ..core.values import Vector

# float64 holds integers up to 2**53 exactly; 32 fractional bits leave 21 for weight * delta.
_GRID = float(2**32)
_STEP = 1.0 / _GRID


def build() -> SecureSum:
    """The sum that hides nothing; error per value at most 2**-33 times the total weight."""
    return _PlainSum()


@dataclass(frozen=True, slots=True)
class _PlainSum:
    single_updates: bool = True
    pairwise: bool = False
    drops: bool = True
    scheme: Scheme | None = None
    min_clients: int = 1
    capacity: int = 0
    noise: Noise | None = None

    def sensitivity(self, clip: float, size: int) -> float:
        """The clip, and the rounding of each value to the grid; for a weight of 1."""
        return clip + math.sqrt(size) * _STEP / 2

    def multiplier(self, size: int, counted: int) -> float:
        """0: nobody adds noise before the server does."""
        return 0.0

    def describe(self, cohort: int) -> str:
        """That nothing is hidden."""
        return "in the clear: the server sees every update"

    def scale(self, peak: float, most: float) -> float:
        """0: floats need no scale."""
        return 0.0

    def join(self, party: Party, run: str) -> bytes:
        """Nothing."""
        return b""

    def pair(self, pact: Pact, cards: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """Nothing for anybody."""
        return {}

    def seal(
        self,
        delta: Vector,
        figures: Figures,
        pact: Pact,
        note: bytes,
        party: Party,
        chance: Chance,
    ) -> bytes:
        """`delta` [n] as little-endian float32 bytes; weight and loss travel beside them.

        Raises:
            RunError: the pact is of another size; nothing leaves the client.
        """
        if delta.shape != (pact.size,):
            raise RunError(
                f"the pact must be of the update's {delta.size} values; the server says {pact.size}"
            )
        return np.ascontiguousarray(delta, "<f4").tobytes()

    def add(
        self, total: npt.NDArray[np.float64] | None, body: bytes, weight: float, pact: Pact
    ) -> npt.NDArray[np.float64]:
        """The running sum of weight * delta on the grid, float64 [n].

        Raises:
            ValueError: the body is not the pact's number of float32 values.
        """
        term = self.single(body, pact).astype(np.float64)
        term *= _GRID
        np.rint(term, out=term)
        term *= weight
        if total is None:
            return term
        total += term
        return total

    def single(self, body: bytes, pact: Pact) -> Vector:
        """The delta [n] inside `body`.

        Raises:
            ValueError: the body is not the pact's number of float32 values.
        """
        if len(body) != 4 * pact.size:
            raise ValueError(f"the body must be {4 * pact.size} bytes of float32; got {len(body)}")
        return np.frombuffer(body, "<f4")

    def ask(
        self, pact: Pact, notes: Mapping[int, bytes], counted: Collection[int]
    ) -> Mapping[int, bytes]:
        """Nothing from anybody."""
        return {}

    def reveal(self, pact: Pact, note: bytes, party: Party) -> bytes:
        """Refused: there is nothing to reveal.

        Raises:
            RunError: always.
        """
        raise RunError("a sum in the clear has nothing to reveal; the server must not ask")

    def answers(self, pact: Pact, node: int, ask: bytes, reveal: bytes) -> bool:
        """Never: nothing is asked."""
        return False

    def close(self, total: npt.NDArray[np.float64], pact: Pact) -> bytes:
        """The total as bytes."""
        return total.tobytes()

    def result(
        self,
        opened: bytes,
        pact: Pact,
        counted: Collection[int],
        asks: Mapping[int, bytes],
        reveals: Mapping[int, bytes],
    ) -> Opened:
        """The weighted sum of the deltas; the weights are the server's to add."""
        return Opened(np.frombuffer(opened) / _GRID, float("nan"))
