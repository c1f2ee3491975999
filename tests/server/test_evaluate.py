from dataclasses import asdict

from perennial.core.parts import Reply
from perennial.core.values import Ticket
from perennial.server.evaluate import of_clients, summed

TICKET = Ticket("r", 1, 2, 0, "scores")


def reply(node, *scores, ticket=TICKET):
    metrics = {}
    for index, (loss, correct, total) in enumerate(scores):
        metrics |= {f"loss.{index}": loss, f"correct.{index}": correct, f"total.{index}": total}
    return Reply(node, ticket=asdict(ticket), metrics=metrics)


def test_scores_of_clients_add_up_by_domain():
    found, bad = of_clients(
        [reply(1, (2.0, 1.0, 4.0), (0.0, 0.0, 0.0)), reply(2, (1.0, 3.0, 4.0), (5.0, 1.0, 2.0))],
        TICKET,
        ["a", "b"],
        100.0,
    )
    assert bad == 0
    assert [score.correct for score in found[2]] == [3, 1]
    scores = summed(found, ["a", "b"])
    assert scores["a"].accuracy == 0.5
    assert scores["a"].mean_loss == 3 / 8
    assert scores["b"].total == 2


def test_bad_scores_are_left_out_and_counted():
    replies = [
        reply(1, (2.0, 1.0, 4.0)),
        reply(1, (2.0, 4.0, 4.0)),  # a second answer
        reply(2, (2.0, 5.0, 4.0)),  # more right answers than questions
        reply(3, (float("nan"), 1.0, 4.0)),
        reply(4),
        Reply(5, error="gone"),
        reply(7, (2.0, 1.0, 1e300)),  # more answers than anyone can have
        reply(6, (2.0, 1.0, 4.0), ticket=Ticket("r", 1, 9, 0, "scores")),
    ]
    scores, bad = of_clients(replies, TICKET, ["a"], 100.0)
    assert bad == 7
    assert {node: [(s.correct, s.total) for s in found] for node, found in scores.items()} == {
        1: [(1, 4)]
    }
