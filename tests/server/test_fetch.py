"""Replies from a SuperLink: whole ones whatever the others do, and bad ones given up by name."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from perennial.core import wire
from perennial.server.fetch import fetching
from perennial.simulations.compat import empty_run, instruction, set_message_id


def sent(node, body, claimed=None):
    """What a node gives a SuperLink in answer to message `m<node>`: its reply, part by part."""
    asked = instruction(1, RecordDict({"c": ConfigRecord({"a": 1})}), "train", node, "g", 60.0)
    set_message_id(asked, f"m{node}")
    array = Array("uint8", (len(body),), wire.SEALED, body)
    content = RecordDict({wire.ARRAYS: ArrayRecord({wire.BODY: array})})
    reply = Message(content, reply_to=asked)
    head = message_to_proto(reply)
    if claimed is not None:
        reply.metadata.__dict__["_src_node_id"] = claimed
    set_message_id(reply, reply.object_id)
    head.metadata.message_id = reply.object_id
    parts = {id_: part.deflate() for id_, part in get_all_nested_objects(reply).items()}
    return head, get_object_tree(reply), parts


class Link:
    """A SuperLink's side of the runtime interface, as far as replies go."""

    def __init__(self):
        self.heads, self.parts, self.absent, self.lost, self.confirmed = {}, {}, set(), set(), []

    def add(self, node, body=b"sum", **options):
        head, tree, parts = sent(node, body, **options)
        self.heads[f"m{node}"] = head, tree
        self.parts |= parts
        return list(parts)

    def PullMessages(self, request):
        found = [self.heads.pop(id_) for id_ in request.message_ids if id_ in self.heads]
        return PullAppMessagesResponse(
            messages_list=[head for head, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request):
        id_ = request.object_id
        return PullObjectResponse(
            object_found=id_ not in self.lost,
            object_available=id_ not in self.absent,
            object_content=self.parts.get(id_, b""),
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


class Grid(HttpGrid):
    """Flower's own grid over that link."""

    def __init__(self, link):
        super().__init__(token="none")
        self.link = link
        self.set_run(empty_run(1))

    @property
    def _runtime_client(self):
        return self.link


@pytest.fixture
def link():
    return Link()


def fetched(fetch, *nodes):
    """node -> the body of its reply, or why there is none."""
    return {
        m.metadata.src_node_id: m.error.reason
        if m.has_error()
        else m.content[wire.ARRAYS][wire.BODY].data
        for m in fetch([f"m{node}" for node in nodes])
    }


def test_replies_come_as_they_are_and_one_that_is_not_whole_holds_up_nobody(link):
    link.add(11)
    slow = link.add(12, b"late")
    link.absent = set(slow[-2:])
    with fetching(Grid(link), 1 << 20) as fetch:
        assert fetched(fetch, 11, 12, 13) == {11: b"sum"}
        assert fetched(fetch, 12, 13) == {}
        link.absent = set()
        link.add(13, b"third")
        assert fetched(fetch, 12, 13) == {12: b"late", 13: b"third"}
    assert len(link.confirmed) == 3


def test_what_is_too_large_or_lost_is_given_up_by_its_node_and_name(link):
    link.add(11)
    link.add(12, bytes(2 << 20))
    link.lost = set(link.add(13, b"gone")[-1:])
    with fetching(Grid(link), 1 << 20) as fetch:
        found = fetched(fetch, 11, 12, 13)
    assert found == {11: b"sum", 12: "too large", 13: "incomplete"}
    assert len(link.confirmed) == 1


def test_one_part_that_is_named_again_and_again_is_too_large(link):
    head, tree, parts = sent(12, bytes(40 << 20))  # eight times the same five MB
    assert sum(map(len, parts.values())) < 6 << 20
    link.heads["m12"], link.parts = (head, tree), parts
    with fetching(Grid(link), 20 << 20) as fetch:
        assert fetched(fetch, 12) == {12: "too large"}
    link.heads["m12"] = head, tree
    with fetching(Grid(link), 41 << 20) as fetch:
        assert fetched(fetch, 12) == {12: bytes(40 << 20)}


def test_a_tree_of_too_many_parts_is_not_fetched_at_all(link):
    link.add(11, b"x")
    tree = link.heads["m11"][1]
    for number in range(200):
        tree.children.add(object_id=f"{number:064x}")
    with fetching(Grid(link), 1 << 20) as fetch:
        assert fetched(fetch, 11) == {11: "too large"}


def test_what_cannot_be_put_together_ends_its_own_reply_alone(link):
    ids = link.add(11)
    link.add(12)
    link.parts[ids[0]] = b"Nothing 0\0"
    for odd in (b"", b"\xff" * 40, b"Message  3\0abc"):
        link.add(13, b"y" + odd)
        with fetching(Grid(link), 1 << 20) as fetch:
            whole = link.heads["m13"][0].metadata.message_id
            link.parts[whole] = odd
            assert fetched(fetch, 13) == {13: "malformed message"}
    with fetching(Grid(link), 1 << 20) as fetch:
        found = fetched(fetch, 11, 12)
    assert found[11] == "malformed message"
    assert found[12] in (b"sum", "malformed message")  # equal parts are one part to Flower


def test_a_reply_under_another_nodes_id_is_malformed(link):
    link.add(11, b"mine", claimed=12)
    with fetching(Grid(link), 1 << 20) as fetch:
        assert fetched(fetch, 11) == {11: "malformed message"}
