"""Attack drill: what an attacker gets from recorded updates, bare and under each protection.

Every number is measured on updates that are trained here and now by the client's own code. The
attacker is strong: he knows the model, the parameters that were sent, and all candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .inversion import inversion
from .membership import membership
from .trial import Trial


def drill(trial: Trial, say: Callable[[str], None], *, quick: bool = False) -> dict[str, Any]:
    """Both halves of the drill as plain values: `membership` and `inversion`.

    Args:
        trial: of the config.
        say: gets a line now and then.
        quick: fewer records.
    """
    who = membership(trial, say, 40 if quick else 120)
    what = inversion(trial, 3 if quick else 6, 50 if quick else 100, say)
    return {
        "membership": [
            {
                "key": one.view.key,
                "name": one.view.name,
                "area": one.area,
                "found": one.found,
                "members": one.members,
                "curve": [list(point) for point in one.curve],
            }
            for one in who
        ],
        "inversion": {
            "records": what.records,
            "candidates": what.candidates,
            "frozen": what.frozen,
            "example": what.example,
            "readings": [
                {
                    "key": one.view.key,
                    "name": one.view.name,
                    "tokens": one.tokens,
                    "named": one.named,
                    "example": one.example,
                }
                for one in what.readings
            ],
        },
    }
