import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perennial.continual import ewc, fisher
from perennial.core.errors import ConfigError, RunError
from perennial.core.parts import Continual, Lesson, Phase
from perennial.core.plugins import load
from perennial.core.values import Domain, Manifest, Records
from perennial.models import causal_lm, tiny

LABELS = ("greet", "part", "thank")
TALK = Domain("talk", LABELS)
FOOD = Domain("food", ("eat", "drink"))
ONE = Manifest(("w",), ((2, 2),))


@pytest.fixture
def model():
    model = tiny.build(rank=2)
    model.fit_labels(LABELS)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.3, size=model.manifest.size).astype(np.float32))
    return model


def phase(model, told=None, **changes):
    summary = np.zeros(0, np.float32) if told is None else told
    here = Phase(TALK, 0, Path(), 5, summary, manifest=model.manifest, labels=model.labels)
    return replace(here, **changes)


def lesson(total, params, manifest, clients=1.0, index=0):
    values = (np.asarray(total, np.float64), clients, np.asarray(params, np.float32), manifest)
    return Lesson(TALK, index, (), *values, None, Records())


def exact(model, records, answers=()):
    """The mean over `records` of E_{y ~ p} [grad log p(y)^2], label by label, over `answers`."""
    total = np.zeros(model.manifest.size)
    encoded = model.encode(records)
    parameters = list(model.parameters().values())
    for i in range(len(records)):
        batch = encoded.batch(np.array([i]))
        for label in answers or range(len(model.labels)):
            asked = replace(batch, targets=torch.tensor([label]))
            loss = model.losses(asked, answers).sum()
            found = torch.autograd.grad(loss, parameters)
            flat = torch.cat([value.reshape(-1) for value in found]).double().numpy()
            total += np.exp(-loss.item()) * flat**2
    return total / len(records)


def many(records, copies):
    """The same texts under other ids, so that other labels are drawn."""
    parts = [
        Records(tuple(f"{id_}.{k}" for id_ in records.ids), *records.columns[1:])
        for k in range(copies)
    ]
    return sum(parts, Records())


def test_the_fisher_is_the_expectation_over_the_models_own_labels(model, requests_):
    wanted = exact(model, requests_)
    records = many(requests_, 10)
    found = fisher.diagonal(model, records, len(records), 1)
    # The empirical Fisher, on the labels of the data, is 1.9 away, and the squared gradient of
    # the batch's mean 0.8.
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    assert abs(found.sum() / wanted.sum() - 1) < 0.1


def test_the_fisher_is_of_the_labels_that_the_loss_looked_at(model, requests_):
    wanted = exact(model, requests_, (0, 2))
    records = many(requests_, 10)
    finish = ewc.build(samples=len(records)).finish
    found = finish(None, records, model, phase(model, answers=(0, 2)))
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    assert not model.manifest.unpack(found)["head.weight"][1].any()
    every = finish(None, records, model, phase(model))
    assert np.linalg.norm(every - exact(model, requests_)) < 0.2 * np.linalg.norm(every)
    assert np.linalg.norm(every - wanted) > 0.5 * np.linalg.norm(wanted)


def test_a_private_fisher_is_of_those_labels_too(model, requests_):
    records = many(requests_, 10)
    blocks = np.concatenate(list(fisher.rows(model, records, 1e3, 1, (0, 2))))
    found = 1e6 * blocks.mean(0)[:-1]
    views = model.manifest.unpack(exact(model, requests_, (0, 2)))
    wanted = np.array([view.sum() for view in views.values()])
    assert np.allclose(found, wanted, rtol=0.2)
    every = 1e6 * np.concatenate(list(fisher.rows(model, records, 1e3, 1))).mean(0)[:-1]
    assert not np.allclose(every, wanted, rtol=0.2)
    finish = ewc.build(clip_norm=1e3).finish
    private = phase(model, private=True, answers=(0, 2))
    kept = model.manifest.unpack(finish(None, records, model, private))
    assert np.allclose([view.sum() for view in kept.values()], wanted, rtol=0.2)


