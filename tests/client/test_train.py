"""The local loop, on a model small enough to train by hand: y = w x + b."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from perennial.client.train import Forces, Schedule, train
from perennial.core.config import Train
from perennial.core.private import Strata, one_cohort
from perennial.core.values import Manifest
from perennial.privacy import none

BY_HAND = Train(
    optimizer="sgd", momentum=0.0, lr=0.1, batch_size=2, warmup_rate=0.0, decay="constant"
)
WHOLE = Schedule(0, 1, 0.0, "constant")


class Line:
    """Half the squared error of a line; records are pairs (x, y)."""

    def __init__(self, w=1.0, b=0.0):
        self.module = torch.nn.Module()
        self.module.w = torch.nn.Parameter(torch.tensor([w]))
        self.module.b = torch.nn.Parameter(torch.tensor([b]))

    def parameters(self):
        return {"w": self.module.w, "b": self.module.b}

    @property
    def manifest(self):
        return Manifest(("w", "b"), ((1,), (1,)))

    def losses(self, batch, answers, free=None):
        x, y = batch
        return 0.5 * (self.module.w * x + self.module.b - y) ** 2

    @property
    def now(self):
        return [float(p.detach()) for p in self.parameters().values()]


class Pairs:
    def __init__(self, *pairs):
        self.pairs = torch.tensor(pairs, dtype=torch.float32).reshape(-1, 2)

    def __len__(self):
        return len(self.pairs)

    def batch(self, indices):
        return self.pairs[torch.from_numpy(np.asarray(indices, np.int64))].T


TWO = Pairs((1, 3), (2, 0))


def go(model, encoded=TWO, table=BY_HAND, schedule=WHOLE, **more):
    options = {
        "privatizer": none.build(),
        "forces": Forces(),
        "trainable": frozenset({"w", "b"}),
        "answers": (),
        "rng": np.random.default_rng(0),
        **more,
    }
    strata = options.pop("strata", one_cohort(len(encoded)))
    return train(model, encoded, strata, table, schedule, **options)


def many(count=32, seed=0):
    return Pairs(*np.random.default_rng(seed).normal(size=(count, 2)).tolist())


def test_one_step_by_hand():
    # errors 1*1-3 = -2 and 1*2-0 = 2: gradients (-2, -2) and (4, 2), their mean (1, 0).
    model = Line()
    loss = go(model)
    assert model.now == pytest.approx([0.9, 0.0])
    assert loss == pytest.approx(2.0)


def test_momentum_by_hand():
    # second step at w = 0.9, b = 0: errors -2.1 and 1.8; mean gradient (0.75, -0.15).
    # velocities: (1, 0), then 0.5 * (1, 0) + (0.75, -0.15)
    model = Line()
    go(model, table=BY_HAND.model_copy(update={"momentum": 0.5, "epochs": 2}))
    assert model.now == pytest.approx([0.9 - 0.125, 0.015])


def test_the_loss_is_the_mean_over_the_records_seen():
    # w = 0 throughout (rate of nothing): losses 4.5 and 0, and 0.5 for the third
    table = BY_HAND.model_copy(update={"lr": 1e-30, "epochs": 3})
    assert go(Line(0.0), Pairs((1, 3), (2, 0), (1, 1)), table) == pytest.approx(5 / 3)


def test_an_empty_shard_trains_nothing():
    model = Line()
    assert go(model, Pairs()) == 0.0
    assert model.now == [1.0, 0.0]


def test_adamw_equals_torch_on_the_same_batches():
    table = Train(lr=0.05, batch_size=4, weight_decay=0.1, epochs=2)
    schedule = Schedule(1, 3, 0.1, "linear")
    model, other, data = Line(), Line(), many(10)
    go(model, data, table, schedule)
    optimizer = torch.optim.AdamW(other.module.parameters(), lr=1.0, weight_decay=0.1)
    drawn = list(none.shuffled(10, 4, 2, np.random.default_rng(0)))
    for step, indices in enumerate(drawn):
        optimizer.param_groups[0]["lr"] = 0.05 * schedule.factor(step, len(drawn))
        optimizer.zero_grad()
        other.losses(data.batch(indices), ()).mean().backward()
        optimizer.step()
    assert model.now == pytest.approx(other.now, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_steps_equal_whole_ones(optimizer):
    found = []
    for accumulate in (1, 4, 32):
        model = Line()
        table = Train(optimizer=optimizer, lr=0.05, batch_size=32, accumulate=accumulate, epochs=3)
        loss = go(model, many(70), table)
        found.append([*model.now, loss])
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


def test_accumulation_makes_parts_of_the_asked_number():
    sizes = []
    spy = spying([], backward=lambda losses, step_size: sizes.append((len(losses), step_size)))
    go(Line(), many(32), Train(batch_size=32, accumulate=4), privatizer=spy)
    assert sizes == [(8, 32)] * 4


def test_no_part_is_larger_than_the_privatizer_says():
    sizes = []
    spy = spying([], backward=lambda losses, step_size: sizes.append((len(losses), step_size)))
    go(Line(), many(32), Train(batch_size=32), privatizer=replace(spy, largest_part=10))
    assert sizes == [(8, 32)] * 4


def test_two_trainings_give_the_same_bits():
    found = []
    for _ in range(2):
        model = Line()
        go(model, many(20), Train(batch_size=4, epochs=2))
        found.append(model.now)
    assert found[0] == found[1]
    other = Line()
    go(other, many(20), Train(batch_size=4, epochs=2), rng=np.random.default_rng(1))
    assert other.now != found[0]


def test_tensors_that_do_not_train_stand_still_and_are_given_back():
    model = Line()
    go(model, many(), Train(weight_decay=0.5), trainable=frozenset({"w"}))
    assert model.now[1] == 0.0
    assert model.now[0] != 1.0
    assert model.module.b.grad is None
    assert all(p.requires_grad for p in model.parameters().values())


def test_tensors_are_given_back_after_a_failure():
    class Broken(Line):
        def losses(self, batch, answers, free=None):
            assert not self.module.b.requires_grad
            raise RuntimeError("out of memory")

    model = Broken()
    with pytest.raises(RuntimeError, match="out of memory"):
        go(model, trainable=frozenset({"w"}))
    assert model.module.b.requires_grad


def spying(calls, **changes):
    """The privatizer `none`, writing down the order of the calls."""
    real = none.build()

    class Spy:
        def __init__(self, session, parameters):
            self.session, self.parameters = session, parameters

        def backward(self, losses, step_size):
            calls.append("backward")
            changes.get("backward", self.session.backward)(losses, step_size)

        def release(self, optimizer):
            calls.append("release")
            assert isinstance(optimizer, torch.optim.Optimizer)
            changes.get("release", lambda parameters: None)(self.parameters)

        def stepped(self):
            calls.append("stepped")

    @contextmanager
    def session(module, parameters, batch_size):
        calls.append("open")
        with real.session(module, parameters, batch_size) as opened:
            yield Spy(opened, parameters)
        calls.append("close")

    def batches(*args):
        calls.append("batches")
        yield from changes.get("batches", real.batches)(*args)

    return replace(real, session=session, batches=batches)


def test_pulls_join_after_the_release_and_the_mask_after_them():
    calls = []

    def pull(parameters):
        calls.append("pull")
        assert set(parameters) == {"w"}
        return {}

    def mask(parameters):
        calls.append("mask")
        return {}

    go(
        Line(),
        table=BY_HAND.model_copy(update={"accumulate": 2, "epochs": 2}),
        privatizer=spying(calls),
        forces=Forces((pull, pull), mask),
        trainable=frozenset({"w"}),
    )
    step = ["backward", "backward", "release", "pull", "pull", "mask", "stepped"]
    # Before the round the mask is asked once what stands still altogether.
    assert calls == ["mask", "batches", "open", *step, *step, "close"]


def test_what_is_masked_altogether_takes_no_gradient_and_changes_nothing_else():
    asked = []

    class Watched(Line):
        def losses(self, batch, answers, free=None):
            asked.append([p.requires_grad for p in self.parameters().values()])
            return super().losses(batch, answers)

    table = BY_HAND.model_copy(update={"epochs": 3, "optimizer": "adamw", "weight_decay": 0.1})
    model, alone = Watched(), Line()
    go(model, table=table, forces=Forces(mask=lambda p: {"w": torch.zeros(())}))
    go(alone, table=table, trainable=frozenset({"b"}))
    assert asked == [[False, True]] * 3
    assert model.now == alone.now
    assert all(p.requires_grad for p in model.parameters().values())


def test_where_all_is_masked_nothing_is_trained():
    model = Line()
    assert go(model, forces=Forces(mask=lambda p: {n: torch.zeros(()) for n in p})) == 0.0
    assert model.now == [1.0, 0.0]


def test_replayed_records_look_at_all_labels():
    seen = []

    class Watched(Line):
        def losses(self, batch, answers, free=None):
            seen.append((tuple(answers), None if free is None else free.tolist()))
            return super().losses(batch, answers)

    strata = Strata(("new", "old"), np.array([0, 1]))
    go(Watched(), strata=strata, answers=(2, 3))
    go(Watched(), strata=strata)
    go(Watched(), strata=one_cohort(2), answers=(2, 3))
    assert seen[0][0] == (2, 3)
    assert sorted(seen[0][1]) == [False, True]
    assert seen[1:] == [((), None), ((2, 3), None)]


def test_a_pull_survives_what_the_privatizer_does_to_the_gradient():
    def release(parameters):
        for parameter in parameters.values():
            parameter.grad.zero_()

    model = Line()
    pulls = (
        lambda parameters: {"w": torch.tensor([2.0])},
        lambda parameters: {"w": torch.tensor([3.0])},
    )
    go(model, privatizer=spying([], release=release), forces=Forces(pulls))
    assert model.now == pytest.approx([1.0 - 0.1 * 5, 0.0])


def test_a_pull_on_a_step_without_records():
    # Poisson sampling draws an empty batch now and then: no part, no backward, but the pull.
    nothing = spying([], batches=lambda *_: iter([np.zeros(0, np.intp)]))

    class NeverEmpty(Line):
        def losses(self, batch, answers, free=None):
            assert len(batch[0])
            return super().losses(batch, answers)

    model = NeverEmpty()
    pull = Forces((lambda parameters: {"w": torch.tensor([2.0])},))
    assert go(model, privatizer=nothing, forces=pull) == 0.0
    assert model.now == pytest.approx([0.8, 0.0])


def test_a_pull_carries_no_graph():
    model = Line()
    go(model, forces=Forces((lambda parameters: {n: 0.5 * p for n, p in parameters.items()},)))
    assert all(p.grad is None or not p.grad.requires_grad for p in model.parameters().values())
    # gradients (1, 0), pulls (0.5, 0)
    assert model.now == pytest.approx([0.85, 0.0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("part", [0.0, 0.25, 1.0])
def test_the_mask_scales_the_step_of_any_optimizer(optimizer, part):
    # AdamW's first step does not depend on the size of the gradient: a masked gradient would
    # move as far as a whole one.
    table = BY_HAND.model_copy(update={"optimizer": optimizer, "weight_decay": 0.1})
    free, masked = Line(), Line()
    go(free, table=table)
    go(masked, table=table, forces=Forces(mask=lambda parameters: {"w": torch.tensor([part])}))
    step = free.now[0] - 1.0
    assert abs(step) > 0.01
    assert masked.now[0] - 1.0 == pytest.approx(part * step, abs=1e-6)
    assert masked.now[1] == free.now[1]


def test_a_mask_of_a_tensor_that_stands_still_is_passed_over():
    model = Line()
    mask = Forces(mask=lambda parameters: {"b": torch.tensor([0.5])})
    go(model, trainable=frozenset({"w"}), forces=mask)
    assert model.now == pytest.approx([0.9, 0.0])


def test_the_answers_reach_the_loss():
    asked = []

    class Asking(Line):
        def losses(self, batch, answers, free=None):
            asked.append(answers)
            return super().losses(batch, answers)

    go(Asking(), answers=[2, 0])
    assert asked == [[2, 0]]


def test_the_schedule_by_hand():
    # Two rounds of two steps: middles at 1/8, 3/8, 5/8, 7/8; warm-up over the first half.
    found = [Schedule(r, 2, 0.5, "linear").factor(s, 2) for r in range(2) for s in range(2)]
    assert found == pytest.approx([0.25, 0.75, 0.75, 0.25])
    found = [Schedule(r, 2, 0.5, "constant").factor(s, 2) for r in range(2) for s in range(2)]
    assert found == pytest.approx([0.25, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("decay", ["linear", "constant"])
@pytest.mark.parametrize("warmup_rate", [0.0, 0.1, 0.5, 1.0])
def test_the_schedule_goes_on_over_the_rounds(decay, warmup_rate):
    rounds, steps = 4, 5
    apart = [
        Schedule(r, rounds, warmup_rate, decay).factor(s, steps)
        for r in range(rounds)
        for s in range(steps)
    ]
    whole = [
        Schedule(0, 1, warmup_rate, decay).factor(s, rounds * steps) for s in range(rounds * steps)
    ]
    assert apart == pytest.approx(whole)
    assert all(0 < factor <= 1 for factor in apart)
    top = apart.index(max(apart))
    assert apart[: top + 1] == sorted(apart[: top + 1])
    assert apart[top:] == sorted(apart[top:], reverse=True)


def test_the_rate_of_each_step_is_the_scheduled_one():
    # Gradient 1 at every step: what b moves is the sum of the rates.
    class Slope(Line):
        def losses(self, batch, answers, free=None):
            return self.module.b.expand(len(batch[0])) * 1.0

    model = Slope()
    schedule = Schedule(1, 2, 0.5, "linear")
    go(model, many(8), BY_HAND, schedule, trainable=frozenset({"b"}))
    assert -model.now[1] == pytest.approx(0.1 * sum(schedule.factor(s, 4) for s in range(4)))


class Headed(Line):
    """A line whose `b` is the head's."""

    def parameters(self):
        return {"w": self.module.w, "head.b": self.module.b}


def test_the_head_has_a_rate_of_its_own():
    # the mean gradient by hand is (1, 0) at b = 0: at b = 1 it is (errors -1 and 3) (2.5, 1).
    table = BY_HAND.model_copy(update={"head_lr": 0.4})
    model = Headed(b=1.0)
    go(model, table=table, trainable=frozenset({"w", "head.b"}))
    assert model.now == pytest.approx([1.0 - 0.1 * 2.5, 1.0 - 0.4 * 1.0])
    same = Headed(b=1.0)
    go(same, trainable=frozenset({"w", "head.b"}))
    assert same.now == pytest.approx([1.0 - 0.1 * 2.5, 1.0 - 0.1 * 1.0])


def test_the_prior_of_the_counts_reaches_the_loss_and_only_when_they_are_given():
    given = []

    class Told(Line):
        def losses(self, batch, answers, free=None, prior=None):
            given.append(prior)
            return super().losses(batch, answers, free)

    go(Told(), counts=(3, 0, 1))
    assert given[0].exp().tolist() == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    given.clear()
    go(Told())
    assert given == [None]
