"""What holds for every aggregation rule in `strategies/`, so for a new file at once."""

import numpy as np
import pytest

from perennial.core import plugins
from perennial.core.parts import Strategy
from perennial.core.values import Manifest, ServerState, Update

# Options that a rule requires, and options worth a second look; a rule that is not here is
# built with its defaults.
OPTIONS = {
    "fedavg": [{}, {"server_lr": 0.5, "momentum": 0.9}],
    "fedprox": [{}, {"mu": 0.5, "momentum": 0.5}],
    "ffa": [{}, {"momentum": 0.9}],
}
RULES = [
    pytest.param((name, options), id=f"{name}-{i}")
    for name in plugins.names("strategies", Strategy)
    for i, options in enumerate(OPTIONS.get(name, [{}]))
]


def build(case):
    name, options = case
    return plugins.load("strategies", name, options, Strategy)


MANIFEST = Manifest(
    ("q.lora_A", "q.lora_B", "v.lora_A", "v.lora_B", "head.weight", "head.bias"),
    ((2, 3), (3, 2), (2, 3), (3, 2), (2, 3), (2,)),
)


@pytest.fixture(params=RULES)
def rule(request):
    return build(request.param)


def begin(rule):
    params = np.linspace(-1, 1, MANIFEST.size).astype(np.float32)
    return ServerState(round=3, domain=2, params=params, slots=rule.init(params))


def delta(seed):
    return np.random.default_rng(seed).normal(size=MANIFEST.size).astype(np.float32)


def test_state_goes_in_unchanged_and_comes_out_new(rule):
    state = begin(rule)
    params = state.params.copy()
    slots = {name: value.copy() for name, value in state.slots.items()}
    change = delta(0)
    after = rule.apply(state, change)
    again = rule.apply(state, change)
    assert np.array_equal(state.params, params)
    assert np.array_equal(change, delta(0))
    assert all(np.array_equal(state.slots[name], slots[name]) for name in slots)
    assert np.array_equal(after.params, again.params)
    assert not np.array_equal(after.params, params)


def test_only_params_and_slots_change_and_keep_their_shapes(rule):
    state = begin(rule)
    for seed in range(3):
        after = rule.apply(state, delta(seed))
        assert (after.round, after.domain) == (3, 2)
        assert after.params.shape == (MANIFEST.size,)
        assert after.params.dtype == np.float32
        assert after.slots.keys() == state.slots.keys()
        for name, slot in after.slots.items():
            assert slot.shape == state.slots[name].shape
            assert slot.dtype == np.float32
        state = after


def test_no_change_moves_nothing_at_the_start(rule):
    state = begin(rule)
    after = rule.apply(state, np.zeros(MANIFEST.size, np.float32))
    assert np.array_equal(after.params, state.params)


def test_the_first_step_goes_where_the_clients_went(rule):
    state = begin(rule)
    step = rule.apply(state, delta(1)).params - state.params
    assert float(step @ delta(1)) > 0


def test_what_trains_is_part_of_the_manifest_and_the_same_for_all(rule):
    for round_ in range(4):
        chosen = rule.trainable(MANIFEST, round_)
        assert chosen == rule.trainable(MANIFEST, round_)
        assert chosen <= set(MANIFEST.names)
        assert {"head.weight", "head.bias"} <= chosen


def test_every_tensor_but_a_frozen_a_trains_sooner_or_later(rule):
    ever = frozenset().union(*(rule.trainable(MANIFEST, round_) for round_ in range(4)))
    assert set(MANIFEST.names) - ever <= {"q.lora_A", "v.lora_A"}


def test_the_pull_is_zero_at_the_anchor_and_leads_back_to_it(rule):
    anchor = MANIFEST.unpack(delta(2))
    away = MANIFEST.unpack(delta(3))
    for pulled in rule.pull(anchor, anchor).values():
        assert not pulled.any()
    found = rule.pull(away, anchor)
    assert found.keys() <= away.keys()
    for name, pulled in found.items():
        assert pulled.shape == away[name].shape
        assert float((pulled * (away[name] - anchor[name])).sum()) > 0


def test_the_pull_is_asked_for_the_trained_tensors_only(rule):
    anchor, away = MANIFEST.unpack(delta(2)), MANIFEST.unpack(delta(3))
    some = {"head.bias": away["head.bias"]}
    assert rule.pull(some, anchor).keys() <= some.keys()


@pytest.fixture(params=[case for case in RULES if build(case.values[0]).combine is not None])
def combine(request):
    return build(request.param).combine


def test_one_update_is_its_own_combination(combine):
    found = combine([Update(delta(0), 3.0)])
    assert found.dtype == np.float32
    assert np.allclose(found, delta(0), atol=1e-6)


def test_equal_updates_combine_to_themselves(combine):
    found = combine([Update(delta(0), weight) for weight in (1.0, 2.0, 5.0)])
    assert np.allclose(found, delta(0), atol=1e-6)


def test_the_order_of_updates_does_not_count(combine):
    updates = [Update(delta(seed), 1.0 + seed) for seed in range(5)]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(5)
        assert np.array_equal(combine([updates[i] for i in order]), combine(updates))


def test_a_client_without_records_has_no_say(combine):
    updates = [Update(delta(seed), 1.0) for seed in range(3)]
    loud = Update(np.full(MANIFEST.size, 1e6, np.float32), 0.0)
    assert np.array_equal(combine([*updates, loud]), combine(updates))
    assert not combine([loud, loud]).any()


def test_combining_leaves_the_updates_alone(combine):
    updates = [Update(delta(seed), 1.0) for seed in range(3)]
    combine(updates)
    assert all(np.array_equal(u.delta, delta(i)) for i, u in enumerate(updates))
