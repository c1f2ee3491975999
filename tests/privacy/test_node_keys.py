"""Signatures of answers: by the node's own key, over every byte, and nobody else's."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from perennial.core import plugins
from perennial.core.errors import DataError, RunError
from perennial.core.signed import Signatures, statement
from perennial.core.values import Ticket
from perennial.privacy.node_keys import make_node_key

TICKET = Ticket("run-1", 2, 3, 0, "f00d")


def load(**options):
    return plugins.load("privacy", "node_keys", options, Signatures)


@pytest.fixture
def nodes(tmp_path):
    """Two nodes, 7 and 8, and the server's book of them."""
    book = {}
    for node in (7, 8):
        make_node_key(tmp_path / f"{node}.key", tmp_path / f"{node}.pub", str(node))
        public = load_ssh_public_key((tmp_path / f"{node}.pub").read_bytes())
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        book[str(node)] = pem.decode()
    (tmp_path / "nodes.json").write_text(json.dumps(book))
    return tmp_path


def text(kind="train", node=7, ticket=TICKET, session="0" * 32, body=b"sum", **numbers):
    return statement(kind, node, ticket, session, body, {"weight": 3.0, **numbers})


def test_a_signature_holds_for_its_node_and_every_part_of_what_was_signed(nodes):
    signed = load(key=str(nodes / "7.key")).sign(text())
    book = load(nodes=str(nodes / "nodes.json"))
    assert book.holds(7, signed, text())
    others = [
        text(kind="evaluate"),
        text(node=8),
        text(session="1" * 32),
        text(body=b"sun"),
        text(weight=4.0),
        *(
            text(ticket=replace(TICKET, **{name: value}))
            for name, value in (
                ("run", "run-2"),
                ("domain", 1),
                ("round", 4),
                ("attempt", 1),
                ("manifest", "beef"),
            )
        ),
    ]
    assert not any(book.holds(7, signed, other) for other in others)
    assert not book.holds(8, signed, text())
    assert not book.holds(9, signed, text())  # nobody knows it
    assert not any(book.holds(7, odd, text()) for odd in (b"", b"\0", signed[:-1], signed + b"\0"))


def test_another_nodes_key_signs_nothing_for_this_one(nodes):
    book = load(nodes=str(nodes / "nodes.json"))
    forged = load(key=str(nodes / "8.key")).sign(text())
    assert not book.holds(7, forged, text())


def test_the_book_follows_who_is_let_in_and_out(nodes):
    book = load(nodes=str(nodes / "nodes.json"))
    signed = load(key=str(nodes / "8.key")).sign(text(node=8))
    assert book.holds(8, signed, text(node=8))
    left = json.loads((nodes / "nodes.json").read_text())
    del left["8"]
    (nodes / "fresh").write_text(json.dumps(left))
    (nodes / "fresh").rename(nodes / "nodes.json")
    assert not book.holds(8, signed, text(node=8))


def test_files_that_hold_something_else_are_named(nodes):
    with pytest.raises(DataError, match="node's private key"):
        load(key=str(nodes / "7.pub"))
    with pytest.raises(DataError, match="public keys of nodes"):
        load(nodes=str(nodes / "none.json"))
    for odd in ("{", "[]", '{"7": "no key"}', '{"seven": ""}'):
        (nodes / "odd.json").write_text(odd)
        with pytest.raises(DataError, match="public keys of nodes"):
            load(nodes=str(nodes / "odd.json"))
    with pytest.raises(RunError, match="none is named"):
        load().sign(b"text")