def test_a_label_that_is_never_drawn_spoils_no_fisher(model, requests_):
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=1e4, size=model.manifest.size).astype(np.float32))
    assert np.isfinite(fisher.diagonal(model, requests_, 60, 1)).all()


def test_a_sure_model_has_its_fisher_too(model, requests_):
    """Nearly all of it stands in labels that hardly any plain draw would hit."""
    values = model.vector()
    head = model.manifest.unpack(values)["head.weight"]
    head *= 4.0
    model.load(values)
    wanted = exact(model, requests_)
    encoded = model.encode(many(requests_, 10))
    parameters = list(model.parameters().values())
    plain = []
    for i in range(len(encoded)):
        batch = model.resampled(encoded.batch(np.array([i])), np.random.default_rng(i))
        found = torch.autograd.grad(model.losses(batch, ()).sum(), parameters)
        plain.append(sum(float(value.square().sum()) for value in found))
    assert abs(np.mean(plain) / wanted.sum() - 1) > 0.15
    for seed in range(3):
        found = fisher.diagonal(model, many(requests_, 10), 70, seed)
        assert abs(found.sum() / wanted.sum() - 1) < 0.1


def test_the_labels_of_the_data_do_not_count(model, requests_):
    others = replace(requests_, targets=tuple(reversed(requests_.targets)))
    assert np.array_equal(
        fisher.diagonal(model, requests_, 60, 1), fisher.diagonal(model, others, 60, 1)
    )


def test_so_many_records_are_looked_at(model, requests_):
    records = many(requests_, 3)
    few = fisher.diagonal(model, records, 5, 1)
    assert not np.array_equal(few, fisher.diagonal(model, records, len(records), 1))
    assert np.array_equal(few, fisher.diagonal(model, records, 5, 1))
    assert not np.array_equal(few, fisher.diagonal(model, records, 5, 2))


def test_a_tensor_that_does_not_train_has_no_fisher(model, requests_):
    name = model.manifest.names[0]
    model.parameters()[name].requires_grad_(False)
    views = model.manifest.unpack(fisher.diagonal(model, requests_, 60, 1))
    assert not views[name].any()
    assert all(views[other].any() for other in model.manifest.names[1:])
    assert not model.parameters()[name].requires_grad
    row = list(fisher.rows(model, requests_, 1.0, 1))[1][0]
    assert row[0] == 0
    assert row[1:].all()


def test_a_causal_model_has_a_fisher(llama_folder, pairs):
    model = causal_lm.build(base=str(llama_folder), rank=2)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    found = fisher.diagonal(model, pairs, 60, 1)
    assert found.shape == (model.manifest.size,)
    assert found.min() >= 0
    assert all(view.any() for view in model.manifest.unpack(found).values())


def test_the_pull_is_the_gradient_of_the_penalty(model):
    draws = np.random.default_rng(1)
    importance = draws.uniform(size=model.manifest.size).astype(np.float32)
    anchor = draws.normal(size=model.manifest.size).astype(np.float32)
    method = ewc.build(strength=20.0)
    memory = method.start(phase(model, np.concatenate([importance, anchor])))
    theta = torch.tensor(model.vector(), requires_grad=True)
    apart = torch.from_numpy(importance) * (theta - torch.from_numpy(anchor)) ** 2
    (20.0 / 2 * apart.sum()).backward()
    wanted = model.manifest.unpack(theta.grad.numpy())
    pulls = method.pull(memory, model.parameters())
    assert pulls.keys() == wanted.keys()
    for name, pull in pulls.items():
        assert torch.allclose(pull, torch.from_numpy(wanted[name]), rtol=1e-5, atol=1e-6)
        assert not pull.requires_grad
    only = method.pull(memory, {"head.bias": model.parameters()["head.bias"]})
    assert torch.equal(only["head.bias"], pulls["head.bias"])
    assert only.keys() == {"head.bias"}


