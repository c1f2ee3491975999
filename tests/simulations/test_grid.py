"""The simulated grid keeps Flower's contract, and its faults are seeded and virtual."""

import time

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from perennial.core.config import Faults
from perennial.core.wire import (
    ARRAYS,
    BODY,
    EVALUATE,
    FINISH,
    JOIN,
    PEAK,
    REVEAL,
    SEALED,
    TRAIN,
)
from perennial.server.app import exchange
from perennial.simulations import compat, faults
from perennial.simulations.grid import Nodes, SimulatedGrid

BODY_BYTES = b"\x00\x00\x80\x3f" * 4
app = ClientApp()


@app.train()
@app.train("peak")
@app.train("finish")
@app.evaluate()
@app.query("join")
@app.query("reveal")
def work(message, context):
    calls = context.state.setdefault("calls", MetricRecord({"count": 0}))
    calls["count"] += 1
    metrics = {"count": calls["count"], "partition": context.node_config["partition-id"]}
    array = Array("uint8", (len(BODY_BYTES),), SEALED, BODY_BYTES)
    content = {ARRAYS: ArrayRecord({BODY: array}), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


HERE = "perennial_test_grid_app:app"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The app above under a name that `module:attribute` can reach."""
    import sys

    monkeypatch.setitem(sys.modules, "perennial_test_grid_app", sys.modules[__name__])


def grid(count=4, seed=5, **options):
    return SimulatedGrid(Nodes(HERE, count, seed, {}), **options)


def ask(grid, group="0.0.0", kind="train"):
    content = RecordDict({"task": ConfigRecord({"round": 1})})
    messages = [
        grid.create_message(content, kind, node, group, ttl=30.0) for node in grid.get_node_ids()
    ]
    return list(exchange(grid, messages, 30.0))


def test_it_is_a_flower_grid_with_seeded_ids():
    one, two, other = grid(), grid(), grid(seed=6)
    assert isinstance(one, Grid)
    assert list(one.get_node_ids()) == list(two.get_node_ids())
    assert not set(one.get_node_ids()) & set(other.get_node_ids())
    assert list(grid(count=9).get_node_ids())[:4] == list(one.get_node_ids())


def test_replies_name_their_request_and_their_node():
    with grid() as it:
        replies = ask(it)
        assert {r.metadata.src_node_id for r in replies} == set(it.get_node_ids())
        assert {r.metadata.dst_node_id for r in replies} == {compat.SERVER_NODE}
        assert {r.metadata.group_id for r in replies} == {"0.0.0"}
        partitions = [r.content["metrics"]["partition"] for r in replies]
        assert sorted(partitions) == [0, 1, 2, 3]


@pytest.mark.parametrize("strict", [False, True])
def test_contexts_last_for_the_run(strict):
    with grid(strict_wire=strict) as it:
        ask(it)
        assert [r.content["metrics"]["count"] for r in ask(it)] == [2, 2, 2, 2]


def test_strict_wire_gives_the_same_bytes():
    with grid() as loose, grid(strict_wire=True) as strict:
        bodies = [r.content[ARRAYS][BODY].data for r in ask(loose) + ask(strict)]
    assert set(bodies) == {BODY_BYTES}


def test_send_and_receive_is_lazy():
    with grid() as it:
        content = RecordDict({"task": ConfigRecord({"round": 1})})
        nodes = it.get_node_ids()
        replies = it.send_and_receive([it.create_message(content, "train", n, "g") for n in nodes])
        next(iter(replies))
        done = [c.state.get("calls") is not None for c in it._contexts.values()]
        assert done == [True, False, False, False]


def test_a_hundred_percent_of_each_fault():
    for fault, seen in [
        ("drop_rate", "dropped out"),
        ("straggle_rate", "late"),
    ]:
        started = time.monotonic()
        with grid(table=Faults(**{fault: 1.0})) as it:
            assert {r.error.reason for r in ask(it)} == {seen}
            worked = [c.state.get("calls") is not None for c in it._contexts.values()]
        # A dropped client never works; a straggler does, but too late - in virtual time.
        assert set(worked) == {fault == "straggle_rate"}
        assert time.monotonic() - started < 5


def test_garbage_and_nan_replace_the_body_alone():
    with grid(table=Faults(nan_rate=1.0)) as it:
        body = ask(it)[0].content[ARRAYS][BODY].data
    assert body == b"\x00\x00\xc0\x7f" * 4
    with grid(table=Faults(garbage_rate=1.0)) as it:
        bodies = [r.content[ARRAYS][BODY].data for r in ask(it)]
        again = [r.content[ARRAYS][BODY].data for r in ask(it)]
    assert BODY_BYTES not in bodies
    assert bodies == again
    assert all(len(body) <= len(BODY_BYTES) + 8 for body in bodies)


def test_faults_are_the_same_in_every_run_and_differ_by_round():
    table = Faults(drop_rate=0.2, straggle_rate=0.2, garbage_rate=0.2, nan_rate=0.2)
    drawn = [[faults.draw(table, 3, i, f"0.{r}.0") for i in range(200)] for r in range(3)]
    assert drawn == [[faults.draw(table, 3, i, f"0.{r}.0") for i in range(200)] for r in range(3)]
    assert drawn[0] != drawn[1]
    flat = [fault for round_ in drawn for fault in round_]
    for word in (faults.NONE, faults.DROP, faults.STRAGGLE, faults.GARBAGE, faults.NAN):
        assert abs(flat.count(word) / 600 - 0.2) < 0.08


@pytest.mark.parametrize("kind", [TRAIN, PEAK, FINISH])
@pytest.mark.parametrize("fault", ["drop_rate", "straggle_rate", "garbage_rate", "nan_rate"])
def test_training_and_both_questions_at_a_domain_s_end_meet_faults(kind, fault):
    rates = Faults(**{fault: 1.0})
    with grid(table=rates) as it, grid(table=rates) as again:
        seen = [ask(each, kind=kind) for each in (it, again)]
    for replies in seen:
        assert all(r.has_error() or r.content[ARRAYS][BODY].data != BODY_BYTES for r in replies)
    first, second = ([outcome(reply) for reply in replies] for replies in seen)
    assert first == second


def outcome(reply):
    if reply.has_error():
        return reply.error.reason
    return reply.content[ARRAYS][BODY].data


def test_who_is_lost_at_a_domain_s_end_is_seeded_by_its_place():
    def lost(seed, group, kind):
        with grid(count=40, seed=seed, table=Faults(drop_rate=0.3)) as it:
            nodes = list(it.get_node_ids())
            replies = ask(it, group, kind)
        return {nodes.index(r.metadata.src_node_id) for r in replies if r.has_error()}

    end = lost(5, "0.3.0", FINISH)
    assert 0 < len(end) < 40
    assert lost(5, "0.3.0", FINISH) == end
    assert end not in (lost(6, "0.3.0", FINISH), lost(5, "1.3.0", FINISH), lost(5, "0.4.0", PEAK))


@pytest.mark.parametrize("kind", [EVALUATE, JOIN, REVEAL])
def test_nothing_else_meets_faults(kind):
    with grid(table=Faults(drop_rate=1.0)) as it:
        assert not any(reply.has_error() for reply in ask(it, kind=kind))


def test_a_reply_that_never_comes_ends_with_the_deadline():
    class Silent(SimulatedGrid):
        def pull_messages(self, message_ids):
            return iter(())

    with Silent(Nodes(HERE, 2, 0, {})) as it:
        content = RecordDict({"task": ConfigRecord({"round": 1})})
        messages = [it.create_message(content, "train", n, "g") for n in it.get_node_ids()]
        started = time.monotonic()
        assert list(exchange(it, messages, 0.3)) == []
        assert 0.2 < time.monotonic() - started < 3


def test_message_bytes_come_back_as_they_went():
    message = compat.instruction(
        7, RecordDict({"c": ConfigRecord({"labels": [], "x": ["a"]})}), "train", 9, "g", 5.0
    )
    compat.set_message_id(message, "12")
    back = compat.from_bytes(compat.to_bytes(message))
    assert back.metadata.message_id == "12"
    assert (back.metadata.dst_node_id, back.metadata.run_id) == (9, 7)
    assert dict(back.content["c"]) == {"labels": [], "x": ["a"]}
    error = compat.error_reply(back, compat.TOO_LATE, "late")
    assert compat.from_bytes(compat.to_bytes(error)).error.reason == "late"
