"""Losses over some labels and draws from predictions, by hand and through the private routes."""

import numpy as np
import pytest
import torch
from scipy import stats

from perennial.models import answers, tiny
from perennial.privacy import opacus_route, per_example

LABELS = ("greet", "part", "thank")
FREE = torch.tensor([True, False, False, True, False, True, False])


@pytest.fixture
def model():
    model = tiny.build(layers=1)
    model.fit_labels(LABELS)
    draw = np.random.default_rng(0)
    model.load(draw.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    return model


@pytest.fixture
def batch(model, requests_):
    return model.encode(requests_).batch(np.arange(7))


def rows_of(model, losses):
    """Gradients per example [b, n], each from its own call of autograd."""
    parameters = list(model.parameters().values())
    return torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=1)])
            for loss in losses
        ]
    )


def test_the_losses_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    found = answers.losses(logits, torch.tensor([1, 1, 2]), [0, 1], [False, True, False])
    bound = np.log(np.exp(1) + np.exp(2)) - 2
    whole = np.log(np.exp(1) + np.exp(2) + np.exp(4)) - 2
    assert found.tolist() == pytest.approx([bound, whole, 0.0], abs=1e-6)


def test_each_example_has_the_loss_and_the_gradient_of_its_own_kind(model, batch):
    bound, whole = model.losses(batch, [0, 1]), model.losses(batch, [])
    mixed = model.losses(batch, [0, 1], FREE)
    assert torch.allclose(mixed, torch.where(FREE, whole, bound), atol=1e-6)
    rows = [rows_of(model, losses) for losses in (mixed, whole, bound)]
    assert torch.allclose(rows[0], torch.where(FREE[:, None], rows[1], rows[2]), atol=1e-6)
    assert (whole - bound).abs().min() > 1e-3  # or the two kinds would be one


def test_who_is_not_free_leaves_the_rows_of_other_labels_alone(model, batch):
    losses = model.losses(batch, [0, 1], FREE)
    head = [model.parameters()["head.weight"], model.parameters()["head.bias"]]
    for loss, free in zip(losses, FREE, strict=True):
        for gradient in torch.autograd.grad(loss, head, retain_graph=True):
            assert bool(gradient[2].any()) == bool(free)


def test_all_or_nobody_free_are_the_plain_losses_bit_for_bit(model, batch):
    nobody, everybody = torch.zeros(7, dtype=torch.bool), torch.ones(7, dtype=torch.bool)
    plain = model.losses(batch, [2, 0])
    assert torch.equal(model.losses(batch, [2, 0], nobody), plain)
    assert torch.equal(model.losses(batch, [2, 0], nobody.numpy()), plain)
    assert torch.allclose(model.losses(batch, [2, 0], everybody), model.losses(batch, []))
    assert torch.equal(model.losses(batch, [], FREE), model.losses(batch, []))


@pytest.mark.parametrize("opened", [per_example.opened, opacus_route.opened])
def test_private_steps_clip_each_example_of_either_kind(model, batch, opened):
    rows = rows_of(model, model.losses(batch, [0, 1], FREE))
    norms = rows.norm(dim=1)
    clip = float(norms.median())
    wanted = (rows * (clip / norms).clamp(max=1.0)[:, None]).sum(0)
    parameters = dict(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters.values()]
    with opened(model.module, parameters) as route:
        found = route.add(model.losses(batch, [0, 1], FREE), clip, sums)
    assert torch.allclose(torch.cat([s.flatten() for s in sums]), wanted, atol=1e-5)
    assert torch.allclose(found, norms.clamp(max=clip), atol=1e-5)


def test_draws_follow_the_softmax():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = torch.tensor(np.log(probabilities), dtype=torch.float32).expand(20_000, 4)
    drawn = answers.drawn(logits, np.random.default_rng(3))
    counts = np.bincount(drawn.numpy(), minlength=4)
    assert stats.chisquare(counts, 20_000 * probabilities).pvalue > 0.01
    # The same counts speak against probabilities that are off by a few hundredths.
    assert stats.chisquare(counts, [9_400, 6_400, 3_000, 1_200]).pvalue < 1e-6


def test_rows_are_drawn_each_from_its_own_prediction():
    wanted = torch.arange(300) % 5
    logits = torch.full((300, 5), -torch.inf)
    logits[torch.arange(300), wanted] = 2.0
    assert torch.equal(answers.drawn(logits, np.random.default_rng(0)), wanted)
    assert answers.drawn(logits[:0], np.random.default_rng(0)).shape == (0,)


def test_a_model_draws_from_its_own_predictions(model, requests_):
    encoded = model.encode(requests_)
    batch = encoded.batch(np.full(6_000, 1))
    with torch.no_grad():
        wanted = model.outputs(encoded.batch(np.array([1])))[0].double().softmax(0).numpy()
    drawn = model.resampled(batch, np.random.default_rng(1))
    counts = np.bincount(drawn.targets.numpy(), minlength=3)
    assert stats.chisquare(counts, 6_000 * wanted).pvalue > 0.01


def test_a_prior_is_added_to_the_logits():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets, prior = torch.tensor([0, 1, 2, 1]), torch.tensor([0.5, -1.0, 0.0])
    for allowed in ((), (0, 1), (0, 1, 2)):
        found = answers.losses(logits, targets, allowed, [True] * 4, prior)
        assert torch.equal(found, answers.losses(logits + prior, targets, allowed, [True] * 4))


def test_a_balanced_loss_learns_one_thing_whatever_the_shares_of_labels():
    """At the optimum of the balanced loss the logits are those of equally frequent labels."""
    shares = torch.tensor([0.9, 0.1])
    targets = torch.tensor([0] * 9 + [1])
    prior = shares.log()
    bias = torch.zeros(2, requires_grad=True)
    step = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-12)

    def loss():
        step.zero_grad()
        value = answers.losses(bias.expand(10, 2), targets, (), None, prior).mean()
        value.backward()
        return value

    step.step(loss)
    assert float(bias[0] - bias[1]) == pytest.approx(0.0, abs=1e-4)