def test_a_curvature_has_a_largest_value():
    told = np.array([0.1, 5.0, 0, 0] + [0] * 4, np.float32)
    here = Phase(FOOD, 1, Path(), 0, told, manifest=ONE)
    method = ewc.build(strength=10.0, max_curvature=4.0)
    pull = method.pull(method.start(here), {"w": torch.ones(2, 2)})["w"]
    assert pull.tolist() == [[1.0, 4.0], [0.0, 0.0]]


def test_plain_sgd_settles_under_the_largest_curvature_and_diverges_above():
    told = np.array([50.0, 0, 0, 0] + [0] * 4, np.float32)
    here = Phase(FOOD, 1, Path(), 0, told, manifest=ONE)

    def after(method):
        value = torch.ones(2, 2)
        for _ in range(20):
            value = value - 0.1 * method.pull(method.start(here), {"w": value})["w"]
        return float(value[0, 0])

    assert abs(after(ewc.build(strength=1.0))) > 1e6
    assert abs(after(ewc.build(strength=1.0, max_curvature=10.0))) < 1e-6


def test_a_step_of_plain_sgd_never_leaps_over_the_anchor():
    told = np.array([50.0, 0, 0, 0] + [0] * 4, np.float32)
    here = Phase(FOOD, 1, Path(), 0, told, manifest=ONE, stiffest=10.0)
    for options in ({}, {"max_curvature": 1e6}):
        method = ewc.build(strength=1e12, **options)
        value = torch.ones(2, 2)
        value = value - 0.1 * method.pull(method.start(here), {"w": value})["w"]
        assert value[0, 0].abs() < 1e-6
    softer = ewc.build(strength=1e12, max_curvature=4.0)
    assert softer.pull(softer.start(here), {"w": torch.ones(2, 2)})["w"][0, 0] == 4.0


def test_the_rounds_of_others_are_free_unless_asked():
    told = np.ones(8, np.float32)
    here = Phase(FOOD, 1, Path(), 0, told, manifest=ONE, tuning=True)
    value = {"w": torch.zeros(2, 2)}
    free, held = ewc.build(), ewc.build(while_tuning=True)
    assert free.pull(free.start(here), value) == {}
    assert held.pull(held.start(here), value)["w"].tolist() == [[-1e3] * 2] * 2


def test_the_server_takes_the_mean_over_clients(model, requests_):
    method = ewc.build()
    shards = (requests_.take([0, 1, 2, 3, 4]), requests_.take([5, 6]), Records())
    vectors = [method.finish(None, shard, model, phase(model)) for shard in shards]
    assert not vectors[2].any()
    total = np.sum(vectors, 0, dtype=np.float64)
    kept = method.learn({}, lesson(total, model.vector(), model.manifest, 2.0))
    wanted = np.mean(vectors[:2], 0)
    told = method.told(kept)
    assert np.allclose(told[: model.manifest.size], wanted, rtol=1e-6)
    assert np.array_equal(told[model.manifest.size :], model.vector())
    memory = method.start(phase(model, told))
    assert all(not pull.any() for pull in method.pull(memory, model.parameters()).values())


def test_the_fisher_runs_on_and_the_anchor_is_the_last():
    method = ewc.build(decay=0.5)
    kept = method.learn({}, lesson([4, 0, 2, 0], [1, 1, 1, 1], ONE, 2.0))
    kept = method.learn(kept, lesson([1, 1, 0, 0], [2, 2, 2, 2], ONE, 1.0))
    assert method.told(kept).tolist() == [2.0, 1.0, 0.5, 0.0, 2, 2, 2, 2]
    facts = method.facts(kept)
    assert facts == {"largest_curvature": 2000.0, "mean_curvature": 875.0}


def test_noise_never_makes_a_spring_push():
    method = ewc.build()
    kept = method.learn({}, lesson([-4, 3, 0, 0], [1, 1, 1, 1], ONE))
    assert method.told(kept)[:4].tolist() == [0.0, 3.0, 0.0, 0.0]


