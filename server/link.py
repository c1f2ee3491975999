"""How the server reaches its clients, free of any transport's types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.parts import Reply
from ..core.values import Vector
from ..core.wire import Task


@dataclass(frozen=True, slots=True)
class Link:
    """The server's side of the wire.

    Attributes:
        nodes: () -> ids of the connected clients.
        ask: (message type, vectors by name, task, nodes, deadline in seconds) -> replies as
            they come; after the deadline no more.
    """

    nodes: Callable[[], Iterable[int]]
    ask: Callable[[str, Mapping[str, Vector], Task, Sequence[int], float], Iterable[Reply]]
