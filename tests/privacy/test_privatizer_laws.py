"""What holds for every privatizer in `privacy/`, so for a new file at once."""

import numpy as np
import pytest
import torch

from perennial.core import plugins
from perennial.core.parts import Privatizer
from perennial.core.values import Spend

# Options that a privatizer requires; one that is not here is built with its defaults.
OPTIONS = {}
# Privatizers that return their input: every record once per epoch, the plain mean gradient.
CLEAR = {"none"}

SIZES = [(0, 4), (1, 4), (4, 4), (10, 4), (33, 32)]


@pytest.fixture(params=plugins.names("privacy", Privatizer))
def named(request):
    name = request.param
    return name, plugins.load("privacy", name, OPTIONS.get(name, {}), Privatizer)


@pytest.fixture
def privatizer(named):
    return named[1]


def draw(privatizer, num_records, batch_size, epochs=2, seed=0):
    rng = np.random.default_rng(seed)
    return list(privatizer.batches(num_records, batch_size, epochs, rng))


def gradients(privatizer, parts, batch_size=4):
    """The gradient of a line through records whose gradients are 1, 2, 3, ... per record."""
    line = torch.nn.Linear(1, 1, bias=False)
    size = sum(len(part) for part in parts)
    with privatizer.attach(line):
        for part in parts:
            inputs = torch.tensor(part, dtype=torch.float32)[:, None]
            privatizer.backward(line(inputs).squeeze(1), size, batch_size)
        privatizer.release(dict(line.named_parameters()), batch_size)
    return line.weight.grad


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES)
def test_positions_are_those_of_records_each_at_most_once_a_step(
    privatizer, num_records, batch_size
):
    for batch in draw(privatizer, num_records, batch_size):
        assert batch.ndim == 1
        assert np.issubdtype(batch.dtype, np.integer)
        assert len(set(batch.tolist())) == len(batch)
        assert all(0 <= i < num_records for i in batch)


def test_an_empty_shard_takes_no_step_and_spends_nothing(privatizer):
    assert draw(privatizer, 0, 4) == []
    assert sum(spend.steps for spend in privatizer.spends(0, 4, 2)) == 0


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES[1:])
def test_spends_name_the_steps_that_are_taken(privatizer, num_records, batch_size):
    spends = privatizer.spends(num_records, batch_size, 2)
    for spend in spends:
        assert isinstance(spend, Spend)
        assert 0 < spend.sample_rate <= 1
        assert spend.noise_multiplier > 0
        assert spend.cohort
    if spends:
        steps = len(draw(privatizer, num_records, batch_size))
        assert sum(spend.steps for spend in spends) == steps


def test_the_released_gradient_is_finite_and_of_the_parameters_shape(privatizer):
    found = gradients(privatizer, [[1.0, 2.0], [3.0]])
    assert found.shape == (1, 1)
    assert torch.isfinite(found).all()


def test_the_module_is_left_as_it_was(privatizer):
    line = torch.nn.Linear(1, 1)
    hooks = len(line._forward_hooks), len(line._backward_hooks)
    with privatizer.attach(line):
        pass
    assert (len(line._forward_hooks), len(line._backward_hooks)) == hooks
    line(torch.ones(2, 1)).sum().backward()
    assert line.weight.grad.item() == 2.0


@pytest.fixture
def clear(named):
    if named[0] not in CLEAR:
        pytest.skip("it clips and adds noise")
    return named[1]


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES)
def test_in_the_clear_each_epoch_sees_every_record_once(clear, num_records, batch_size):
    batches = draw(clear, num_records, batch_size, epochs=3)
    per_epoch = len(batches) // 3
    for epoch in range(3):
        seen = [i for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in b]
        assert sorted(seen) == list(range(num_records))
    sizes = {len(batch) for batch in batches}
    assert max(sizes, default=0) <= batch_size
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_in_the_clear_batches_follow_the_generator(clear):
    first, again, other = (draw(clear, 20, 4, 1, seed) for seed in (0, 0, 1))
    assert [b.tolist() for b in first] == [b.tolist() for b in again]
    assert [b.tolist() for b in first] != [b.tolist() for b in other]


def test_in_the_clear_the_gradient_is_the_mean_over_the_step_by_hand(clear):
    # gradients 1, 2, 3 in parts of 2 and 1: their mean, whatever batch size was expected
    assert gradients(clear, [[1.0, 2.0], [3.0]], batch_size=4).item() == pytest.approx(2.0)
    assert gradients(clear, [[1.0, 2.0, 3.0]], batch_size=9).item() == pytest.approx(2.0)
    assert clear.spends(10, 4, 2) == ()
