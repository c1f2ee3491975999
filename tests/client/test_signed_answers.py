"""A client's answer, over Flower's own bytes, at a server that asks for signatures."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from test_client_app import context, message, pact_of, task  # noqa: F401

from perennial.client import app as client_app
from perennial.core import plugins, signed, wire
from perennial.core.signed import NODE_KEY, Signatures
from perennial.privacy.node_keys import make_node_key
from perennial.server.app import proven, reply
from perennial.server.link import Question
from perennial.simulations.compat import from_bytes, to_bytes


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Nodes 11, which is asked, and 12; the server's signatures."""
    book = {}
    for node in (11, 12):
        make_node_key(tmp_path / f"{node}.key", tmp_path / f"{node}.pub", str(node))
        public = load_ssh_public_key((tmp_path / f"{node}.pub").read_bytes())
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        book[str(node)] = pem.decode()
    (tmp_path / "nodes.json").write_text(json.dumps(book))
    monkeypatch.setenv(NODE_KEY, str(tmp_path / "11.key"))
    options = {"nodes": str(tmp_path / "nodes.json")}
    return plugins.load("privacy", "node_keys", options, Signatures)


def judged(answer, asked, keys, kind="train", **pact):
    carried = from_bytes(to_bytes(answer))
    question = Question(kind, asked, pact=replace(pact_of(asked), **pact))
    return proven(reply(carried), carried, question, keys)


def test_a_signed_answer_counts_and_says_what_it_said(task, keys, tmp_path):  # noqa: F811
    answer = client_app.train(message(task), context(tmp_path))
    found = judged(answer, task, keys)
    assert not found.error
    assert found == reply(answer)
    assert found.body
    assert found.metrics["weight"] > 0


def test_what_was_changed_on_the_way_does_not_count(task, keys, tmp_path):  # noqa: F811
    def answer():
        return client_app.train(message(task), context(tmp_path))

    numbers = answer()
    numbers.content[wire.METRICS] = MetricRecord({**numbers.content[wire.METRICS], "weight": 1e6})
    body = answer()
    data = bytearray(body.content[wire.ARRAYS][wire.BODY].data)
    data[0] ^= 1
    array = Array("uint8", (len(data),), wire.SEALED, bytes(data))
    body.content[wire.ARRAYS] = ArrayRecord({wire.BODY: array})
    bare = answer()
    del bare.content[signed.SIGNATURE]
    odd = answer()
    odd.content[signed.SIGNATURE] = ConfigRecord({signed.VALUE: "text"})
    for sent, cause in (
        (numbers, "signature of another"),
        (body, "signature of another"),
        (bare, "not signed"),
        (odd, "not signed"),
    ):
        found = judged(sent, task, keys)
        assert (found.error, found.body, found.metrics) == (cause, b"", None)


def test_another_nodes_signature_does_not_count(task, keys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv(NODE_KEY, str(tmp_path / "12.key"))
    answer = client_app.train(message(task), context(tmp_path))
    assert judged(answer, task, keys).error == "signature of another"


def test_an_answer_that_is_sent_again_for_another_sum_does_not_count(task, keys, tmp_path):  # noqa: F811
    answer = client_app.train(message(task), context(tmp_path))
    assert judged(answer, task, keys, session="1" * 32).error == "signature of another"
    assert judged(answer, task, keys, kind="train.finish").error == "signature of another"
    later = replace(task, ticket=replace(task.ticket, round=1))
    # It says itself that it is for another round; claiming this one breaks the signature.
    assert judged(answer, later, keys).ticket["round"] == 0
    answer.content[wire.TASK] = ConfigRecord({**answer.content[wire.TASK], "round": 1})
    assert judged(answer, later, keys).error == "signature of another"
