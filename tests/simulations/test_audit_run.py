"""The audit on the client's own code: it passes what is right and fails what is not.

Bugs are planted inside private steps, behind guards that are switched off: an audit must find by
itself what a guard would refuse.
"""

import numpy as np
import pytest
import torch

from perennial.core import check
from perennial.core.errors import PrivacyError
from perennial.privacy import canaries, guards, per_example, steps
from perennial.privacy.accounting import epsilon_of
from perennial.simulations.audit import CLAIM, Sizes, promising, run_audit
from perennial.simulations.trial import open_trial

pytestmark = pytest.mark.integration  # trainings of their own

TEXT = """
[data]
name = "sample"
[shards]
num_clients = 2
[model]
name = "tiny"
[train]
batch_size = 64
optimizer = "sgd"
lr = 0.05
[round]
weight = "uniform"
"""
PRIVATE = """
[privacy]
name = "dp_sgd"
epsilon = 8.0
delta = 1e-5
noise_multiplier = 1.0
sample_rate = 0.5
"""
SIZES = Sizes(500, 100)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trial():
    return open_trial(check.read(TEXT + PRIVATE))


def bounds(trial):
    found = run_audit(trial, SIZES, lambda line: None)
    return found, {kind.kind: kind.bound.epsilon for kind in found.kinds}


def blind(monkeypatch):
    """Guards that see nothing."""
    monkeypatch.setattr(guards.Guards, "released", lambda *_: None)
    monkeypatch.setattr(guards.Guards, "clipped", lambda *_: None)


def noise_times(monkeypatch, factor):
    real = steps.with_noise
    monkeypatch.setattr(steps, "with_noise", lambda t, n, std: real(t, n, std * factor))
    blind(monkeypatch)


def no_noise(monkeypatch):
    noise_times(monkeypatch, 1e-9)


def noise_over_root_of_batch(monkeypatch):
    noise_times(monkeypatch, 64**-0.5)


def noise_used_again(monkeypatch):
    real, kept = steps.with_noise, {}
    monkeypatch.setattr(
        steps, "with_noise", lambda t, n, std: real(t, kept.setdefault("noise", n), std)
    )
    blind(monkeypatch)


def no_clipping(monkeypatch):
    real = per_example.Activations.add
    monkeypatch.setattr(
        per_example.Activations,
        "add",
        lambda self, losses, clip, sums: real(self, losses, 1e9, sums),
    )
    blind(monkeypatch)


def test_training_that_keeps_its_claim_passes(trial):
    for _ in range(3):
        found, bound = bounds(trial)
        assert found.passed, bound
        assert (found.claimed, found.delta, found.confidence) == (1.0, 1e-5, 0.95)
        assert [kind.bound.canaries for kind in found.kinds] == [500, 100]
        assert max(bound.values()) < 0.9


@pytest.mark.parametrize(
    ("bug", "least"),
    [
        (no_noise, 3.0),
        (noise_over_root_of_batch, 1.3),
        (noise_used_again, 1.7),
        (no_clipping, 2.0),
    ],
)
def test_planted_bugs_fail(trial, monkeypatch, bug, least):
    bug(monkeypatch)
    found, bound = bounds(trial)
    assert not found.passed
    assert bound["gradient"] > least


def test_wrong_labels_alone_show_that_noise_is_missing(trial, monkeypatch):
    no_noise(monkeypatch)
    _, bound = bounds(trial)
    assert bound["wrong_label"] > 1.0


def test_the_noise_is_planned_for_one_training_at_the_claim(trial):
    privatizer = promising(trial, CLAIM, epochs=4)
    spends = privatizer.spends(trial.strata(300), 4)
    assert 0.98 < epsilon_of(spends, 1e-5) <= CLAIM
    assert spends[0].sample_rate == 0.5
    assert spends[0].steps == 8


def test_guards_of_the_training_still_speak(trial, monkeypatch):
    real = steps.with_noise
    monkeypatch.setattr(steps, "with_noise", lambda t, n, std: real(t, n, std * 1e-9))
    with pytest.raises(PrivacyError, match="noise"):
        bounds(trial)


