"""What holds for every privatizer in `privacy/`, so for a new file at once."""

import numpy as np
import pytest
import torch

from perennial.core import plugins
from perennial.core.parts import Privatizer, Strata
from perennial.core.private import EXAMPLE, Statement, one_cohort
from perennial.core.values import Spend

# Options that a privatizer requires; one that is not here is built with its defaults.
OPTIONS = {
    "dp_sgd": {"epsilon": 50.0, "delta": 1e-3, "noise_multiplier": 1.5, "sample_rate": 0.5},
}
# Privatizers that return their input: every record once per epoch, the plain mean gradient.
CLEAR = {"none"}

# Records and batch size; a promise may need more records than one.
SIZES = [(0, 4), (2, 4), (4, 4), (10, 4), (33, 32)]
TWO_COHORTS = Strata(("new", "old"), np.array([0, 1, 0, 1, 0, 1, 1]))


@pytest.fixture(params=plugins.names("privacy", Privatizer), scope="module")
def named(request):
    name = request.param
    return name, plugins.load("privacy", name, OPTIONS.get(name, {}), Privatizer)


@pytest.fixture
def privatizer(named):
    return named[1]


def draw(privatizer, num_records, batch_size, epochs=2, seed=0):
    rng = np.random.default_rng(seed)
    return list(privatizer.batches(one_cohort(num_records), batch_size, epochs, rng))


def gradients(privatizer, parts, batch_size=4):
    """The gradient of a line through records whose gradients are 1, 2, 3, ... per record."""
    line = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
    size = sum(len(part) for part in parts)
    with privatizer.session(line, dict(line.named_parameters()), batch_size) as session:
        optimizer.zero_grad(set_to_none=True)
        for part in parts:
            inputs = torch.tensor(part, dtype=torch.float32)[:, None]
            session.backward(line(inputs).squeeze(1), size)
        session.release(optimizer)
        found = None if line.weight.grad is None else line.weight.grad.clone()
        optimizer.step()
        session.stepped()
    return found


def test_there_are_privatizers():
    assert {"none", "dp_sgd"} <= set(plugins.names("privacy", Privatizer))


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES)
def test_positions_are_those_of_records_each_at_most_once_a_step(
    privatizer, num_records, batch_size
):
    for batch in draw(privatizer, num_records, batch_size):
        assert batch.ndim == 1
        assert batch.dtype == np.intp
        assert len(set(batch.tolist())) == len(batch)
        assert all(0 <= i < num_records for i in batch)


def test_an_empty_shard_takes_no_step_and_spends_nothing(privatizer):
    assert draw(privatizer, 0, 4) == []
    assert privatizer.spends(one_cohort(0), 2) == ()
    assert privatizer.sum_spends(one_cohort(0)) == ()


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES[1:])
def test_spends_name_the_steps_that_are_taken(privatizer, num_records, batch_size):
    for spend in privatizer.spends(one_cohort(num_records), 2):
        assert isinstance(spend, Spend)
        assert 0 < spend.sample_rate <= 1
        assert spend.noise_multiplier > 0
        assert spend.cohort == "all"
        assert spend.steps == len(draw(privatizer, num_records, batch_size))


def test_whoever_promises_charges_every_cohort_that_is_used(privatizer):
    for spends in (privatizer.spends(TWO_COHORTS, 1), privatizer.sum_spends(TWO_COHORTS)):
        cohorts = [spend.cohort for spend in spends]
        assert cohorts == (["new", "old"] if privatizer.unit else [])
        assert all(spend.steps >= 1 for spend in spends)


def test_a_promise_is_a_unit_with_terms(privatizer):
    assert privatizer.unit in ("", EXAMPLE)
    terms = {"mechanism", "epsilon", "delta", "clip", "noise_multiplier", "sample_rate"}
    if privatizer.unit:
        assert terms | {"replay_rate"} <= set(privatizer.terms)
        assert privatizer.largest_part > 0
    else:
        assert privatizer.terms == {}


def test_the_released_gradient_is_finite_and_of_the_parameters_shape(privatizer):
    found = gradients(privatizer, [[1.0, 2.0], [3.0]])
    assert found.shape == (1, 1)
    assert torch.isfinite(found).all()


def test_an_empty_step_is_taken(privatizer):
    found = gradients(privatizer, [])
    # what promises something adds its noise all the same
    assert (found is None) == (not privatizer.unit)


