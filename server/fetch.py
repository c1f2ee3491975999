"""Replies fetched from a SuperLink within bounds, so that no node holds up or fills the server.

Flower's own grid waits, for up to two hours, for all parts of a reply that a node has announced,
and takes any number of them of any size; one that cannot be put together ends the run. Here each
reply is fetched as far as it is there, whatever the others do, and is given up by name when it is
too large, cannot be put together, or is not whole by the deadline. What Flower does not offer in
public for this is used in this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, Error, Message, Metadata
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.superlink.grid.http_grid import HttpGrid

Fetch = Callable[[Sequence[str]], list[Message]]
"""(ids of messages that wait for a reply) -> replies that are there, or why one will never be."""

_LANES = 8  # parts of one reply that are fetched side by side
_PART = 5 << 20  # bytes of a part, as Flower cuts arrays
_SPARE_PARTS = 64  # records, and arrays of few bytes
_GIVEN_UP = 2  # as for a client app that raised


@dataclass(slots=True)
class _Partial:
    """A reply of which some parts are here.

    Attributes:
        head: as the SuperLink tells it.
        missing: ids of parts that are not here.
        parts: id -> bytes.
    """

    head: ProtoMessage
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """Id of the message that this replies to."""
        return str(self.head.metadata.reply_to_message_id)

    @property
    def size_bytes(self) -> int:
        return sum(len(part) for part in self.parts.values())


@contextmanager
def fetching(grid: Grid, most_bytes: int) -> Iterator[Fetch]:
    """What fetches replies from `grid`.

    Args:
        grid: of the run; one that is not Flower's over HTTP has its own way.
        most_bytes: of one reply, above which it is given up.
    """
    if not isinstance(grid, HttpGrid):
        yield lambda ids: list(grid.pull_messages(ids))
        return
    with ThreadPoolExecutor(_LANES, "fetch") as lanes:
        yield _Fetcher(grid, most_bytes, lanes).fetch


class _Fetcher:
    def __init__(self, grid: HttpGrid, most_bytes: int, lanes: ThreadPoolExecutor) -> None:
        self._client: Any = grid._runtime_client
        self._grid, self._most, self._lanes = grid, most_bytes, lanes
        self._run_id = grid.run.run_id
        self._begun: dict[str, _Partial] = {}

    def fetch(self, ids: Sequence[str]) -> list[Message]:
        wanted, found = [id_ for id_ in ids if id_ not in self._begun], list[Message]()
        if wanted:
            self._begin(wanted, found)
        for asked in ids:
            if asked in self._begun and (done := self._more(self._begun[asked])) is not None:
                del self._begun[asked]
                found.append(done)
        return found

    def _begin(self, ids: Sequence[str], found: list[Message]) -> None:
        told = self._client.PullMessages(PullAppMessagesRequest(message_ids=ids))
        for head, tree in zip(told.messages_list, told.message_object_trees, strict=True):
            asked = str(head.metadata.reply_to_message_id)
            if asked not in ids or asked in self._begun:
                continue
            parts = _parts_of(tree)
            if len(parts) > _SPARE_PARTS + self._most // _PART:
                found.append(_given_up(head, "too large"))
            else:
                self._begun[asked] = _Partial(head, parts)

    def _more(self, partial: _Partial) -> Message | None:
        """The reply if it is whole now, or the end of it; None to ask again later."""
        pull = make_pull_object_fn_protobuf(
            pull_object_protobuf=self._client.PullObject,
            node=self._grid.node,
            run_id=self._run_id,
        )

        def part(id_: str) -> bytes | None:
            try:
                return pull(id_)
            except ObjectUnavailableError:
                return None

        missing = partial.missing
        for start in range(0, len(missing), _LANES):
            some = missing[start : start + _LANES]
            try:
                pulled = list(self._lanes.map(part, some))
            except ObjectPullError:
                return _given_up(partial.head, "incomplete")
            partial.parts |= {i: p for i, p in zip(some, pulled, strict=True) if p is not None}
            if partial.size_bytes > self._most:
                return _given_up(partial.head, "too large")
            if None in pulled:
                break
        partial.missing = [id_ for id_ in missing if id_ not in partial.parts]
        return None if partial.missing else self._whole(partial)

    def _whole(self, partial: _Partial) -> Message:
        head = partial.head.metadata
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._run_id, message_object_id=head.message_id
            )
        )
        try:
            if sum(_unfolded(part, partial.parts) for part in partial.parts.values()) > self._most:
                return _given_up(partial.head, "too large")
            message = inflate_object_from_contents(head.message_id, partial.parts)
        except Exception:  # a node may have sent anything: the round goes on without it
            return _given_up(partial.head, "malformed message")
        # A node may have written another's id into it.
        if not isinstance(message, Message) or (
            message.metadata.src_node_id != head.src_node_id
            or message.metadata.reply_to_message_id != head.reply_to_message_id
        ):
            return _given_up(partial.head, "malformed message")
        return message


def _unfolded(part: bytes, parts: Mapping[str, bytes]) -> int:
    """Bytes of an array put together: it may name one part a million times."""
    kind, children, _ = get_object_head_values_from_object_content(part)
    if kind != Array.__name__:
        return 0
    named = json.loads(get_object_body(part, Array))["arraychunk_ids"]
    sizes = [len(parts[child]) for child in children]
    return sum(sizes[place] for place in named)


def _parts_of(tree: ObjectTree) -> list[str]:
    return list(dict.fromkeys(str(part.object_id) for part in iterate_object_tree(tree)))


def _given_up(head: ProtoMessage, why: str) -> Message:
    """An error in place of a reply, from the node that should have sent it."""
    told = head.metadata
    metadata = Metadata(
        run_id=told.run_id,
        message_id="",
        src_node_id=told.src_node_id,
        dst_node_id=told.dst_node_id,
        reply_to_message_id=told.reply_to_message_id,
        group_id="",
        created_at=told.created_at,
        ttl=told.ttl,
        message_type=told.message_type,
    )
    return make_message(metadata=metadata, error=Error(_GIVEN_UP, why))
