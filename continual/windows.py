"""Windows: how records are cut into them, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.parts import Indices

LEAST = 20
"""Fewest records of a window, or of what it is compared with, that say anything."""

_LEAST_SHARE = 0.5  # of a window: with fewer records there is none


@dataclass(frozen=True, slots=True)
class Settings:
    """How windows are judged.

    Attributes:
        window: records of a window.
        false_alarms: share of windows without drift whose distance may exceed a threshold, 0..1.
        present: smallest share of the labels that a window may hold and still be no drift, 0..1.
        apart: share of a label's records, on either side of one, that it is not compared with
            when thresholds are found, 0..0.4.
        capacity: most records of a reference.
    """

    window: int = 100
    false_alarms: float = 0.05
    present: float = 0.44
    apart: float = 0.1
    capacity: int = 2000


def cut(count: int, window: int) -> list[Indices]:
    """Positions of `count` records in windows of about `window`, in order; none of too few.

    Args:
        count: of the records.
        window: records of a window; what would be left over is shared out.
    """
    if count < max(LEAST, _LEAST_SHARE * window):
        return []
    return np.array_split(np.arange(count), max(1, round(count / window)))
