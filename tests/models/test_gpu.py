"""On a CUDA device: the same answers, bf16 by autocast, float32 weights, a whole run."""

import json

import numpy as np
import pytest
import torch

from perennial.core.config import Train
from perennial.models import encoder_classifier, tiny
from perennial.models.place import place
from perennial.simulations.simulate import simulate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def made(build, **train):
    torch.manual_seed(0)
    model = build(layers=1)
    model.fit_labels(["greet", "part", "thank"])
    place(model, Train(**train))
    vector = np.random.default_rng(0).normal(scale=0.02, size=model.manifest.size)
    model.load(vector.astype(np.float32))
    return model


@pytest.mark.parametrize("build", [tiny.build, encoder_classifier.build])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_losses_on_cuda_are_those_on_the_cpu(build, precision, tolerance, requests_):
    here = made(build, device="cpu")
    there = made(build, device="cuda", precision=precision)
    losses = []
    for model in (here, there):
        encoded = model.encode(requests_)
        losses.append(model.losses(encoded.batch(np.arange(7)), ()).detach().cpu())
    assert torch.allclose(*losses, atol=tolerance)
    assert all(p.is_cuda and p.dtype == torch.float32 for p in there.parameters().values())


@pytest.mark.parametrize("build", [tiny.build, encoder_classifier.build])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_questions_on_cuda_are_answered_as_on_the_cpu(build, precision, tolerance, requests_):
    here = made(build, device="cpu")
    there = made(build, device="cuda", precision=precision)
    free = torch.tensor([True, False] * 3 + [True])
    found = []
    for model in (here, there):
        encoded = model.encode(requests_)
        batch = encoded.batch(np.arange(7))
        drawn = model.resampled(batch, np.random.default_rng(0)).targets
        assert drawn.device == batch.targets.device
        found.append(
            [
                model.losses(batch, [0, 1], free).detach().cpu().numpy(),
                model.logits(encoded, 3),
                model.features(requests_, 2) / 10,
                model.features(requests_, 2, adapted=True) / 10,
            ]
        )
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, atol=tolerance)


def test_auto_means_cuda_with_bf16(requests_):
    model = made(tiny.build, device="auto")
    assert next(iter(model.parameters().values())).is_cuda
    assert model._bf16


def test_gradient_checkpointing_on_cuda_gives_the_same_gradients(requests_):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = encoder_classifier.build(layers=0, gradient_checkpointing=checkpointing)
        model.fit_labels(["greet", "part", "thank"])
        place(model, Train(device="cuda", precision="fp32"))
        vector = np.random.default_rng(0).normal(scale=0.02, size=model.manifest.size)
        model.load(vector.astype(np.float32))
        model.losses(model.encode(requests_).batch(np.arange(7)), ()).sum().backward()
        gradients.append([p.grad.cpu() for p in model.parameters().values()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_whole_run_on_cuda(tmp_path):
    text = """
[data]
name = "sample"
[domains]
order = ["bank"]
[model]
name = "encoder_classifier"
layers = 1
[train]
device = "cuda"
lr = 5e-3
epochs = 3
batch_size = 16
[shards]
num_clients = 2
"""
    simulate(text, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["finished"]
    assert report["accuracy_matrix"][0][0] > 0.5