def test_without_a_promise_nothing_is_claimed_and_much_is_found():
    found, bound = bounds(open_trial(check.read(TEXT)))
    assert found.claimed is None
    assert found.passed
    assert bound["gradient"] > 3.0
    assert found.plain()["delta"] == 0.0


def test_a_gradient_canary_has_one_entry_and_the_sign_of_its_step(trial):
    model = trial.model
    trial.model.load(trial.start)
    names = ("head.weight", next(n for n in trial.trainable if n.endswith("lora_A")))
    entries = tuple(canaries.Entry(name, 1, 2, 2 + dict_width(model, name)) for name in names)
    shard = trial.shard.take([0, 1])
    encoded = canaries.PlantedRecords(model.encode(shard + shard))
    planted = canaries.PlantedModel(model, 2, entries, norm=7.0)
    parameters = model.parameters()
    with planted.hooked():
        for sign in (1.0, -1.0):
            losses = planted.losses(encoded.batch(np.arange(4)), [])
            for row, entry in enumerate(entries, start=2):
                found = torch.autograd.grad(
                    losses[row],
                    list(parameters.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
                gradients = dict(zip(parameters, found, strict=True))
                assert gradients[entry.name][1, 2].item() == pytest.approx(7.0 * sign)
                others = sum(float(g.abs().sum()) for g in gradients.values()) - 7.0
                assert others < 0.01  # the head's bias
            planted.turn()
    plain = model.losses(encoded.encoded.batch(np.arange(2)), [])
    again = planted.losses(encoded.batch(np.arange(2)), [])
    assert torch.allclose(plain, again)


def dict_width(model, name):
    return model.parameters()[name].shape[1]


def test_entries_are_chosen_once_over_all_trained_linears(trial):
    chosen = canaries.entries(trial.model, trial.trainable, 300, np.random.default_rng(0))
    assert len(chosen) == len(set(chosen)) == 300
    weights = {n for n, p in trial.model.parameters().items() if p.dim() == 2}
    assert {entry.name for entry in chosen} == weights & trial.trainable
    everything = canaries.entries(trial.model, frozenset(["head.weight"]), 10**6, trial.rng("x"))
    assert len(everything) == trial.model.parameters()["head.weight"].numel()


def test_shard_others_and_rest_are_all_records_once(trial):
    ids = [*trial.shard.ids, *trial.others.ids, *trial.rest.ids]
    assert len(ids) == len(set(ids))
    assert set(trial.shard.domains) == set(trial.others.domains) == {trial.domain}
    assert len(trial.model.labels) == 36


def test_a_completion_model_is_audited_too(llama_folder, tmp_path):
    from perennial.simulations.drill import drill

    rows = [
        f'{{"prompt": "w{i % 28} w{i % 5} w{i % 7}", "completion": "w{i % 11} w{i % 3}"}}'
        for i in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    text = f"""
    [data]
    name = "jsonl"
    train = "{tmp_path / "pairs.jsonl"}"
    prompt = "prompt"
    completion = "completion"
    [domains]
    joint = true
    [shards]
    num_clients = 2
    [model]
    name = "causal_lm"
    base = "{llama_folder}"
    [train]
    batch_size = 8
    [round]
    weight = "uniform"
    {PRIVATE}
    """
    trial = open_trial(check.read(text))
    found, bound = bounds(trial)
    assert found.passed, bound
    readings = drill(trial, lambda line: None, quick=True)["inversion"]["readings"]
    assert readings[0]["key"] == "bare"
    assert readings[0]["tokens"] > 0.5


@pytest.mark.integration
def test_the_embedded_base_is_told_apart_too(monkeypatch):
    text = (TEXT + PRIVATE).replace('name = "tiny"', 'name = "encoder_classifier"')
    trial = open_trial(check.read(text))
    assert bounds(trial)[0].passed
    no_clipping(monkeypatch)
    assert not bounds(trial)[0].passed
