"""Which clients share a mask: a random ring in which each knows its nearest on either side.

Bell, Bonawitz, Gascón, Lepoint and Raykova 2020, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead" (CCS 2020, eprint 2020/704): masks between few neighbours
hide as well as masks between all, while those who neither collude nor drop out stay connected:
the server then learns their sum and nothing finer. The bound here is simpler than theirs, which
also counts shares of secrets that this package does not use.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection

_SYSTEM = random.SystemRandom()


def neighbours_for(cohort: int, collusion: float, bits: int = 40) -> int:
    """The smallest even number of neighbours with `cut_bits` >= `bits`; at most cohort - 1.

    Args:
        cohort: number of clients, >= 2.
        collusion: share of them that may collude or drop out, in (0, 1).
        bits: the chance of a cut is to be at most 2**-bits per sum.

    Raises:
        ValueError: an argument is out of its range.
    """
    if cohort < 2:
        raise ValueError(f"a graph needs at least 2 nodes; got {cohort}")
    k = 2
    while k < cohort - 1 and cut_bits(cohort, k, collusion) < bits:
        k += 2
    return min(k, cohort - 1)


def cut_bits(cohort: int, k: int, collusion: float) -> float:
    """-log2 of a bound on the chance that a ring falls apart; inf where all know all.

    Let a share `collusion` of the n nodes, chosen without a look at the ring, collude or be gone.
    To cut the others apart (or one of them off), two disjoint runs of k / 2 neighbours on the
    ring must consist of such nodes. There are at most C(n, 2) pairs of runs, and each pair holds
    k places that are all bad with probability at most collusion**k, so that
    P(cut) <= C(n, 2) * collusion**k by the union bound. A server that picks the drop-outs or the
    ring itself is outside this bound.

    Raises:
        ValueError: `collusion` is not in (0, 1).
    """
    if not 0.0 < collusion < 1.0:
        raise ValueError(f"collusion must be above 0 and below 1; got {collusion}")
    if k >= cohort - 1:
        return math.inf
    return -k * math.log2(collusion) - math.log2(math.comb(cohort, 2))


def ring_graph(nodes: Collection[int], k: int) -> dict[int, tuple[int, ...]]:
    """Neighbours of each node, ascending: k / 2 on either side of a random ring.

    All others where k >= n - 1. The order on the ring comes from the operating system: nobody
    can foretell it, and no seed of the run repeats it.

    Raises:
        ValueError: a node comes twice, or k is odd or below 2 where not all know all.
    """
    ring = list(nodes)
    num = len(ring)
    if len(set(ring)) != num:
        raise ValueError("every node must come once")
    if k >= num - 1:
        return {node: tuple(sorted(set(ring) - {node})) for node in ring}
    if k < 2 or k % 2:
        raise ValueError(f"k must be even and at least 2 on a ring; got {k}")
    _SYSTEM.shuffle(ring)
    steps = [step for far in range(1, k // 2 + 1) for step in (-far, far)]
    return {node: tuple(sorted(ring[(i + s) % num] for s in steps)) for i, node in enumerate(ring)}
