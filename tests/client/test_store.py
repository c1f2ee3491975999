import dataclasses
import json

import numpy as np
import pytest

from perennial.client.store import ClientStore, Kept
from perennial.core.errors import RunError
from perennial.core.values import Ticket

TICKET = Ticket("run", 1, 2, 0, "manifest")
BODY = bytes(range(256)) * 3
KEPT = Kept(np.arange(5, dtype=np.float32), 3.0, 0.25, {"seconds": 0.5}, "0" * 32, BODY)


def same(found, wanted=KEPT):
    """Records with arrays in them do not compare."""
    if found is None:
        return False
    plain = dataclasses.replace(found, delta=wanted.delta)
    return plain == wanted and found.delta.tobytes() == wanted.delta.tobytes()


def opened(folder, client="00001", base="base"):
    return ClientStore(folder, client, base)


@pytest.fixture
def store(tmp_path):
    store = opened(tmp_path)
    store.remember(TICKET, "salt", KEPT, sync=False)
    return store


def test_a_folder_is_made_and_opened_again(tmp_path):
    folder = tmp_path / "a" / "b"
    opened(folder)
    opened(folder)
    assert json.loads((folder / "client.json").read_text())["client"] == "00001"


@pytest.mark.parametrize("other", [{"client": "00002"}, {"base": "another"}])
def test_a_folder_of_another_client_or_base_is_refused(tmp_path, other):
    opened(tmp_path)
    with pytest.raises(
        RunError, match=r"must be the folder of .* it is that of .* a folder of its own"
    ):
        opened(tmp_path, **other)
    opened(tmp_path)


def test_a_folder_of_another_schema_is_refused(tmp_path):
    opened(tmp_path)
    card = tmp_path / "client.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "schema": 99}))
    with pytest.raises(RunError, match="'schema': 99"):
        opened(tmp_path)


def test_nothing_was_answered_yet(tmp_path):
    assert opened(tmp_path).recall(TICKET, "salt") is None


def test_an_answer_is_given_again_by_another_process(store, tmp_path):
    assert same(opened(tmp_path).recall(TICKET, "salt"))


def test_a_second_attempt_is_the_same_round(store):
    again = Ticket("run", 1, 2, 7, "manifest")
    assert same(store.recall(again, "salt"))


@pytest.mark.parametrize(
    ("ticket", "salt"),
    [
        (Ticket("other", 1, 2, 0, "manifest"), "salt"),
        (Ticket("run", 0, 2, 0, "manifest"), "salt"),
        (Ticket("run", 1, 3, 0, "manifest"), "salt"),
        (Ticket("run", 1, 2, 0, "another"), "salt"),
        (TICKET, "pepper"),
    ],
)
def test_another_question_gets_no_old_answer(store, ticket, salt):
    assert store.recall(ticket, salt) is None


def test_only_the_last_answer_is_kept(store):
    later = Ticket("run", 1, 3, 0, "manifest")
    other = dataclasses.replace(KEPT, body=b"later")
    store.remember(later, "salt", other, sync=False)
    assert store.recall(TICKET, "salt") is None
    assert same(store.recall(later, "salt"), other)


def test_an_answer_cut_off_anywhere_is_computed_again(store, tmp_path):
    path = tmp_path / "answer.bin"
    content = path.read_bytes()
    for end in [*range(0, len(content) - len(BODY) + 3), len(content) - 1]:
        path.write_bytes(content[:end])
        assert store.recall(TICKET, "salt") is None, end
    path.write_bytes(content)
    assert store.recall(TICKET, "salt") is not None


def test_an_answer_whose_blocks_never_reached_the_disk_is_computed_again(store, tmp_path):
    path = tmp_path / "answer.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    assert store.recall(TICKET, "salt") is None
    path.write_bytes(bytes(len(content)))
    assert store.recall(TICKET, "salt") is None


def test_a_write_that_stopped_half_way_keeps_the_last_answer(store, tmp_path):
    (tmp_path / ".answer.new").write_bytes(b"half")
    assert same(store.recall(TICKET, "salt"))


def test_an_empty_body_is_an_answer(tmp_path):
    store = opened(tmp_path)
    nothing = Kept(np.zeros(0, np.float32), 0.0, 0.0, {"weight": 0.0})
    store.remember(TICKET, "salt", nothing, sync=False)
    assert same(store.recall(TICKET, "salt"), nothing)


@pytest.mark.parametrize("content", ["", "[]", '"x"', "{"])
def test_a_damaged_card_is_named(tmp_path, content):
    ClientStore(tmp_path, "00001", "base")
    (tmp_path / "client.json").write_text(content)
    with pytest.raises(RunError, match=r"client.json must say whose folder this is"):
        ClientStore(tmp_path, "00001", "base")
