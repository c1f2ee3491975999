"""DP-SGD as a plug-in: its options, who is drawn, what is charged, what is refused, one run."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from perennial.core import plugins
from perennial.core.errors import ConfigError, PrivacyError
from perennial.core.parts import Model, Privatizer, Strata, UserPrivatizer
from perennial.core.private import one_cohort
from perennial.core.values import Spend
from perennial.privacy import steps

NEEDED = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 1.2, "sample_rate": 0.1}


def built(**options):
    return plugins.load("privacy", "dp_sgd", {**NEEDED, **options}, Privatizer)


def mixed(new, old):
    return Strata(("new", "old"), np.repeat([0, 1], [new, old]))


# Options.


@pytest.mark.parametrize("name", NEEDED)
def test_the_promise_has_no_silent_defaults(name):
    options = {key: value for key, value in NEEDED.items() if key != name}
    with pytest.raises(ConfigError, match=name):
        plugins.load("privacy", "dp_sgd", options, Privatizer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0),
        ("delta", 0.0),
        ("delta", 1.0),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", 9e-4),
        ("noise_multiplier", 1e7),
        ("noise_multiplier", float("nan")),
        ("sample_rate", 0.0),
        ("sample_rate", 1.1),
        ("clip", 0.0),
        ("clip", 1e-300),
        ("clip", 1e300),
        ("clip", float("inf")),
        ("replay_rate", -0.1),
        ("micro_batch", 0),
        ("route", "ghost"),
    ],
)
def test_values_that_promise_nothing_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        built(**{name: value})


def test_the_terms_say_what_is_promised():
    terms = built(updates=3, clip=0.5).terms
    assert {key: terms[key] for key in NEEDED} == NEEDED
    assert (terms["clip"], terms["replay_rate"], terms["updates"]) == (0.5, 0.1, 3)
    assert "Poisson" in terms["mechanism"]
    with pytest.raises(TypeError):
        terms["epsilon"] = 1e9
    assert built(replay_rate=0.02).terms["replay_rate"] == 0.02
    assert built(micro_batch=17).largest_part == 17


def test_reading_a_config_loads_neither_torch_nor_opacus():
    code = (
        "import sys; from perennial.core import plugins\n"
        "from perennial.core.parts import Privatizer\n"
        f"plugins.load('privacy', 'dp_sgd', {NEEDED!r}, Privatizer); "
        "sys.exit(bool({'torch', 'opacus', 'dp_accounting'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Who is drawn.


def test_each_cohort_is_drawn_at_its_own_rate():
    strata, draw = mixed(300, 500), np.random.default_rng(0)
    batches = list(built(replay_rate=0.02).batches(strata, 32, 100, draw))
    assert len(batches) == 1000
    counts = np.bincount(np.concatenate(batches), minlength=800)
    assert abs(counts[:300].mean() - 100) < 5 * (1000 * 0.1 * 0.9 / 300) ** 0.5
    assert abs(counts[300:].mean() - 20) < 5 * (1000 * 0.02 * 0.98 / 500) ** 0.5
    # every record by itself: its own count is binomial
    assert counts[:300].var() == pytest.approx(1000 * 0.1 * 0.9, rel=0.45)


def test_empty_batches_are_steps_too():
    batches = list(built(sample_rate=0.01).batches(one_cohort(100), 1, 10, None))
    assert len(batches) == 1000
    empty = sum(len(batch) == 0 for batch in batches)
    # 0.99**100 = 0.366
    assert abs(empty - 366) < 5 * (1000 * 0.366 * 0.634) ** 0.5


def test_a_rate_of_one_takes_every_record_in_every_step():
    batches = list(built(sample_rate=1.0).batches(one_cohort(5), 5, 3, None))
    assert [batch.tolist() for batch in batches] == [list(range(5))] * 3


def test_no_seed_tells_who_is_drawn():
    draws = [
        [b.tolist() for b in built().batches(one_cohort(50), 5, 1, np.random.default_rng(0))]
        for _ in range(2)
    ]
    assert draws[0] != draws[1]


# What is charged.


def test_every_cohort_that_is_there_pays_for_every_step():
    privatizer = built(replay_rate=0.05)
    assert privatizer.spends(mixed(20, 30), 2) == (
        Spend(0.1, 1.2, 20, "new"),
        Spend(0.05, 1.2, 20, "old"),
    )
    assert privatizer.spends(mixed(20, 0), 2) == (Spend(0.1, 1.2, 20, "new"),)
    assert privatizer.sum_spends(mixed(20, 30)) == (
        Spend(1.0, 1.2, 1, "new"),
        Spend(1.0, 1.2, 1, "old"),
    )


@pytest.mark.parametrize(("rate", "epochs", "steps"), [(1.0, 1, 1), (0.3, 1, 3), (0.07, 2, 29)])
def test_steps_that_are_charged_are_those_that_are_drawn(rate, epochs, steps):
    privatizer = built(sample_rate=rate)
    (spend,) = privatizer.spends(one_cohort(50), epochs)
    assert spend.steps == steps
    assert len(list(privatizer.batches(one_cohort(50), 8, epochs, None))) == steps


def test_fewer_records_than_the_sample_rate_needs_are_refused():
    with pytest.raises(PrivacyError, match=r"at least 10 records.*'new' has 9"):
        built().spends(mixed(9, 100), 1)
    assert built().spends(mixed(10, 100), 1)


def test_a_delta_above_one_over_the_records_is_refused():
    privatizer = built(delta=0.01)
    for refused in (lambda s: privatizer.spends(s, 1), privatizer.sum_spends):
        with pytest.raises(PrivacyError, match=r"delta must be at most .* 1/101"):
            refused(mixed(50, 51))
        assert refused(mixed(50, 50))


@pytest.mark.parametrize("name", ["central", "distributed"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("clip", 1e-7), ("clip", 1e7), ("noise_multiplier", 1e-4), ("noise_multiplier", 1e7)],
)
def test_users_have_the_same_ranges(name, key, value):
    options = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 1.0, "clip": 1.0}
    options |= {"clients": 3} if name == "distributed" else {}
    assert plugins.load("privacy", name, options, UserPrivatizer).unit == "user"
    with pytest.raises(ConfigError, match=key):
        plugins.load("privacy", name, {**options, key: value}, UserPrivatizer)


def test_a_session_refuses_a_clip_that_means_nothing():
    line = torch.nn.Linear(2, 1)
    for clip in (1e-300, 1e300, float("nan")):
        found = steps.session(
            line, dict(line.named_parameters()), 4, clip=clip, noise_multiplier=1.0
        )
        with pytest.raises(PrivacyError, match="clip of private steps must be"), found:
            pass


def test_a_noisy_sum_that_overflows_is_refused():
    row = np.ones((1, 2), np.float32)
    with pytest.raises(PrivacyError, match="noise must be finite"):
        steps.noisy_sum([row], 1.0, noise_multiplier=1e42)
    total = torch.full((2,), 1e308, dtype=torch.float64)
    with pytest.raises(PrivacyError, match="must be finite"):
        steps.with_noise(total * 10, np.zeros(2), 1.0)
    for std in (0.0, float("inf"), float("nan")):
        with pytest.raises(PrivacyError, match="finite and above 0"):
            steps.with_noise(total, np.zeros(2), std)


@pytest.mark.parametrize("clip", [0.0, -1.0, 1e-7, 1e7, float("nan")])
def test_a_private_sum_needs_a_clip(clip):
    with pytest.raises(PrivacyError, match="clip of a private sum"):
        built().summed([np.ones((1, 2), np.float32)], clip)


def test_a_private_sum_of_what_is_not_finite_is_refused():
    with pytest.raises(PrivacyError, match="must be finite"):
        built().summed([np.array([[1.0, np.nan]], np.float32)], 1.0)


def test_a_row_of_zeros_adds_nothing_to_a_private_sum():
    found = built(noise_multiplier=1e-3).summed([np.zeros((2, 3), np.float32)], 1e-3)
    assert np.abs(found).max() < 1e-4


def test_one_row_moves_a_private_sum_by_at_most_the_clip():
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) * 100
    least = {"noise_multiplier": 1e-7}  # below what a config may say
    moved = steps.noisy_sum([rows], 2.0, **least) - steps.noisy_sum([rows[:4]], 2.0, **least)
    assert np.linalg.norm(moved) == pytest.approx(2.0, rel=1e-4)


# A run.


@pytest.mark.parametrize("route", ["activations", "opacus"])
def test_a_round_on_a_model_moves_every_tensor_and_learns(route, requests_):
    model = plugins.load("models", "tiny", {}, Model)
    model.fit_labels(["greet", "part", "thank"])
    encoded, parameters = model.encode(requests_), dict(model.parameters())
    privatizer = built(
        sample_rate=0.5, delta=0.1, noise_multiplier=0.05, micro_batch=3, route=route
    )
    strata, before = one_cohort(len(encoded)), model.vector()
    start = model.score(encoded, 8).mean_loss
    optimizer = torch.optim.SGD(list(parameters.values()), lr=1.0)
    with privatizer.session(model.module, parameters, 4) as session:
        for indices in privatizer.batches(strata, 4, 20, np.random.default_rng(0)):
            optimizer.zero_grad(set_to_none=True)
            for begin in range(0, len(indices), privatizer.largest_part):
                part = indices[begin : begin + privatizer.largest_part]
                session.backward(model.losses(encoded.batch(part), ()), len(indices))
            session.release(optimizer)
            optimizer.step()
            session.stepped()
    assert (model.vector() != before).mean() > 0.99
    assert model.score(encoded, 8).mean_loss < 0.5 * start


def test_a_penalty_is_felt_when_it_is_added_after_the_release():
    """In the loss it would be clipped with each example; p.grad keeps what is added to it."""
    line = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(line.parameters(), lr=1.0)
    with built().session(line, dict(line.named_parameters()), 4) as session:
        session.release(optimizer)
        line.weight.grad += 1000.0
        optimizer.step()
        session.stepped()
    assert (line.weight < -900).all()
