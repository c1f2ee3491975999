"""Which clients are asked in a round: a seeded choice that can be repeated and is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ..core.errors import RunError
from ..core.seeds import generator


def choose(
    nodes: Iterable[int], cohort: int, seed: int, domain: int, round: int, attempt: int
) -> list[int]:
    """`cohort` of `nodes` (all of them for 0, or when there are fewer), in rising order.

    The choice depends on the seed, the round and the set of nodes, not on the order in which
    they came.
    """
    there = sorted(set(nodes))
    if not cohort or cohort >= len(there):
        return there
    rng = generator(seed, "cohort", domain, round, attempt)
    return sorted(int(node) for node in rng.choice(there, cohort, replace=False))


def wait(
    nodes: Callable[[], Iterable[int]],
    wanted: int,
    deadline_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """All connected nodes, once there are `wanted` of them.

    Raises:
        RunError: fewer were connected after `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    while len(found := sorted(nodes())) < wanted:
        if time.monotonic() >= end:
            raise RunError(
                f"[round] min_replies = {wanted} needs that many connected clients; "
                f"{len(found)} came within {deadline_s:g} s. Start more clients, or lower it."
            )
        sleep(min(1.0, deadline_s / 10))
    return found
