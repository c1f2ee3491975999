"""Each policy on planted records whose right choice is known."""

import numpy as np
import pytest

from perennial.continual import policies
from perennial.core.values import Records
from perennial.models import tiny

IDS = tuple(f"r{i}" for i in range(400))


def cloud(n=120, d=16, seed=0):
    """Rows of L2 norm 1 around one direction."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) + 2.0 * rng.normal(size=d)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def apart(rows, chosen):
    return np.linalg.norm(rows[chosen].mean(0) - rows.mean(0))


def test_herding_takes_what_the_paper_s_formula_takes():
    rows = cloud(30)
    mean, taken = rows.astype(float).mean(0), []
    for k in range(1, 11):
        total = rows[taken].astype(float).sum(0)
        far = np.linalg.norm(mean - (rows + total) / k, axis=1)
        far[taken] = np.inf
        taken.append(int(far.argmin()))
    assert policies.herding(rows, 10).tolist() == taken


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_the_mean_of_herded_records_is_nearer_than_that_of_random_ones(count):
    rows, rng = cloud(), np.random.default_rng(1)
    random = [apart(rows, rng.choice(len(rows), count, replace=False)) for _ in range(200)]
    assert apart(rows, policies.herding(rows, count)) < np.quantile(random, 0.05)


@pytest.mark.parametrize("policy", [policies.herding, policies.k_center])
def test_a_smaller_quota_is_the_beginning_of_a_larger_one(policy):
    rows = cloud()
    assert policy(rows, 7).tolist() == policy(rows, 30)[:7].tolist()
    assert sorted(policy(rows, 999).tolist()) == list(range(len(rows)))
    assert policy(rows[:0], 5).tolist() == []


@pytest.mark.parametrize("policy", [policies.herding, policies.k_center])
def test_equal_records_are_each_taken_once(policy):
    rows = np.repeat(cloud(2), 5, axis=0)
    assert sorted(policy(rows, 10).tolist()) == list(range(10))


def test_k_center_covers_every_cluster_before_it_takes_a_second_of_one():
    rng = np.random.default_rng(0)
    centres = 10.0 * rng.normal(size=(8, 6))
    of = np.repeat(np.arange(8), [40, 1, 1, 20, 1, 30, 2, 1])
    rows = (centres[of] + 0.01 * rng.normal(size=(len(of), 6))).astype(np.float32)
    assert sorted(of[policies.k_center(rows, 8)]) == list(range(8))
    random = [len(set(of[rng.choice(len(of), 8, replace=False)])) for _ in range(50)]
    assert max(random) < 8


def test_k_center_s_radius_is_at_most_twice_the_best_one():
    rows = cloud(14, 2)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    from itertools import combinations

    best = min(distances[:, list(c)].min(1).max() for c in combinations(range(14), 3))
    assert distances[:, policies.k_center(rows, 3)].min(1).max() <= 2 * best + 1e-6


def test_a_priority_depends_on_the_secret_and_the_record_alone_and_is_uniform():
    keys = np.array([policies.priority(b"one", name) for name in IDS])
    assert policies.priority(b"one", IDS[7]) == keys[7] != policies.priority(b"two", IDS[7])
    # Kolmogorov's distance from uniform: below 1.63 / sqrt(n) in 99 of 100 cases.
    assert np.abs(np.sort(keys) - (np.arange(400) + 0.5) / 400).max() < 1.63 / 20


def test_the_lowest_are_a_reservoir_whatever_order_the_stream_had():
    held = []
    for start in range(0, 400, 40):  # as domains come one by one, with room for 25
        names = [*held, *IDS[start : start + 40]]
        held = [names[i] for i in policies.lowest(b"s", names, 25)]
    at_once = [IDS[i] for i in policies.lowest(b"s", IDS, 25)]
    assert held == at_once


def test_a_reservoir_is_uniform_over_the_stream():
    counts = np.zeros(10)
    for secret in range(300):
        for i in policies.lowest(secret.to_bytes(4, "big"), IDS, 20):
            counts[i // 40] += 1
    # 600 expected per tenth; the standard deviation is below sqrt(600 * 0.9).
    assert np.abs(counts - 600).max() < 4 * np.sqrt(540)


def test_every_other_record_is_kept_for_its_loss_and_the_rest_are_drawn():
    losses, drawn = np.arange(100, dtype=np.float32), np.random.default_rng(0).permutation(100)
    taken = policies.highest_loss(losses, drawn, 0.5, 20).tolist()
    hard, random = taken[::2], taken[1::2]
    assert hard == sorted(hard, reverse=True)
    assert min(hard) >= 80
    assert random == [i for i in drawn.tolist() if i in random]
    assert len(set(taken)) == 20
    alone = policies.highest_loss(losses, drawn, 1.0, 5).tolist()
    assert alone == [99, 98, 97, 96, 95]
    assert policies.highest_loss(losses, drawn, 0.0, 5).tolist() == drawn[:5].tolist()


def test_losses_are_the_model_s_own_over_all_labels(requests_):
    model = tiny.build()
    model.fit_labels(("greet", "part", "thank", "eat"))
    rng = np.random.default_rng(0)
    model.load(rng.normal(scale=0.3, size=model.manifest.size).astype(np.float32))
    found = policies.losses(model, requests_)
    assert found.dtype == np.float32
    score = model.score(model.encode(requests_), 3)
    assert found.sum() == pytest.approx(score.loss, rel=1e-5)
    logits = model.logits(model.encode(requests_.take([4])), 1)[0]
    assert found[4] == pytest.approx(np.log(np.exp(logits).sum()) - logits[1], rel=1e-5)
    assert policies.losses(model, Records()).shape == (0,)


@pytest.mark.parametrize(
    ("sizes", "capacity", "expected"),
    [
        ([5, 5], 0, [5, 5]),
        ([5, 5], 10, [5, 5]),
        ([5, 5, 5], 7, [3, 2, 2]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([1, 9, 9], 10, [1, 5, 4]),
        ([0, 3], 2, [0, 2]),
        ([4, 4, 4], 2, [1, 1, 0]),
        ([], 3, []),
    ],
)
def test_quotas_share_the_room_equally(sizes, capacity, expected):
    assert policies.quotas(sizes, capacity).tolist() == expected
