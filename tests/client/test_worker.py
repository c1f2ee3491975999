"""The worker beside a node that cannot give it all of a message."""

import hashlib
import time
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.task_identity import TaskIdentity

from perennial.client import worker
from perennial.core.errors import RunError


class Hoarder:
    """What a node says of objects: `there` it has, of the others it knows that they are to come."""

    def __init__(self, *there):
        self.there, self.asked = set(there), 0

    def PullObject(self, request):
        self.asked += 1
        here = request.object_id in self.there
        return PullObjectResponse(
            object_found=True, object_available=here, object_content=b"x" if here else b""
        )

    def other(self):
        return "as it was"


def pulled(node, *names):
    """Flower's own reader over the worker's client."""
    client = worker._Impatient(node)
    assert client.other() == "as it was"
    pull = make_pull_object_fn_protobuf(client.PullObject, Node(node_id=1), 1)
    return pull_objects(list(names), pull, initial_backoff=0.02, backoff_cap=0.05)


def test_a_message_that_never_comes_whole_is_given_up(monkeypatch):
    monkeypatch.setattr(worker, "_STALLED_S", 0.5)
    node, started = Hoarder("a"), time.monotonic()
    with pytest.raises(RunError, match="a message must come whole"):
        pulled(node, "a", "b")
    assert time.monotonic() - started > 0.5
    assert node.asked > 5


@pytest.mark.integration
def test_a_message_that_comes_late_is_waited_for_while_it_comes(monkeypatch):
    monkeypatch.setattr(worker, "_STALLED_S", 0.6)
    names = [f"{number}" for number in range(8)]
    node, began = Hoarder(), time.monotonic()
    real = node.PullObject

    def slow(request):
        # A part every 0.2 s: longer together than the wait for one.
        node.there = set(names[: int((time.monotonic() - began) / 0.2)])
        return real(request)

    node.PullObject = slow
    assert set(pulled(node, *names)) == set(names)
    assert time.monotonic() - began > 1.2


def test_a_bundle_that_is_not_on_the_list_is_refused_and_never_run(monkeypatch, caplog):
    ran = []

    def app(message, context):
        ran.append(message)
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setattr(worker, "app", app)
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 3)  # as reading a task's input does
    ours, theirs = (SimpleNamespace(content=text) for text in (b"ours", b"ours, and a line"))
    desk = SimpleNamespace(allowed={hashlib.sha256(ours.content).hexdigest()})
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    reply, outcome, reason = worker._reply(desk, message, None, theirs)
    assert not ran
    assert reply.has_error()
    assert outcome == worker._FAILED
    name = hashlib.sha256(theirs.content).hexdigest()
    assert reason == reply.error.reason == f"bundle {name} is not on this node's list"
    assert name in caplog.text
    reply, outcome, _ = worker._reply(desk, message, None, ours)
    assert ran == [message]
    assert not reply.has_error()
    assert outcome == worker._COMPLETED
