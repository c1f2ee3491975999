"""Every silent failure of private training, one by one: each is named and stops the step."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from perennial.core.errors import PrivacyError
from perennial.privacy import guards, steps
from perennial.privacy.stream import Stream

CLIP, NOISE, BATCH = 0.5, 2.0, 8


@pytest.fixture(params=["activations", "opacus"])
def route(request):
    return request.param


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 20))


def parameters(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def sgd(module, lr=0.1):
    return torch.optim.SGD(list(module.parameters()), lr=lr)


def opened(module, given=None, route="activations", normals=None, batch=BATCH):
    given = parameters(module) if given is None else given
    return steps.session(
        module, given, batch, clip=CLIP, noise_multiplier=NOISE, route=route, normals=normals
    )


def losses(module, count=8):
    inputs = torch.linspace(-1, 1, 60).reshape(10, 6)[:count]
    out = module(inputs)
    return nn.functional.cross_entropy(out, torch.arange(count) % 20, reduction="none")


def private_step(module, session, optimizer, count=8):
    optimizer.zero_grad(set_to_none=True)
    if count:
        session.backward(losses(module, count), count)
    session.release(optimizer)
    optimizer.step()
    session.stepped()


def all_of_a_step(session, found, optimizer):
    session.backward(found, len(found))
    session.release(optimizer)


def steps_of(number, module, session, optimizer, count=8):
    for _ in range(number):
        private_step(module, session, optimizer, count)


# The optimizer.


def test_a_parameter_that_the_optimizer_lacks_is_named(module, route):
    optimizer = torch.optim.SGD(list(module.parameters())[:3], lr=0.1)
    with opened(module, route=route) as session:
        session.backward(losses(module), 8)
        with pytest.raises(PrivacyError, match=r"must hold every tensor.*2\.bias"):
            session.release(optimizer)


def test_an_optimizer_over_a_copy_of_the_model_is_refused(module, route):
    with (
        opened(module, route=route) as session,
        pytest.raises(PrivacyError, match="must hold every"),
    ):
        session.release(sgd(copy.deepcopy(module)))


def test_an_optimizer_with_more_than_the_private_tensors_is_refused(module, route):
    frozen = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*module.parameters(), frozen], lr=0.1)
    with opened(module, route=route) as session, pytest.raises(PrivacyError, match="nothing but"):
        session.release(optimizer)


def test_a_step_that_moves_nothing_is_refused(module, route):
    with opened(module, route=route) as session, pytest.raises(PrivacyError, match="did not"):
        private_step(module, session, sgd(module, lr=0.0))


def test_a_step_that_leaves_one_tensor_is_refused_by_name(module, route):
    optimizer = sgd(module)
    with opened(module, route=route) as session:
        session.backward(losses(module), 8)
        session.release(optimizer)
        before = module[0].bias.detach().clone()
        optimizer.step()
        with torch.no_grad():
            module[0].bias.copy_(before)
        with pytest.raises(PrivacyError, match=r"0\.bias must change"):
            session.stepped()


def test_a_tensor_that_is_masked_may_stay_where_it_was(module, route):
    optimizer = sgd(module)
    with opened(module, route=route) as session:
        session.release(optimizer)
        module[0].bias.grad.zero_()
        optimizer.step()
        session.stepped()


def test_a_noisy_gradient_that_is_lost_is_missed(module, route):
    optimizer = sgd(module)
    with opened(module, route=route) as session:
        session.release(optimizer)
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        with pytest.raises(PrivacyError, match="lost its noisy gradient"):
            session.stepped()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_optimizers_of_the_client_step_and_move_everything(module, route, kind):
    before = [p.detach().clone() for p in module.parameters()]
    made = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    optimizer = made(list(module.parameters()), lr=0.01, fused=True)
    with opened(module, route=route) as session:
        for count in (8, 0, 3):
            private_step(module, session, optimizer, count)
    assert all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_an_optimizer_that_steps_without_a_release_moves_nothing(module):
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = sgd(module)
    with opened(module) as session:
        session.backward(losses(module), 8)
        optimizer.step()
        with pytest.raises(PrivacyError, match="not released"):
            session.stepped()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


# The module.


def test_a_tensor_that_trains_beside_the_private_ones_is_refused(module, route):
    given = dict(list(parameters(module).items())[:3])
    with (
        pytest.raises(PrivacyError, match=r"2\.bias requires a gradient"),
        opened(module, given, route),
    ):
        pass


def test_parameters_of_a_copy_are_refused(module, route):
    given = parameters(copy.deepcopy(module))
    with (
        pytest.raises(PrivacyError, match=r"train privately|of a copy"),
        opened(module, given, route),
    ):
        pass


def test_a_frozen_parameter_is_refused(module, route):
    given = parameters(module)
    module[0].bias.requires_grad_(False)
    with (
        pytest.raises(PrivacyError, match=r"0\.bias must require a gradient"),
        opened(module, given, route),
    ):
        pass


def test_nothing_that_trains_is_refused(module, route):
    module.requires_grad_(False)
    with pytest.raises(PrivacyError, match="at least one tensor"), opened(module, {}, route):
        pass


def test_tied_parameters_are_refused(route):
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    module[1].weight = module[0].weight
    given = {f"{i}": p for i, p in enumerate(module.parameters())}
    with pytest.raises(PrivacyError, match="must not share"), opened(module, given, route):
        pass


@pytest.mark.parametrize("replace", ["tensor", "layer"])
def test_a_tensor_that_is_replaced_while_training_is_refused(module, route, replace):
    optimizer = sgd(module)
    with opened(module, route=route) as session:
        private_step(module, session, optimizer)
        if replace == "tensor":
            module[2].weight = nn.Parameter(module[2].weight.detach().clone())
        else:
            module[2] = copy.deepcopy(module[2])
        with pytest.raises(PrivacyError, match="was replaced"):
            session.release(optimizer)


def test_a_tensor_that_thaws_while_training_is_refused(module, route):
    module[0].requires_grad_(False)
    optimizer = torch.optim.SGD(module[2].parameters(), lr=0.1)
    with opened(module, route=route) as session:
        module[0].weight.requires_grad_(True)
        with pytest.raises(PrivacyError, match="began to train"):
            session.release(optimizer)


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_in_train_mode_is_refused(route, frozen):
    module = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20))
    module[1].requires_grad_(not frozen)
    with (
        pytest.raises(PrivacyError, match="1 is a BatchNorm1d in train mode"),
        opened(module, route=route),
    ):
        pass


def test_a_frozen_batch_norm_in_eval_mode_mixes_nothing():
    module = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20))
    module[1].requires_grad_(False).eval()
    optimizer = torch.optim.SGD(module[0].parameters(), lr=0.1)
    with opened(module) as session:
        private_step(module, session, optimizer)


@pytest.mark.parametrize("how", ["well", "badly"])
def test_the_module_is_as_it_was(module, route, how):
    before = {name: dict(vars(m)) for name, m in module.named_modules()}
    optimizer = sgd(module)
    try:
        with opened(module, route=route) as session:
            private_step(module, session, optimizer)
            if how == "badly":
                raise KeyError("anything")
    except KeyError:
        pass
    assert {name: dict(vars(m)) for name, m in module.named_modules()} == before
    assert all(p.requires_grad for p in module.parameters())
    module.zero_grad()
    losses(module).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_two_sessions_at_once_are_refused(module, route):
    with opened(module, route=route), pytest.raises(PrivacyError), opened(module, route=route):
        pass


# The steps.


def test_losses_that_are_a_mean_are_refused(module, route):
    with opened(module, route=route) as session:
        for wrong in (losses(module).mean(), losses(module)[:, None], losses(module).detach()):
            with pytest.raises(PrivacyError, match="one per example"):
                session.backward(wrong, 8)


def test_a_record_without_a_gradient_stops_the_step(module, route):
    with opened(module, route=route) as session:
        session.backward(losses(module, 5), 8)
        with pytest.raises(PrivacyError, match=r"all 8 records .*; 5 did"):
            session.release(sgd(module))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_step_and_changes_nothing(module, route, wrong):
    factors = torch.ones(8)
    factors[3] = wrong
    before = [p.detach().clone() for p in module.parameters()]
    with opened(module, route=route) as session, pytest.raises(PrivacyError, match="be finite"):
        all_of_a_step(session, losses(module) * factors, sgd(module))
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_step_is_released_once_and_takes_nothing_after(module, route):
    optimizer = sgd(module)
    with opened(module, route=route) as session:
        session.release(optimizer)
        with pytest.raises(PrivacyError, match="released once"):
            session.release(optimizer)
        with pytest.raises(PrivacyError, match="after its release"):
            session.backward(losses(module), 8)


def test_an_expected_batch_of_nothing_is_refused(module):
    with pytest.raises(PrivacyError, match="at least 1 record"), opened(module, batch=0):
        pass


# The clip.


def grad(module):
    return torch.cat([p.grad.double().flatten() for p in module.parameters()])


def no_noise():
    """Noise that is drawn as it should be, and is not in the way of a test."""
    return {"clip": CLIP, "noise_multiplier": 1e-4}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_one_more_example_moves_the_sum_by_at_most_the_clip(module, route, scale):
    found = []
    for count in (7, 8):
        fixed = Stream(bytes(32)).normal
        with steps.session(
            module, parameters(module), 1, route=route, normals=fixed, **no_noise()
        ) as session:
            session.backward(losses(module, count) * scale, count)
            session.release(sgd(module))
            found.append(grad(module))
    moved = float((found[1] - found[0]).norm())
    assert 0 < moved <= CLIP * (1 + 1e-4)
    if scale >= 1.0:
        assert moved == pytest.approx(CLIP, rel=1e-3)


def test_the_sum_of_a_part_is_within_its_clips(module, route):
    with steps.session(module, parameters(module), 1, route=route, **no_noise()) as session:
        session.backward(losses(module) * 1e4, 8)
        session.release(sgd(module))
    assert 0 < float(grad(module).norm()) <= 8 * CLIP * (1 + 1e-3)


@pytest.mark.parametrize("fault", ["unclipped", "unsaid"])
def test_a_route_that_does_not_clip_is_found(module, fault, monkeypatch):
    class Unclipped:
        def ruled(self):
            return list(module.parameters())

        def add(self, losses, clip, sums):
            sums[0][0, 0] += 100.0
            return torch.full((8,), 100.0 if fault == "unclipped" else clip)

    monkeypatch.setattr(steps, "_opened", lambda *_: nullcontext(Unclipped()))
    with opened(module) as session:
        session.backward(losses(module), 8)
        with pytest.raises(PrivacyError, match=r"norm of at most 0\.5"):
            session.release(sgd(module))


def test_a_route_without_a_rule_for_a_tensor_is_found(module, monkeypatch):
    class Partial:
        def ruled(self):
            return list(module.parameters())[1:]

    monkeypatch.setattr(steps, "_opened", lambda *_: nullcontext(Partial()))
    with (
        pytest.raises(PrivacyError, match=r"per-example gradient; \['0\.weight'\]"),
        opened(module),
    ):
        pass


# The noise.


def test_an_empty_batch_gives_noise_of_the_promised_spread(module, route):
    optimizer, found = sgd(module), []
    with opened(module, route=route) as session:
        for _ in range(20):
            private_step(module, session, optimizer, 0)
            found.append(grad(module))
    values = torch.cat(found)
    wanted = NOISE * CLIP / BATCH
    assert float(values.std()) == pytest.approx(wanted, rel=5 * (2 * len(values)) ** -0.5)
    assert abs(float(values.mean())) < 5 * wanted * len(values) ** -0.5


def test_a_full_batch_has_the_same_noise_and_each_step_its_own(module, route):
    found = []
    with opened(module, route=route) as session:
        for _ in range(20):
            session.backward(losses(module), 8)
            optimizer = sgd(module)
            session.release(optimizer)
            found.append(grad(module))
            session._released = False  # the same gradient again: nothing stepped
    rows = torch.stack(found)
    around = rows - rows.mean(0)
    spread = float(around.square().sum() / (19 * rows.shape[1])) ** 0.5
    assert spread == pytest.approx(NOISE * CLIP / BATCH, rel=0.03)
    similar = torch.corrcoef(around) - torch.eye(20)
    # taking the mean off leaves -1/19 between any two
    assert float((similar + 1 / 19).abs().max()) < 6 * rows.shape[1] ** -0.5 + 0.02


def test_parts_share_one_draw_of_noise(module, route):
    """The sum of the noise does not grow with the number of parts."""
    optimizer, found = sgd(module), []
    with steps.session(
        module, parameters(module), BATCH, clip=1e-6, noise_multiplier=NOISE, route=route
    ) as session:
        for _ in range(10):
            optimizer.zero_grad(set_to_none=True)
            for _part in range(4):
                session.backward(losses(module, 2), 8)
            session.release(optimizer)
            found.append(grad(module))
            optimizer.step()
            session.stepped()
    assert float(torch.cat(found).std()) == pytest.approx(NOISE * 1e-6 / BATCH, rel=0.1)


FAULTY = {
    "none": lambda count: np.zeros(count),
    "divided by the root of the batch": lambda count: Stream().normal(count) / np.sqrt(8),
    "a tenth too small": lambda count: 0.9 * Stream().normal(count),
    "shifted": lambda count: Stream().normal(count) + 0.5,
    "nan": lambda count: np.full(count, np.nan),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_noise_that_is_not_as_promised_is_found(module, route, fault):
    optimizer = sgd(module)
    with (
        opened(module, route=route, normals=FAULTY[fault]) as session,
        pytest.raises(PrivacyError, match="noise must"),
    ):
        steps_of(9, module, session, optimizer)
    assert all(p.grad is None for p in module.parameters())


def test_too_little_noise_on_a_few_values_is_found_over_the_steps():
    module = nn.Linear(6, 2)
    optimizer = sgd(module)
    with (
        opened(module, normals=lambda count: 0.7 * Stream().normal(count)) as session,
        pytest.raises(PrivacyError, match="standard deviation"),
    ):
        steps_of(200, module, session, optimizer, 0)


def test_noise_that_comes_again_is_found(module, route):
    kept = Stream().normal(20_000)
    optimizer = sgd(module)
    with opened(module, route=route, normals=lambda count: kept[:count]) as session:
        private_step(module, session, optimizer)
        with pytest.raises(PrivacyError, match="same came twice"):
            private_step(module, session, optimizer)


def test_a_generator_that_was_restored_is_found_in_another_session(module, monkeypatch):
    monkeypatch.setattr(steps, "SEEN", guards.Freshness())
    monkeypatch.setattr(steps, "Stream", lambda: Stream(bytes(range(32))))
    with opened(module) as session:
        private_step(module, session, sgd(module))
    with opened(module) as session, pytest.raises(PrivacyError, match="same came twice"):
        private_step(module, session, sgd(module))


def test_sum_and_noise_lie_on_a_grid_that_the_sum_does_not_move():
    std = 0.3
    totals = torch.from_numpy(Stream().normal(1000) * 40)
    found = steps.with_noise(totals, Stream().normal(1000), std)
    cells = found / 2.0**-22  # the largest power of 2 below 0.3 is 2**-2; 2**-20 of it
    assert torch.equal(cells, cells.round())
    assert float((found - totals).std()) == pytest.approx(std, rel=0.1)
