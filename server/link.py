"""How the server reaches its clients, free of any transport's types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.parts import Reply
from ..core.sums import Pact
from ..core.values import Vector
from ..core.wire import Task


@dataclass(frozen=True, slots=True)
class Question:
    """What the server asks of its clients.

    Attributes:
        kind: message type.
        task: names the round and the domain.
        vectors: by name; the same for all.
        pact: of the sum to which the answers belong; None where nothing is summed.
        notes: what one node alone is told, by node.
        counted: by node, the domains at whose end it was counted; told to that node alone.
    """

    kind: str
    task: Task
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    pact: Pact | None = None
    notes: Mapping[int, bytes] = field(default_factory=dict)
    counted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """The server's side of the wire.

    Attributes:
        nodes: () -> ids of the connected clients.
        ask: (question, nodes, deadline in seconds) -> replies as they come; after the deadline
            no more.
    """

    nodes: Callable[[], Iterable[int]]
    ask: Callable[[Question, Sequence[int], float], Iterable[Reply]]
