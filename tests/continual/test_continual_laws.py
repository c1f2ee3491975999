"""What holds for every continual method in `continual/`, so for a new file at once."""

import numpy as np
import pytest
import torch

from perennial.core import plugins
from perennial.core.parts import Continual, Phase
from perennial.core.values import Domain, Records
from perennial.models import tiny

# Options that a method requires; one that is not here is built with its defaults.
OPTIONS = {}

FIRST = Domain("talk", ("greet", "part", "thank"))
SECOND = Domain("food", ("eat", "drink"))
FOOD = Records(
    ("f0", "f1", "f2"),
    ("a sandwich please", "tea", "one more cup of tea"),
    ("eat", "drink", "drink"),
    ("food",) * 3,
    ("",) * 3,
)


@pytest.fixture(params=plugins.names("continual", Continual))
def method(request):
    return plugins.load("continual", request.param, OPTIONS.get(request.param, {}), Continual)


@pytest.fixture
def model():
    model = tiny.build(layers=1)
    model.fit_labels(FIRST.labels)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    return model


def phase(folder, index=0, summary=None):
    nothing = np.zeros(0, np.float32)
    domain = (FIRST, SECOND)[index]
    return Phase(domain, index, folder, 5, nothing if summary is None else summary)


def learnt(method, model, records, folder):
    """The summary after the first domain, and the memory at the start of the second."""
    before = phase(folder)
    vector = method.finish(method.start(before), records, model, before)
    model.fit_labels((*FIRST.labels, *SECOND.labels))
    return vector, method.start(phase(folder, 1, vector))


def test_in_the_first_domain_nothing_is_remembered(method, model, requests_, tmp_path):
    memory = method.start(phase(tmp_path))
    assert method.dataset(memory, requests_) == requests_
    parameters = model.parameters()
    assert all(not gradient.any() for gradient in method.pull(memory, parameters).values())
    assert all((part == 1).all() for part in method.mask(memory, parameters).values())


def test_what_is_summed_has_the_promised_size(method, model, requests_, tmp_path):
    size = method.size(model.manifest)
    vector, _ = learnt(method, model, requests_, tmp_path)
    assert vector.shape == (size,)
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()


def test_an_empty_shard_ends_a_domain_too(method, model, tmp_path):
    size = method.size(model.manifest)
    vector, memory = learnt(method, model, Records(), tmp_path)
    assert vector.shape == (size,)
    assert not vector.any()
    assert len(method.dataset(memory, Records())) == 0


def test_finishing_leaves_the_model_as_it_was(method, model, requests_, tmp_path):
    before = model.vector()
    grads = {name: p.requires_grad for name, p in model.parameters().items()}
    here = phase(tmp_path)
    method.finish(method.start(here), requests_, model, here)
    assert np.array_equal(model.vector(), before)
    assert {name: p.requires_grad for name, p in model.parameters().items()} == grads
    assert all(p.grad is None for p in model.parameters().values())


def test_the_shard_is_always_part_of_what_is_trained_on(method, model, requests_, tmp_path):
    *_, memory = learnt(method, model, requests_, tmp_path)
    dataset = method.dataset(memory, FOOD)
    assert set(FOOD.ids) <= set(dataset.ids)
    assert set(dataset.ids) <= set(FOOD.ids) | set(requests_.ids)
    assert method.dataset(memory, FOOD) == dataset


def test_pulls_and_masks_fit_the_parameters(method, model, requests_, tmp_path):
    *_, memory = learnt(method, model, requests_, tmp_path)
    for chosen in (model.parameters(), {"head.bias": model.parameters()["head.bias"]}):
        pulls, masks = method.pull(memory, chosen), method.mask(memory, chosen)
        assert pulls.keys() <= chosen.keys()
        for name, gradient in pulls.items():
            assert gradient.shape == chosen[name].shape
            assert torch.isfinite(gradient).all()
        for name, part in masks.items():
            if name in chosen:
                assert torch.as_tensor(part).expand(chosen[name].shape).min() >= 0
                assert torch.as_tensor(part).max() <= 1


def test_what_is_remembered_survives_the_process(method, model, requests_, tmp_path):
    vector, memory = learnt(method, model, requests_, tmp_path)
    again = method.start(phase(tmp_path, 1, vector))
    parameters = model.parameters()
    assert method.dataset(again, FOOD) == method.dataset(memory, FOOD)
    first, second = method.pull(memory, parameters), method.pull(again, parameters)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_clients_do_not_share_what_they_remember(method, model, requests_, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = phase(tmp_path / "a")
    method.finish(method.start(here), requests_, model, here)
    memory = method.start(phase(tmp_path / "b"))
    assert method.dataset(memory, FOOD) == FOOD
