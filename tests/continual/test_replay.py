"""Replay with a real memory, a real index and a tiny model."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from perennial.continual import memory, policies, replay
from perennial.core.errors import ConfigError, PrivacyError, RunError
from perennial.core.parts import Continual, Phase
from perennial.core.plugins import load
from perennial.core.values import Domain, Records
from perennial.models import causal_lm, tiny

TALK = Domain("talk", ("greet", "part"))
FOOD = Domain("food", ("eat", "drink", "cook"))
LABELS = (*TALK.labels, *FOOD.labels)
ALL = ("auto", "reservoir", "class_balanced", "herding", "k_center", "highest_loss", "nearest")


def records(domain, sizes, start=0):
    """Sentences of each label's own words; sizes by label."""
    rng, rows = np.random.default_rng(start), []
    for label, size in zip(domain.labels, sizes, strict=True):
        for i in range(start, start + size):
            words = [f"{label}{rng.integers(5)}" for _ in range(3)]
            rows.append((f"{label}-{i}", " ".join([*words, f"n{i}"]), label, domain.name, ""))
    return Records(*zip(*rows, strict=True))


HELLO = records(TALK, (30, 12))
MEAL = records(FOOD, (15, 4, 1))


@pytest.fixture(scope="module")
def model():
    model = tiny.build(layers=1)
    model.fit_labels(LABELS)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.2, size=model.manifest.size).astype(np.float32))
    return model


def phase(folder, domain=TALK, index=0, model=None, **more):
    names = {} if model is None else {"manifest": model.manifest}
    nothing = np.zeros(0, np.float32)
    return Phase(domain, index, folder, 11 + index, nothing, base="base", **names, **more)


def end(method, shard, model, here):
    found = method.finish(method.start(here), shard, model, here)
    assert found.dtype == np.float32
    assert found.shape == (method.size(model.manifest),) == (0,)


def replayed(method, shard, model, here):
    """Ids that joined the shard."""
    got = method.dataset(method.start(here), shard, model)
    assert got.ids[: len(shard)] == shard.ids
    assert len(set(got.ids)) == len(got)
    return set(got.ids[len(shard) :])


def held(folder):
    return memory.read(folder)