def test_new_rows_of_the_head_are_free():
    old = Manifest(("a", "head.weight"), ((2,), (2, 2)))
    new = Manifest(("a", "head.weight"), ((2,), (3, 2)))
    method = ewc.build()
    kept = method.learn({}, lesson([1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 60], old))
    start = np.array([10, 20, 30, 40, 50, 60, 7, 8], np.float32)
    grown, params = method.begin(kept, start, new, 1)
    assert np.array_equal(params, start)
    wanted = [1, 2, 3, 4, 5, 6, 0, 0, 10, 20, 30, 40, 50, 60, 7, 8]
    assert method.told(grown).tolist() == wanted
    again, _ = method.begin(grown, start + 1, new, 1)
    assert method.told(again).tolist() == wanted
    assert json.loads(str(grown["layout"])) == [list(new.names), [[2], [3, 2]]]
    ended = method.learn(kept, lesson([1] * 8, start, new, index=1))
    assert method.told(ended)[:8].tolist() == [2, 3, 4, 5, 6, 7, 1, 1]


def test_a_tensor_that_is_new_or_gone_is_no_fault():
    old = Manifest(("a", "b"), ((2,), (1,)))
    new = Manifest(("b", "c"), ((1,), (2,)))
    method = ewc.build()
    kept = method.learn({}, lesson([1, 2, 3], [4, 5, 6], old))
    grown, _ = method.begin(kept, np.array([7, 8, 9], np.float32), new, 1)
    assert method.told(grown).tolist() == [3, 0, 0, 6, 8, 9]


def test_before_a_domain_ends_nothing_is_told():
    method = ewc.build()
    kept, _ = method.begin({}, np.zeros(4, np.float32), ONE, 0)
    assert kept == {}
    assert method.told(kept).size == 0
    assert method.facts(kept) == {}


