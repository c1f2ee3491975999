import pytest

from perennial.core.errors import RunError
from perennial.server.nodes import choose, wait


def test_a_cohort_is_the_same_for_the_same_seed_and_any_order_of_nodes():
    nodes = list(range(100, 200))
    first = choose(nodes, 10, seed=1, domain=0, round=3, attempt=0)
    assert first == choose(reversed(nodes), 10, seed=1, domain=0, round=3, attempt=0)
    assert len(set(first)) == 10
    assert first == sorted(first)
    others = {
        tuple(choose(nodes, 10, seed=s, domain=d, round=r, attempt=a))
        for s, d, r, a in [(2, 0, 3, 0), (1, 1, 3, 0), (1, 0, 4, 0), (1, 0, 3, 1)]
    }
    assert len(others) == 4
    assert tuple(first) not in others


def test_every_node_is_chosen_about_equally_often():
    counts = dict.fromkeys(range(20), 0)
    for round_ in range(1000):
        for node in choose(range(20), 5, seed=0, domain=0, round=round_, attempt=0):
            counts[node] += 1
    # 250 expected, standard deviation sqrt(1000 * 1/4 * 3/4) = 13.7
    assert all(abs(count - 250) < 5 * 13.7 for count in counts.values())


def test_no_cohort_means_everybody():
    assert choose([3, 1, 2], 0, 0, 0, 0, 0) == [1, 2, 3]
    assert choose([3, 1, 2], 9, 0, 0, 0, 0) == [1, 2, 3]


def test_waiting_ends_when_enough_have_come():
    counts = iter([0, 1, 3])
    assert wait(lambda: range(next(counts)), 2, 5.0, sleep=lambda s: None) == [0, 1, 2]


def test_waiting_in_vain_says_what_to_do():
    with pytest.raises(RunError, match=r"min_replies = 2.*0 came within 0\.05 s\. Start more"):
        wait(lambda: [], 2, 0.05)