@pytest.mark.parametrize("policy", ALL)
def test_earlier_domains_come_back_as_they_were(policy, model, tmp_path):
    method = replay.build(policy=policy, per_class=5, retrieve=7)
    assert replayed(method, HELLO, model, phase(tmp_path)) == set()
    end(method, HELLO, model, phase(tmp_path))
    ids = replayed(method, MEAL, model, phase(tmp_path, FOOD, 1))
    assert len(ids) == (7 if policy == "nearest" else 10)
    known = {row[0]: row for row in zip(*HELLO.columns, strict=True)}
    store = held(tmp_path)
    for row in zip(*store.records.columns, strict=True):
        assert row == known[row[0]]
    assert ids <= set(store.records.ids)
    vectors = model.features(store.records, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(store.embeddings, vectors, atol=1e-3)


@pytest.mark.parametrize("policy", ALL)
def test_ending_a_domain_twice_is_ending_it_once(policy, model, tmp_path):
    method = replay.build(policy=policy, per_class=5, capacity=13, share=0.8)
    for shard, here in ((HELLO, phase(tmp_path)), (MEAL, phase(tmp_path, FOOD, 1))):
        end(method, shard, model, here)
        once = (tmp_path / memory.STORE).read_bytes(), (tmp_path / memory.INDEX).read_bytes()
        end(method, shard, model, here)
        end(method, shard, model, here)
        twice = (tmp_path / memory.STORE).read_bytes(), (tmp_path / memory.INDEX).read_bytes()
        assert once == twice
        assert replayed(method, shard, model, here).isdisjoint(shard.ids)


def test_a_class_keeps_its_exemplars_by_the_policy(model, tmp_path):
    method = replay.build(per_class=6)
    end(method, HELLO, model, phase(tmp_path))
    rows = [i for i, target in enumerate(HELLO.targets) if target == "part"]
    vectors = model.features(HELLO.take(rows), 1).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = policies.herding(vectors.astype(np.float32), 6)
    store = held(tmp_path)
    ranks = dict(zip(store.records.ids, store.ranks, strict=True))
    assert [ranks[HELLO.ids[rows[i]]] for i in chosen] == list(range(6))


@pytest.mark.parametrize("policy", ["auto", "class_balanced", "k_center", "highest_loss"])
def test_capacity_is_shared_equally_and_the_last_ranked_go_first(policy, model, tmp_path):
    method = replay.build(policy=policy, per_class=8, capacity=17)
    end(method, HELLO, model, phase(tmp_path))
    before = held(tmp_path)
    assert Counter(before.classes) == {"greet": 8, "part": 8}
    end(method, MEAL, model, phase(tmp_path, FOOD, 1))
    after = held(tmp_path)
    assert Counter(after.classes) == {"greet": 4, "part": 4, "drink": 4, "eat": 4, "cook": 1}
    best = {name for name, rank in zip(before.records.ids, before.ranks, strict=True) if rank < 4}
    assert best == {name for name in after.records.ids if name in before.records.ids}


def test_clients_that_keep_a_share_keep_the_federation_s_number_together(model, tmp_path):
    method, kept = replay.build(per_class=20, share=0.2), Counter()
    for client, sizes in enumerate([(60, 5), (30, 35), (10, 60)]):  # 100 of each class
        (tmp_path / str(client)).mkdir()
        end(method, records(TALK, sizes, 1000 * client), model, phase(tmp_path / str(client)))
        kept += Counter(held(tmp_path / str(client)).classes)
    assert kept == {"greet": 20, "part": 20}


def test_a_reservoir_does_not_depend_on_the_cut_of_the_stream(model, tmp_path):
    method = replay.build(policy="reservoir", per_class=999, capacity=9)
    for name, parts in (("one", [HELLO + MEAL]), ("two", [HELLO, MEAL])):
        (tmp_path / name).mkdir()
        for index, part in enumerate(parts):
            end(method, part, model, replace(phase(tmp_path / name, index=index), seed=3 + index))
    one, two = (set(held(tmp_path / name).records.ids) for name in ("one", "two"))
    assert one == two
    assert len(one) == 9


def test_a_class_that_comes_again_keeps_of_both_updates(model, tmp_path):
    method = replay.build(per_class=10)
    end(method, HELLO, model, phase(tmp_path))
    later = records(TALK, (30, 12), 500)
    end(method, later, model, phase(tmp_path, index=1))
    store = held(tmp_path)
    assert Counter(store.classes) == {"greet": 10, "part": 10}
    assert Counter(name in HELLO.ids for name in store.records.ids) == {True: 10, False: 10}
    ids = replayed(method, later, model, phase(tmp_path, index=1))
    assert ids == set(store.records.ids) & set(HELLO.ids)


def test_the_withdrawn_are_gone_from_store_and_index_at_the_next_start(model, tmp_path):
    method = replay.build(per_class=5)
    end(method, HELLO, model, phase(tmp_path))
    store = held(tmp_path)
    gone = frozenset(store.records.ids[:3])
    found = method.start(phase(tmp_path, FOOD, 1, gone=gone))
    left = held(tmp_path)
    assert set(left.records.ids) == set(store.records.ids) - gone
    assert len(found.index) == len(left) == 7
    raw = (tmp_path / memory.STORE).read_bytes() + (tmp_path / memory.INDEX).read_bytes()
    assert all(row.tobytes() not in raw for row in store.embeddings[:3])
    # Nor do they come back with the shard of an update that goes on.
    end(method, HELLO, model, phase(tmp_path, gone=gone))
    assert not gone & set(held(tmp_path).records.ids)


def test_of_a_whole_client_nobody_stays_in_memory(model, tmp_path):
    method = replay.build(per_class=5)
    end(method, HELLO, model, phase(tmp_path))
    assert len(held(tmp_path))
    method.start(phase(tmp_path, FOOD, 1, everything=True))
    assert not len(held(tmp_path))


def test_who_withdraws_while_a_domain_ends_does_not_come_back(model, tmp_path):
    method, here = replay.build(per_class=5), phase(tmp_path)
    end(method, HELLO, model, here)
    chosen = held(tmp_path).records.ids
    running = method.start(here)
    assert memory.forget(tmp_path, chosen[:2]) == set(chosen[:2])
    method.finish(running, HELLO, model, here)
    assert not set(chosen[:2]) & set(held(tmp_path).records.ids)
    # Once the phase itself says who is gone, the memory needs no note of its own.
    method.start(phase(tmp_path, gone=frozenset(chosen[:2])))
    assert held(tmp_path).forgotten == frozenset()


def test_a_memory_that_is_withdrawn_while_a_domain_ends_stays_away(model, tmp_path):
    method, here = replay.build(), phase(tmp_path)
    running = method.start(here)
    memory.forget(tmp_path, [], everything=True)
    with pytest.raises(RunError, match="deleted meanwhile"):
        method.finish(running, HELLO, model, here)
    assert held(tmp_path) is None


def test_records_expire(model, tmp_path, monkeypatch):
    now = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    method = replay.build(per_class=5, keep_days=2.0)
    end(method, HELLO, model, phase(tmp_path))
    now[0] += 86400.0
    end(method, MEAL, model, phase(tmp_path, FOOD, 1))
    assert len(method.start(phase(tmp_path, FOOD, 2)).store) == 20
    now[0] += 86401.0
    found = method.start(phase(tmp_path, FOOD, 2))
    assert set(found.store.records.domains) == {"food"}
    assert len(held(tmp_path)) == len(found.index) == 10
    assert len(replay.build().start(phase(tmp_path, FOOD, 2)).store) == 10


def test_what_is_certain_waits_and_one_record_is_always_left(model, tmp_path):
    encoded = model.encode(MEAL)
    scores = model.logits(encoded, 8).astype(float)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    sure = shares[np.arange(len(MEAL)), [LABELS.index(target) for target in MEAL.targets]]
    threshold = float(np.median(sure))
    method = replay.build(uncertain_below=threshold)
    got = method.dataset(method.start(phase(tmp_path)), MEAL, model)
    assert set(got.ids) == {MEAL.ids[i] for i in np.flatnonzero(sure <= threshold + 1e-9)}
    assert 0 < len(got) < len(MEAL)
    method = replay.build(uncertain_below=1e-9)
    got = method.dataset(method.start(phase(tmp_path)), MEAL, model)
    assert got.ids == (MEAL.ids[int(sure.argmin())],)
    # It would stay because the others went: in a private run it goes too.
    assert not len(method.dataset(method.start(phase(tmp_path, private=True)), MEAL, model))


def test_nearest_replays_what_lies_nearest_to_the_new_records(model, tmp_path):
    method = replay.build(policy="nearest", per_class=12, retrieve=5)
    end(method, HELLO, model, phase(tmp_path))
    store = held(tmp_path)
    vectors = model.features(MEAL, 1).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    far = np.linalg.norm(store.embeddings.astype(float)[:, None] - vectors[None], axis=2).min(1)
    expected = {store.records.ids[i] for i in np.argsort(far)[:5]}
    assert replayed(method, MEAL, model, phase(tmp_path, FOOD, 1)) == expected
    # The client's own records are nearest to themselves, and never replayed.
    end(method, MEAL, model, phase(tmp_path, FOOD, 1))
    assert replayed(method, MEAL, model, phase(tmp_path, FOOD, 1)) == expected
    assert len(replayed(method, Records(), model, phase(tmp_path, FOOD, 2))) == 5


@pytest.mark.parametrize("policy", ALL)
def test_tuning_takes_what_the_memory_will_hold(policy, model, tmp_path):
    method = replay.build(policy=policy, per_class=5, capacity=14)
    assert method.rounds == 1
    end(method, HELLO, model, phase(tmp_path))
    tuned = phase(tmp_path, FOOD, 1, model, tuning=True)
    got = method.dataset(method.start(tuned), MEAL, model)
    assert method.dataset(method.start(tuned), MEAL, model) == got
    end(method, MEAL, model, phase(tmp_path, FOOD, 1))
    assert got == held(tmp_path).records
    if policy != "reservoir":
        assert Counter(got.targets) == {"greet": 3, "part": 3, "eat": 3, "drink": 4, "cook": 1}


def test_tuning_moves_the_head_alone(model, tmp_path):
    method, parameters = replay.build(), model.parameters()
    masks = method.mask(method.start(phase(tmp_path, model=model, tuning=True)), parameters)
    assert masks.keys() == {name for name in parameters if not name.startswith("head.")} != set()
    assert all(float(part) == 0.0 and part.ndim == 0 for part in masks.values())
    assert method.mask(method.start(phase(tmp_path, model=model)), parameters) == {}
    adapter = {name: part for name, part in parameters.items() if name in masks}
    here = method.start(phase(tmp_path, model=model, tuning=True))
    assert method.mask(here, adapter).keys() == adapter.keys()


def test_a_causal_model_keeps_records_by_domain(llama_folder, pairs, tmp_path):
    model = causal_lm.build(base=str(llama_folder), rank=2)
    for policy in ("auto", "highest_loss"):
        (tmp_path / policy).mkdir()
        method = replay.build(policy=policy, per_class=3)
        here = phase(tmp_path / policy, Domain("talk"), model=model, tuning=True)
        end(method, pairs, model, here)
        assert Counter(held(tmp_path / policy).classes) == {"talk": 3}
        assert method.mask(method.start(here), model.parameters()) == {}


def test_in_a_private_run_one_record_changes_nothing_for_the_others(model, tmp_path):
    method = replay.build(share=0.4, per_class=1, capacity=1)
    assert method.private
    everyone = HELLO + MEAL
    end(method, everyone, model, phase(tmp_path, private=True))
    kept = set(held(tmp_path).records.ids)
    assert 5 < len(kept) < 50
    for left_out in (0, 20, 50):
        others = everyone.where(lambda i, out=left_out: i != out)
        here = phase(tmp_path, private=True, gone=frozenset({everyone.ids[left_out]}))
        end(method, others, model, here)
        assert set(held(tmp_path).records.ids) == kept - {everyone.ids[left_out]}
        end(method, everyone, model, phase(tmp_path, private=True))
        assert set(held(tmp_path).records.ids) == kept


def test_what_stays_in_a_private_run_cannot_be_told_from_the_run_s_seed(model, tmp_path):
    kept = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        end(replay.build(share=0.5), HELLO, model, phase(tmp_path / name, private=True))
        kept.append(set(held(tmp_path / name).records.ids))
    assert kept[0] != kept[1]


@pytest.mark.parametrize("policy", [p for p in ALL if p not in ("auto", "reservoir")])
def test_policies_that_compare_records_are_no_private_ones(policy, tmp_path):
    method = replay.build(policy=policy)
    assert not method.private
    with pytest.raises(PrivacyError, match="compares"):
        method.start(phase(tmp_path, private=True))


def test_a_memory_of_compared_records_is_refused_in_a_private_run(model, tmp_path):
    end(replay.build(), HELLO, model, phase(tmp_path))
    with pytest.raises(PrivacyError, match=r"memory\.bin must hold only records"):
        replay.build().start(phase(tmp_path, private=True))


def test_an_empty_shard_changes_nothing(model, tmp_path):
    method = replay.build()
    end(method, Records(), model, phase(tmp_path))
    end(method, HELLO, model, phase(tmp_path))
    before = (tmp_path / memory.STORE).read_bytes()
    end(method, Records(), model, phase(tmp_path, FOOD, 1))
    assert (tmp_path / memory.STORE).read_bytes() == before


def test_another_base_is_named(model, tmp_path):
    end(replay.build(), HELLO, model, phase(tmp_path))
    with pytest.raises(RunError, match="must be of the base other"):
        replay.build().start(replace(phase(tmp_path), base="other"))


@pytest.mark.parametrize(
    "options", [{"per_class": 0}, {"share": 0.0}, {"uncertain_below": 1.0}, {"policy": "best"}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        load("continual", "replay", options, Continual)
