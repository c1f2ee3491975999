"""What the server may ask of a counted node once its neighbours dropped out, and the answer.

Bonawitz et al. 2017 (CCS), unmasking round, for masks without a second mask: the request names
who was counted and who dropped out, the answer holds the seeds shared with the latter. A node
sees whether a request fits its own neighbourhood; that all nodes got the same one it cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ..core.sums import Pact
from .cards import check_address, decode, encode, is_key, is_node

FEWEST_KEPT = 2
"""Neighbours of a node that must be counted: one alone, if it colludes, knows the last mask."""

_REQUEST = ("counted", "dropped", "node", "session")
_ANSWER = ("node", "seeds", "session")


@dataclass(frozen=True, slots=True)
class Request:
    """Who is in the sum, and who of one node's neighbours is not; ids ascend.

    Attributes:
        counted: all nodes whose bodies were added.
        dropped: the node's neighbours whose bodies were not.
    """

    counted: Sequence[int]
    dropped: Sequence[int]


def write_request(pact: Pact, node: int, request: Request) -> bytes:
    """Server: the request as bytes for `node`."""
    lists = {"counted": list(request.counted), "dropped": list(request.dropped)}
    return encode({**lists, "node": node, "session": pact.session})


def read_request(data: bytes, pact: Pact, node: int) -> Request:
    """The request for `node` in `data`, its form checked.

    Raises:
        ValueError: it is malformed, or of another session or node.
    """
    values = decode(data, _REQUEST)
    check_address(values, pact, node)
    for name in ("counted", "dropped"):
        found = values[name]
        if not isinstance(found, list) or not all(map(is_node, found)):
            raise ValueError(f"the {name} nodes must be a list of node ids")
        if found != sorted(set(found)):
            raise ValueError(f"the {name} nodes must ascend, each once")
    return Request(values["counted"], values["dropped"])


def check_request(
    request: Request, node: int, neighbours: AbstractSet[int], min_clients: int
) -> None:
    """Client: check that `node` may answer.

    Raises:
        ValueError: the request does not fit its neighbourhood, or would unmask the node itself.
    """
    counted, dropped = set(request.counted), set(request.dropped)
    kept = neighbours & counted
    if node not in counted:
        raise ValueError("this node itself was not counted")
    if dropped & counted:
        raise ValueError("a node is both counted and dropped")
    if not dropped or dropped - neighbours:
        raise ValueError("the dropped nodes must be neighbours of this node")
    if len(counted) < min_clients:
        raise ValueError(f"{len(counted)} clients were counted; at least {min_clients} must be")
    if len(kept) < FEWEST_KEPT:
        raise ValueError(
            f"{len(kept)} neighbours of this node were counted; with fewer than {FEWEST_KEPT} "
            "its own vector could be unmasked"
        )
    if neighbours != kept | dropped:
        raise ValueError("a neighbour of this node is neither counted nor dropped")


def write_answer(pact: Pact, node: int, seeds: Mapping[int, bytes]) -> bytes:
    """Client: the seeds that it shares with each dropped node, as bytes."""
    told = {str(other): seed.hex() for other, seed in seeds.items()}
    return encode({"node": node, "seeds": told, "session": pact.session})


def read_answer(data: bytes, pact: Pact, node: int, dropped: Sequence[int]) -> dict[int, bytes]:
    """Server: the seeds of exactly the `dropped` nodes in the answer of `node`.

    Raises:
        ValueError: it is malformed, of another session or node, or not what was asked for.
    """
    values = decode(data, _ANSWER)
    check_address(values, pact, node)
    seeds = values["seeds"]
    if not isinstance(seeds, dict) or seeds.keys() != {str(other) for other in dropped}:
        raise ValueError(f"node {node} must reveal the seeds of {list(dropped)} and no others")
    if not all(map(is_key, seeds.values())):
        raise ValueError(f"the seeds of node {node} must be 64 hex digits each")
    return {other: bytes.fromhex(seeds[str(other)]) for other in dropped}
