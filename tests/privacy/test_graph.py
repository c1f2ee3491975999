import math
import random

import pytest

from perennial.privacy.graph import cut_bits, neighbours_for, ring_graph


def connected(nodes, graph):
    """Whether `nodes` hang together by edges among themselves."""
    seen, open_ = set(), [next(iter(nodes))]
    while open_:
        node = open_.pop()
        if node not in seen:
            seen.add(node)
            open_ += [peer for peer in graph[node] if peer in nodes]
    return seen == set(nodes)


def test_the_bound_by_hand():
    # C(64, 2) = 2016; 33 * log2(3) - log2(2016) = 41.3, but 33 is odd; 32 give 39.7.
    assert cut_bits(64, 32, 1 / 3) == pytest.approx(32 * math.log2(3) - math.log2(2016))
    assert cut_bits(64, 32, 1 / 3) < 40 <= cut_bits(64, 34, 1 / 3)
    assert neighbours_for(64, 1 / 3) == 34
    assert neighbours_for(10, 1 / 3) == 9
    assert neighbours_for(1000, 1 / 3) == 38
    assert neighbours_for(3, 1 / 3) == 2
    assert neighbours_for(2, 1 / 3) == 1
    assert neighbours_for(1000, 0.01, bits=10) == 6


@pytest.mark.parametrize("collusion", [0.05, 1 / 3, 0.6])
def test_the_number_is_the_smallest_that_keeps_the_bound_and_grows_with_the_cohort(collusion):
    last = 0
    for cohort in range(2, 400):
        k = neighbours_for(cohort, collusion)
        assert k == cohort - 1 or k % 2 == 0
        assert cut_bits(cohort, k, collusion) >= 40
        assert k <= 2 or cut_bits(cohort, k - 2 + k % 2, collusion) < 40
        assert k >= last
        last = k


@pytest.mark.parametrize("collusion", [0.0, 1.0, -1.0, math.nan])
def test_a_share_out_of_range_is_refused(collusion):
    with pytest.raises(ValueError, match="collusion"):
        neighbours_for(64, collusion)
    with pytest.raises(ValueError, match="collusion"):
        cut_bits(3, 2, collusion)


def test_a_graph_needs_two_nodes():
    with pytest.raises(ValueError, match="at least 2"):
        neighbours_for(1, 0.5)


@pytest.mark.parametrize(("num", "k"), [(5, 2), (6, 4), (7, 4), (64, 34), (65, 34), (300, 36)])
def test_a_ring_is_regular_and_symmetric(num, k):
    rng = random.Random(0)
    nodes = [rng.randrange(-(2**63), 2**64) for _ in range(num)]
    graph = ring_graph(nodes, k)
    assert set(graph) == set(nodes)
    for node, peers in graph.items():
        assert len(peers) == len(set(peers)) == k
        assert node not in peers
        assert list(peers) == sorted(peers)
        assert all(node in graph[peer] for peer in peers)


@pytest.mark.parametrize(("num", "k"), [(3, 2), (4, 3), (6, 5), (6, 9), (1, 0), (0, 4)])
def test_where_the_ring_closes_all_know_all(num, k):
    graph = ring_graph(range(num), k)
    assert graph == {i: tuple(j for j in range(num) if j != i) for i in range(num)}


def test_the_ring_is_drawn_anew():
    random.seed(0)
    first = ring_graph(range(50), 4)
    random.seed(0)
    assert ring_graph(range(50), 4) != first


@pytest.mark.parametrize("k", [-2, 0, 1, 3])
def test_an_odd_or_missing_number_of_neighbours_is_refused(k):
    with pytest.raises(ValueError, match="even"):
        ring_graph(range(10), k)


def test_a_node_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="once"):
        ring_graph([1, 2, 2, 3], 2)


@pytest.mark.parametrize(("num", "collusion"), [(64, 1 / 3), (120, 0.5), (200, 0.1)])
def test_the_others_stay_connected_when_a_share_is_taken_away(num, collusion):
    rng = random.Random(1)
    k = neighbours_for(num, collusion)
    assert k < num - 1
    for _ in range(60):
        graph = ring_graph(range(num), k)
        left = set(range(num)) - set(rng.sample(range(num), int(collusion * num)))
        assert connected(left, graph)


def test_the_bound_is_no_smaller_than_what_happens():
    rng = random.Random(2)
    num, k, bad = 40, 4, 6
    cuts = 0
    for _ in range(1000):
        graph = ring_graph(range(num), k)
        cuts += not connected(set(range(num)) - set(rng.sample(range(num), bad)), graph)
    assert 0 < cuts / 1000 <= 2 ** -cut_bits(num, k, bad / num)