@pytest.mark.parametrize("fails", [False, True])
def test_the_module_is_left_as_it_was(privatizer, fails):
    line = torch.nn.Linear(1, 1)
    before = dict(vars(line))
    try:
        with privatizer.session(line, dict(line.named_parameters()), 4):
            line(torch.ones(2, 1))
            if fails:
                raise KeyError("anything")
    except KeyError:
        pass
    assert vars(line) == before
    assert not line._forward_hooks
    assert not line._backward_hooks
    line(torch.ones(2, 1)).sum().backward()
    assert line.weight.grad.item() == 2.0


def test_a_sum_has_the_width_of_its_rows(privatizer):
    blocks = [np.ones((2, 5), np.float32), np.ones((1, 5), np.float32)]
    found = privatizer.summed(iter(blocks), 1.0)
    assert found.shape == (5,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert privatizer.summed(iter([]), 1.0).shape == (0,)


def test_the_ledger_says_what_it_was_charged(privatizer, tmp_path):
    ledger = privatizer.ledger(tmp_path, "7")
    start = ledger.statement()
    assert isinstance(start, Statement)
    assert start.unit == privatizer.unit
    assert (start.epsilon, start.releases) == (0.0, 0)
    spends = privatizer.spends(one_cohort(10), 1)
    said = ledger.charge({"run": "r", "kind": "round", "domain": "d", "round": 0}, spends)
    assert (said.epsilon > 0.0) == bool(privatizer.unit)
    assert said.epsilon <= said.target
    if privatizer.unit:
        assert (said.target, said.delta) == (50.0, 1e-3)
        assert privatizer.ledger(tmp_path, "7").statement().epsilon == said.epsilon


def test_a_release_adds_nothing_to_what_is_spent(privatizer, tmp_path):
    place = {"run": "r", "kind": "train", "domain": 0, "round": 0, "salt": "0123456789abcdef"}
    ledger, spends = privatizer.ledger(tmp_path, "7"), privatizer.spends(one_cohort(10), 1)
    said = ledger.charge(place, spends)
    assert ledger.charge(place, spends) == said  # nothing left: it is used again
    ledger.released(place)
    assert ledger.statement() == said
    assert (ledger.charge(place, spends).epsilon > said.epsilon) == bool(privatizer.unit)


@pytest.fixture
def clear(named):
    if named[0] not in CLEAR:
        pytest.skip("it clips and adds noise")
    return named[1]


@pytest.mark.parametrize(("num_records", "batch_size"), [*SIZES, (1, 4)])
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
    assert clear.spends(one_cohort(10), 2) == ()


def test_in_the_clear_a_sum_is_the_sum(clear):
    rows = [np.array([[3.0, 4.0], [1.0, 0.0]], np.float32), np.array([[0.0, 6.0]], np.float32)]
    assert clear.summed(iter(rows), 1.0).tolist() == [4.0, 10.0]


@pytest.fixture
def private(named):
    if named[0] in CLEAR:
        pytest.skip("it promises nothing")
    return named[1]


def test_private_batches_are_drawn_record_by_record_and_not_by_the_generator(private):
    batches = draw(private, 400, 4, epochs=200)
    again = draw(private, 400, 4, epochs=200)
    assert [b.tolist() for b in batches] != [b.tolist() for b in again]
    rate = private.terms["sample_rate"]
    sizes = np.array([len(batch) for batch in batches])
    wanted, spread = 400 * rate, (400 * rate * (1 - rate)) ** 0.5
    assert abs(sizes.mean() - wanted) < 5 * spread / len(sizes) ** 0.5
    # the sizes vary as those of independent draws do: not a fixed batch in disguise
    assert 0.8 * spread < sizes.std() < 1.2 * spread


def test_a_private_gradient_is_never_twice_the_same(private):
    found = {gradients(private, [[1.0, 2.0, 3.0]]).item() for _ in range(20)}
    assert len(found) == 20


def test_private_sums_are_cut_and_noised(private):
    huge = np.full((3, 4000), 1e6, np.float32)
    found = private.summed(iter([huge]), 2.0)
    sigma = private.terms["noise_multiplier"] * 2.0
    # three rows of norm 2 give 6 / sqrt(4000) per value
    assert abs(found.mean() - 6 / 4000**0.5) < 5 * sigma / 4000**0.5
    assert found.std() == pytest.approx(sigma, rel=0.06)
