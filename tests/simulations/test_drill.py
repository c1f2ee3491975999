"""The attack drill: attacks that work on bare updates, and do not where they should not."""

import numpy as np
import pytest
import torch

from perennial.core import check
from perennial.privacy import attacks, scores
from perennial.simulations import views
from perennial.simulations.drill import drill
from perennial.simulations.trial import open_trial

pytestmark = pytest.mark.integration  # trainings of their own

TEXT = """
[data]
name = "sample"
[shards]
num_clients = 3
[model]
name = "tiny"
layers = 0
[train]
epochs = 3
batch_size = 16
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
noise_multiplier = 2.0
sample_rate = 0.25
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trial():
    return open_trial(check.read(TEXT + PRIVATE))


@pytest.fixture(scope="module")
def found(trial):
    said = []
    result = drill(trial, said.append, quick=True)
    assert said
    return result


def by_key(rows):
    return {row["key"]: row for row in rows}


def test_members_are_found_in_bare_updates_and_not_behind_noise_or_masks(found):
    rows = by_key(found["membership"])
    assert list(rows) == ["bare", "dp", "dp_1", "sum", "sealed"]
    assert rows["bare"]["area"] > 0.75
    assert rows["bare"]["found"] > 0.1
    assert rows["bare"]["area"] > rows["sum"]["area"] > 0.5
    for key in ("dp_1", "sealed"):
        assert abs(rows[key]["area"] - 0.5) < 0.12
    assert rows["bare"]["members"] == 160
    assert rows["bare"]["curve"][0] == [0.0, 0.0]
    assert rows["bare"]["curve"][-1] == [1.0, 1.0]


def test_tokens_are_read_from_bare_updates_and_not_behind_noise_or_masks(found):
    rows = by_key(found["inversion"]["readings"])
    assert list(rows) == ["bare", "dp", "dp_1", "sum", "sealed"]
    assert rows["bare"]["tokens"] > 0.6
    assert rows["bare"]["named"] == 1.0
    for key in ("dp", "dp_1", "sealed"):
        assert rows[key]["tokens"] < 0.2
        assert rows[key]["named"] < 0.7
    assert not found["inversion"]["frozen"]
    assert found["inversion"]["candidates"] == 50
    # Words of the tiny model share tokens: text that is put together would say nothing.
    assert found["inversion"]["example"] == ""


def test_without_a_promise_the_drill_shows_what_noise_would_do():
    trial = open_trial(check.read(TEXT))
    kept = views.privatizers(trial)
    assert [view.key for view in kept] == ["bare", "dp_1"]
    assert kept[views.View("dp_1", "noise for epsilon 1")].unit == "example"


def test_a_frozen_factor_is_said(trial):
    from dataclasses import replace

    from perennial.simulations.inversion import inversion

    still = frozenset(name for name in trial.trainable if not name.endswith("lora_A"))
    result = inversion(replace(trial, trainable=still), 1, 5, lambda line: None)
    assert result.frozen


def test_area_and_found_by_hand():
    inside, outside = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    # Pairs won: 2 + 1.5 + 1 of 6.
    assert scores.area(inside, outside) == pytest.approx(4.5 / 6)
    assert scores.found_at(inside, outside, 0.0) == pytest.approx(1 / 3)
    assert scores.found_at(inside, outside, 0.5) == 1.0
    points = scores.curve(inside, outside)
    assert points[0] == (0.0, 0.0)
    assert (0.0, pytest.approx(1 / 3)) in points
    assert (0.5, pytest.approx(2 / 3)) in points
    assert points[-1] == (1.0, 1.0)


def test_an_update_is_explained_by_the_records_it_was_made_of():
    gradients = np.random.default_rng(0).normal(size=(20, 200)).astype(np.float32)
    found = scores.member_scores(-gradients[:10].sum(0), gradients)
    assert scores.area(found[:10], found[10:]) == 1.0


def test_the_row_space_holds_the_inputs_and_nothing_else():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 32)).astype(np.float32)
    factors = [rng.normal(size=(4, 5)).astype(np.float32) @ inputs for _ in range(2)]
    basis = attacks.row_space(factors)
    assert basis.shape == (32, 5)
    assert attacks.inside(inputs, basis) == pytest.approx(np.ones(5), abs=1e-4)
    assert attacks.inside(rng.normal(size=(9, 32)).astype(np.float32), basis).max() < 0.6


def test_reading_back_prefers_long_words_and_marks_the_unknown():
    words = {(1,): "post", (1, 2): "postcard", (3,): "sent"}
    assert attacks.read_back([3, 1, 2, 9, 1], words) == "sent postcard \N{MIDDLE DOT} post"


def test_share_found_leaves_out_what_all_records_have():
    assert attacks.share_found([0, 5, 6, 1], [0, 5, 7, 1], {0, 1}) == 0.5
    assert attacks.share_found([0, 1], [0, 1], {0, 1}) == 0.0


def test_a_sealed_body_is_other_noise_each_time():
    update = np.linspace(-1, 1, 3000).astype(np.float32)
    first, second = views.sealed(update), views.sealed(update)
    assert first.shape == update.shape
    assert abs(np.corrcoef(first, update)[0, 1]) < 0.1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_which_layers_read_tokens(trial):
    model = trial.model
    batch = model.encode(trial.shard.take([0, 1])).batch(np.arange(2))
    everything = frozenset(model.parameters())
    names = attacks.first_factors(model, everything, batch)
    assert len(names) == 3  # query, key and value of the first layer
    assert attacks.reads_embeddings(model, names[0], batch)
    upper = next(n for n in everything if n.endswith("lora_A") and ".1." in n)
    assert not attacks.reads_embeddings(model, upper, batch)


@pytest.mark.integration
def test_a_text_is_read_word_by_word_from_the_embedded_base():
    text = TEXT.replace('name = "tiny"\nlayers = 0', 'name = "encoder_classifier"')
    result = drill(open_trial(check.read(text)), lambda line: None, quick=True)["inversion"]
    rows = by_key(result["readings"])
    assert rows["bare"]["tokens"] > 0.8
    assert rows["dp_1"]["tokens"] < 0.1
    words = result["example"].lower().replace(",", " ,").split()
    assert sum(word in rows["bare"]["example"].split() for word in words) > 0.7 * len(words)
