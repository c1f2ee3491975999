"""One round by hand: two clients, a three-number weight; and every reply that does not count."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from perennial.core import plugins
from perennial.core.parts import Reply, SecureSum, Strategy
from perennial.core.sums import Chance, Figures, Pact, Party
from perennial.core.values import Manifest, ServerState, Ticket
from perennial.server.round import Terms, close, collect, judge, mean, opened_sum

TICKET = Ticket(run="r", domain=0, round=0, attempt=0, manifest="m")
PACT = Pact("r", 0, 0, 0, "m", "0" * 32, 3, 0.0, "")
TERMS = Terms(TICKET, PACT, nodes=frozenset({1, 2, 3}), max_change=8.0, max_weight=1000.0)
PLAIN = plugins.load("privacy", "plain", {}, SecureSum)
FEDAVG = plugins.load("strategies", "fedavg", {}, Strategy)
MEDIAN = plugins.load("strategies", "median", {}, Strategy)


def sealed(delta):
    party = Party(1, Path())
    pact = replace(PACT, size=delta.size)
    return PLAIN.seal(delta, Figures(1.0), pact, b"", party, Chance(np.random.default_rng(0)))


def mean_of(tally):
    if tally.total is None:
        return np.zeros(3)
    return mean(opened_sum(tally, PLAIN.close(tally.total, PACT), PACT, PLAIN, {}, {}))


def closed(before, tally, places, rule=None):
    return close(before, mean_of(tally).astype(np.float32), places, rule or FEDAVG)


def answer(node, delta, weight=1.0, loss=0.5, **changes):
    delta = np.asarray(delta, np.float32)
    metrics = {"weight": weight, "loss": loss, "seconds": 0.1}
    reply = Reply(node, sealed(delta), asdict(TICKET), metrics)
    return replace(reply, **changes)


def state(*params):
    return ServerState(round=0, domain=0, params=np.array(params, np.float32))


def test_two_clients_and_three_numbers_by_hand():
    replies = [answer(1, [1, 0, -2], weight=1), answer(2, [4, 2, 1], weight=3)]
    tally = collect(replies, replace(TERMS, nodes=frozenset({1, 2})), PLAIN)
    after = closed(state(10, 20, 30), tally, [slice(0, 3)])
    # (1*1 + 3*4)/4, (1*0 + 3*2)/4, (1*-2 + 3*1)/4
    assert after.params.tolist() == [13.25, 21.5, 30.25]
    assert (after.round, after.domain) == (1, 0)
    assert not tally.rejected


def test_only_the_tensors_that_travel_move():
    manifest = Manifest(("a", "b", "c"), ((1,), (3,), (1,)))
    tally = collect([answer(1, [1, 2, 3])], replace(TERMS, nodes=frozenset({1})), PLAIN)
    after = closed(state(0, 0, 0, 0, 9), tally, manifest.slices({"b"}))
    assert after.params.tolist() == [0, 1, 2, 3, 9]


def test_the_state_given_is_not_changed():
    before = state(1, 1, 1)
    tally = collect([answer(1, [1, 1, 1])], replace(TERMS, nodes=frozenset({1})), PLAIN)
    closed(before, tally, [slice(0, 3)])
    assert before.params.tolist() == [1, 1, 1]
    assert before.round == 0


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (answer(9, [0, 0, 0]), "not asked"),
        (Reply(1, error="train: DataError"), "train: DataError"),
        (answer(1, [0, 0, 0], ticket=None), "wrong ticket"),
        (answer(1, [0, 0, 0], ticket={**asdict(TICKET), "round": 1}), "wrong ticket"),
        (answer(1, [0, 0, 0], ticket={**asdict(TICKET), "manifest": "x"}), "wrong ticket"),
        (answer(1, [0, 0, 0], ticket={"run": "r"}), "wrong ticket"),
        (answer(1, [0, 0]), "wrong length"),
        (answer(1, [0, 0, 0], body=b""), "wrong length"),
        (answer(1, [0, 0, 0], body=b"12345678901"), "wrong length"),
        (answer(1, [0, math.nan, 0]), "not finite"),
        (answer(1, [0, math.inf, 0]), "not finite"),
        (answer(1, [0, -math.inf, 0]), "not finite"),
        (answer(1, [0, 9, 0]), "change out of range"),
        (answer(1, [0, -9, 0]), "change out of range"),
        (answer(1, [0, 0, 0], weight=-1.0), "weight out of range"),
        (answer(1, [0, 0, 0], weight=1e9), "weight out of range"),
        (answer(1, [0, 0, 0], weight=math.nan), "weight out of range"),
        (answer(1, [0, 0, 0], weight=0.3), "weight not whole"),
        (answer(1, [0, 0, 0], metrics=None), "weight out of range"),
        (answer(1, [0, 0, 0], metrics={"weight": "many"}), "weight out of range"),
    ],
)
def test_a_reply_that_does_not_count_is_named_and_left_out(reply, cause):
    assert judge(reply, TERMS, PLAIN).cause == cause
    good = answer(2, [1, 1, 1])
    tally = collect([reply, good], TERMS, PLAIN)
    assert mean_of(tally).tolist() == [1, 1, 1]
    assert tally.rejected[cause] >= 1
    assert [verdict.node for verdict in tally.accepted] == [2]


def test_a_second_answer_of_one_node_does_not_count():
    tally = collect([answer(1, [1, 1, 1]), answer(1, [5, 5, 5])], TERMS, PLAIN)
    assert tally.rejected["answered twice"] == 1
    assert mean_of(tally).tolist() == [1, 1, 1]


def test_who_was_asked_and_never_answered_is_counted():
    tally = collect([answer(2, [1, 1, 1])], TERMS, PLAIN)
    assert tally.rejected == {"no reply": 2}


def test_clients_without_records_weigh_nothing():
    tally = collect([answer(1, [0, 0, 0], weight=0), answer(2, [2, 2, 2], weight=5)], TERMS, PLAIN)
    assert mean_of(tally).tolist() == [2, 2, 2]
    empty = collect([answer(1, [0, 0, 0], weight=0)], TERMS, PLAIN)
    assert mean_of(empty).tolist() == [0, 0, 0]


def test_the_order_of_arrival_changes_no_bit():
    rng = np.random.default_rng(0)
    nodes = frozenset(range(50))
    replies = [answer(n, rng.normal(size=3) / 7, weight=float(n + 1)) for n in nodes]
    terms = replace(TERMS, nodes=nodes)
    first = mean_of(collect(replies, terms, PLAIN))
    for _ in range(20):
        rng.shuffle(replies)
        assert mean_of(collect(replies, terms, PLAIN)).tobytes() == first.tobytes()


def test_a_rule_over_single_updates_gets_them_in_the_order_of_nodes():
    replies = [answer(3, [7, 7, 7]), answer(1, [1, 2, 3]), answer(2, [2, 0, 4])]
    tally = collect(replies, TERMS, PLAIN, single=True)
    moved = MEDIAN.combine([tally.updates[node] for node in sorted(tally.updates)])
    after = close(state(0, 0, 0), moved, [slice(0, 3)], MEDIAN)
    assert after.params.tolist() == [2, 2, 4]


def test_replies_are_taken_one_at_a_time():
    alive = []

    class Body(bytes):
        def __del__(self):
            alive.remove(id(self))

    def replies():
        for node in range(200):
            body = Body(sealed(np.ones(3, np.float32)))
            alive.append(id(body))
            yield answer(node, [1, 1, 1], body=body)
            del body
            assert len(alive) <= 2

    terms = replace(TERMS, nodes=frozenset(range(200)))
    assert len(collect(replies(), terms, PLAIN).accepted) == 200


def test_observers_see_every_verdict_as_it_falls():
    seen = []
    collect([answer(1, [1, 1, 1]), answer(7, [1, 1, 1])], TERMS, PLAIN, observe=seen.append)
    assert [(v.node, v.cause) for v in seen] == [
        (1, ""),
        (7, "not asked"),
        (2, "no reply"),
        (3, "no reply"),
    ]


def test_loss_is_the_weighted_mean_of_those_who_told_one():
    replies = [
        answer(1, [0, 0, 0], weight=1, loss=2.0),
        answer(2, [0, 0, 0], weight=3, loss=1.0),
        answer(3, [0, 0, 0], weight=9, loss=math.nan),
    ]
    assert collect(replies, TERMS, PLAIN).loss == 1.25
