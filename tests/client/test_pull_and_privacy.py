"""Pulls (EWC, FedProx) under DP-SGD: they are felt, because they join after clipping and noise.

In the naive composition, a penalty in the loss, they change nothing at all: reproduced here with
Opacus' own optimizer.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from asking import NOTHING, answered, client, delta, start, task_of

from perennial.client.parties import Own
from perennial.client.site import Site
from perennial.core.parts import Continual
from perennial.privacy import steps
from perennial.privacy.stream import Stream
from perennial.strategies import fedprox

CLIP, NOISE, LR = 1.0, 2.0, 1e-4
TEXT = f"""
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 3
[train]
batch_size = 16
optimizer = "sgd"
momentum = 0.0
lr = {LR}
warmup_rate = 0.0
decay = "constant"
[round]
weight = "uniform"
[privacy]
name = "dp_sgd"
epsilon = 50.0
delta = 1e-3
noise_multiplier = {NOISE}
sample_rate = 0.5
"""


@pytest.fixture(scope="module")
def site():
    torch.manual_seed(5)
    return Site(TEXT, {}, Own())


def with_known_noise(site, num_steps=2):
    """The client's privatizer with batches and noise that are the same in each round."""

    def session(module, parameters, batch_size):
        normals = Stream(bytes(32)).normal
        terms = {"clip": CLIP, "noise_multiplier": NOISE, "normals": normals}
        return steps.session(module, parameters, batch_size, **terms)

    batches = [np.arange(16), np.arange(8, 24)][:num_steps]
    count = len(batches)
    known = {"session": session, "batches": lambda *_: iter(batches), "steps": lambda _: count}
    return replace(site.promise, example=replace(site.promise.example, **known))


def ewc(strength, anchor, fisher):
    """Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3: strength * F (w - w_old)."""
    return Continual(
        start=lambda phase: (anchor, fisher),
        dataset=lambda memory, shard, model: shard,
        pull=lambda memory, now: {
            name: strength * memory[1][name] * (now[name] - memory[0][name]) for name in now
        },
        mask=lambda memory, now: {},
        size=lambda manifest: 0,
        finish=lambda memory, shard, model, phase: NOTHING,
        private=True,
    )


def memory_of(site):
    """Where an old domain ended, and how much each value mattered there (0..1)."""
    draw = torch.Generator().manual_seed(3)
    named = site.model.parameters()
    anchor = {n: torch.randn(p.shape, generator=draw) * 0.1 for n, p in named.items()}
    fisher = {n: torch.rand(p.shape, generator=draw) for n, p in named.items()}
    return anchor, fisher


def change(site, folder, monkeypatch, num_steps=2, **parts):
    """The update [n] of one round of a new client."""
    with monkeypatch.context() as patch:
        patch.setattr(site, "promise", with_known_noise(site, num_steps))
        for name, part in parts.items():
            patch.setattr(site, name, part)
        task = task_of(site)
        body, _ = answered(site, client(site, folder), task, start(site, task), NOTHING)
    return delta(site, body, task).copy()


def under_ewc(site, tmp_path, monkeypatch, strengths, num_steps=2):
    task_of(site)
    anchor, fisher = memory_of(site)
    return [
        change(site, tmp_path / f"{i}", monkeypatch, num_steps, continual=ewc(s, anchor, fisher))
        for i, s in enumerate(strengths)
    ]


def test_ewc_of_strength_0_and_1000_give_different_weights(site, tmp_path, monkeypatch):
    none, again, strong = under_ewc(site, tmp_path, monkeypatch, (0.0, 0.0, 1e3))
    assert np.array_equal(none, again), "batches and noise are the same"
    assert (none != strong).mean() > 0.99


def test_ewc_holds_near_the_old_weights_as_much_as_they_mattered(site, tmp_path, monkeypatch):
    none, strong = under_ewc(site, tmp_path, monkeypatch, (0.0, 1e3))
    anchor, fisher = (
        site.model.manifest.pack({n: t.numpy() for n, t in part.items()})
        for part in memory_of(site)
    )
    begun = start(site, task_of(site))
    far = [float(fisher @ (begun + moved - anchor) ** 2) for moved in (none, strong)]
    assert far[1] < 0.95 * far[0]


def test_the_pull_of_one_step_is_the_papers_gradient(site, tmp_path, monkeypatch):
    none, strong = under_ewc(site, tmp_path, monkeypatch, (0.0, 1e3), num_steps=1)
    anchor, fisher = (
        site.model.manifest.pack({n: t.numpy() for n, t in part.items()})
        for part in memory_of(site)
    )
    wanted = -LR * 1e3 * fisher * (start(site, task_of(site)) - anchor)
    assert np.abs((strong - none) - wanted).max() < 1e-6
    assert np.abs(wanted).max() > 0.01


def test_fedprox_of_strength_0_and_1000_give_different_weights(site, tmp_path, monkeypatch):
    found = [
        change(site, tmp_path / f"{mu}", monkeypatch, strategy=fedprox.build(mu=mu))
        for mu in (0.0, 1e3)
    ]
    assert not np.array_equal(*found)
    # It pulls back to where the round began; in the first step there is nothing to pull.
    assert np.linalg.norm(found[1]) < np.linalg.norm(found[0])
    first = [
        change(site, tmp_path / f"one-{mu}", monkeypatch, 1, strategy=fedprox.build(mu=mu))
        for mu in (0.0, 1e3)
    ]
    assert np.array_equal(*first)


def test_a_pull_costs_no_privacy(site, tmp_path, monkeypatch):
    """It is made of released weights alone: the ledger says the same."""
    task_of(site)
    said = []
    for strength in (0.0, 1e3):
        mine = client(site, tmp_path / f"{strength}")
        with monkeypatch.context() as patch:
            patch.setattr(site, "continual", ewc(strength, *memory_of(site)))
            task = task_of(site)
            _, metrics = answered(site, mine, task, start(site, task), NOTHING)
        said.append(metrics)
    assert said[0] == said[1]


# The naive composition.


def line():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def penalty(module, strength):
    return strength * sum((p - 0.5).square().sum() for p in module.parameters()) / 2


def losses(module):
    inputs = torch.linspace(-1, 1, 48).reshape(8, 6)
    return torch.nn.functional.cross_entropy(module(inputs), torch.arange(8) % 3, reduction="none")


def under_opacus(strength):
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    module = line()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(module, loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.SGD(wrapped.parameters(), lr=0.1),
            noise_multiplier=NOISE,
            max_grad_norm=CLIP,
            expected_batch_size=8,
            loss_reduction="sum",
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(3):
            optimizer.zero_grad()
            (losses(wrapped).sum() + penalty(module, strength)).backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def without_privacy(strength):
    module = line()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    (losses(module).sum() + penalty(module, strength)).backward()
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_penalty_in_the_loss_changes_nothing_under_opacus():
    assert torch.equal(under_opacus(0.0), under_opacus(1e3))
    assert not torch.equal(without_privacy(0.0), without_privacy(1e3)), "without privacy it does"


@pytest.mark.parametrize("route", ["activations", "opacus"])
def test_a_penalty_in_the_loss_changes_nothing_in_a_session_either(route):
    found = []
    for strength in (0.0, 1e3):
        module = line()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        terms = {"clip": CLIP, "noise_multiplier": NOISE, "normals": Stream(bytes(32)).normal}
        named = dict(module.named_parameters())
        with steps.session(module, named, 8, route=route, **terms) as session:
            session.backward(losses(module) + penalty(module, strength) / 8, 8)
            session.release(optimizer)
            optimizer.step()
            session.stepped()
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*found)