def test_what_does_not_fit_is_named():
    method = ewc.build()
    with pytest.raises(RunError, match="8 in all; got 7"):
        method.start(Phase(FOOD, 1, Path(), 0, np.ones(7, np.float32), manifest=ONE))
    with pytest.raises(RunError, match="must have 4 values"):
        method.learn({}, lesson([1, 2], [0, 0, 0, 0], ONE))
    for options in ({"strength": -1.0}, {"samples": 0}, {"decay": 1.5}, {"max_curvature": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            load("continual", "ewc", options, Continual)


def trained(model, records, strength, told, batch_size, epochs, lr):
    """The change of `model` after plain steps on mean losses with the method's pull."""
    start = model.vector()
    parameters = model.parameters()
    method = ewc.build(strength=strength)
    memory = method.start(phase(model, told))
    encoded = model.encode(records)
    for _ in range(epochs):
        for first in range(0, len(records), batch_size):
            part = np.arange(first, min(first + batch_size, len(records)))
            losses = model.losses(encoded.batch(part), ())
            found = torch.autograd.grad(losses.mean(), list(parameters.values()))
            pulls = method.pull(memory, parameters)
            with torch.no_grad():
                for (name, value), gradient in zip(parameters.items(), found, strict=True):
                    value -= lr * (gradient + pulls[name])
    return model.vector() - start


NEXT = ("thank", "thank", "part", "greet", "thank", "part", "greet")


def test_a_second_domain_moves_important_values_less(model, requests_):
    importance = fisher.diagonal(model, requests_, 60, 1)
    start = model.vector()
    told = np.concatenate([importance, start])
    other = replace(requests_, targets=NEXT)
    free = np.abs(trained(model, other, 0.0, told, 7, 100, 0.02))
    model.load(start)
    held = np.abs(trained(model, other, 10.0, told, 7, 100, 0.02))
    important = importance >= np.quantile(importance, 0.95)
    idle = importance <= np.quantile(importance, 0.2)
    assert held[important].mean() < 0.4 * free[important].mean()
    assert held[idle].mean() > 0.8 * free[idle].mean()
    answers = model.logits(model.encode(other), 7).argmax(1)
    assert [LABELS[i] for i in answers] == list(NEXT)  # and the second domain is learnt


def test_the_strength_means_the_same_at_every_batch_size(model, requests_):
    records = many(requests_, 4)
    importance = fisher.diagonal(model, records, 60, 1)
    order = np.argsort(records.texts, kind="stable")
    # One example at a time: neither their order nor what stands beside them counts.
    again = fisher.diagonal(model, records.take(order), 60, 1)
    assert np.allclose(importance, again, rtol=1e-3, atol=1e-8)
    start = model.vector()
    told = np.concatenate([importance, start])
    other = replace(records, targets=NEXT * 4)
    small = trained(model, other, 10.0, told, 4, 6, 0.005)
    model.load(start)
    large = trained(model, other, 10.0, told, 28, 42, 0.005)  # as many steps
    assert np.linalg.norm(small - large) < 0.2 * np.linalg.norm(large)


def private(rows, records, clip):
    """A noiseless private sum that keeps to the promised clip."""
    blocks = np.concatenate(list(rows))
    assert len(blocks) == len(records)
    assert (np.linalg.norm(blocks.astype(np.float64), axis=1) <= clip * (1 + 1e-6)).all()
    return blocks.sum(0)


def test_a_private_fisher_is_each_tensors_mean(model, requests_):
    method = ewc.build(clip_norm=1000.0)
    found = method.finish(None, requests_, model, phase(model, private=True, summed=private))
    open_ = fisher.diagonal(model, requests_, 100, 5)
    for name, view in model.manifest.unpack(found).items():
        assert view.min() == view.max()
        assert np.isclose(view.mean(), model.manifest.unpack(open_)[name].mean(), rtol=1e-4)


def test_a_private_gradient_is_cut_before_it_is_squared(model, requests_):
    clip = 0.05
    found = ewc.build(clip_norm=clip).finish(
        None, requests_, model, phase(model, private=True, summed=private)
    )
    # Every gradient here is longer than the clip, so that all have its length.
    assert np.isclose(found.sum(), clip**2, rtol=1e-4)
    rows = np.concatenate(list(fisher.rows(model, requests_, clip, 5)))
    assert np.allclose(rows[:, :-1].sum(1), 1.0)
    assert (rows[:, -1] == 1).all()


def test_a_private_count_is_noisy_too(model, requests_):
    """How many records a client holds is as private as they are."""

    def summed(rows, records, clip):
        total = private(rows, records, clip)
        total[-1] += 7
        return total

    plain, other = (
        ewc.build().finish(None, requests_, model, phase(model, private=True, summed=way))
        for way in (private, summed)
    )
    assert np.allclose(other, plain * 7 / 14, rtol=1e-5)


def test_a_private_sum_takes_every_record_once(model, requests_):
    twice = requests_ + requests_.take([2, 3])
    asked = phase(model, private=True, summed=private)
    method = ewc.build(samples=2)
    found = method.finish(None, twice, model, asked)
    assert np.allclose(found, method.finish(None, requests_, model, asked), rtol=1e-6)


def test_noise_below_zero_is_no_fisher(model, requests_):
    def summed(rows, records, clip):
        total = private(rows, records, clip)
        total[0], total[-1] = -3.0, -5.0
        return total

    found = ewc.build().finish(None, requests_, model, phase(model, private=True, summed=summed))
    assert np.isfinite(found).all()
    assert found.min() == 0.0


def test_a_private_fisher_passes_the_real_noise(model, requests_):
    from perennial.privacy.steps import noisy_sum

    records = many(requests_, 10)

    def summed(rows, records, clip):
        return noisy_sum(rows, clip, noise_multiplier=1.0)

    asked = phase(model, private=True, summed=summed)
    found = ewc.build(clip_norm=2.0).finish(None, records, model, asked)
    wanted = ewc.build(clip_norm=2.0).finish(
        None, records, model, phase(model, private=True, summed=private)
    )
    # A tensor's mean squared norm is the clip squared times a share, with noise of deviation
    # sqrt(2) / 70 in the share of 70 records.
    deviation = np.sqrt(2) / 70 * 2.0**2
    views, others = model.manifest.unpack(found), model.manifest.unpack(wanted)
    for name in model.manifest.names:
        assert abs(views[name].sum() - others[name].sum()) < 8 * deviation
    assert np.abs(found - wanted).max() > 0
