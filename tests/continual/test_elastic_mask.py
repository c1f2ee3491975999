"""Rank slices and last layers: what may move, what stays bit for bit, and when room runs out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perennial.client.train import Forces, Schedule, train
from perennial.continual import chain, elastic_mask
from perennial.core.config import Train
from perennial.core.continual import Lesson, Phase
from perennial.core.errors import ConfigError, RunError
from perennial.core.private import one_cohort
from perennial.core.values import Domain, Manifest, Records
from perennial.models import tiny
from perennial.privacy import none

TALK = Domain("talk", ("greet", "part", "thank"))
FOOD = Domain("food", ("eat", "drink"))
LABELS = (*TALK.labels, *FOOD.labels)
TEXTS = ("a sandwich please", "tea", "one more cup of tea", "soup and bread", "water")
DISHES = Records(
    tuple(f"f{i}" for i in range(5)),
    TEXTS,
    ("eat", "drink", "drink", "eat", "drink"),
    ("food",) * 5,
    ("",) * 5,
)
DECAYED = Train(epochs=2, batch_size=3, lr=0.05, weight_decay=0.1)


def phase(folder, index, manifest, summary=(), **more):
    labels = TALK.labels if index == 0 else LABELS
    told = np.array(summary, np.float32)
    domain = (TALK, FOOD)[index]
    return Phase(domain, index, folder, 5, told, manifest=manifest, labels=labels, **more)


def trained(model, method, records, where, answers=(), table=DECAYED):
    """Views into the parameters before and after a client's round."""
    before = model.vector()
    train(
        model,
        model.encode(records),
        one_cohort(len(records)),
        table,
        Schedule(0, 1, 0.1, "linear"),
        none.build(),
        Forces(mask=lambda parameters: method.mask(method.start(where), parameters)),
        frozenset(model.manifest.names),
        answers,
        np.random.default_rng(0),
    )
    return model.manifest.unpack(before), model.manifest.unpack(model.vector())


def lesson(model, index):
    domain, labels = (TALK, FOOD)[index], TALK.labels if index == 0 else LABELS
    total, params = np.zeros(0), model.vector()
    return Lesson(domain, index, labels, total, 1.0, params, model.manifest, model, Records())


def slices_of(views, first, end):
    """Ranks `first` to `end` of all factors, flat."""
    parts = [v[first:end] for n, v in sorted(views.items()) if n.endswith(".lora_A")]
    parts += [v[:, first:end] for n, v in sorted(views.items()) if n.endswith(".lora_B")]
    return np.concatenate([part.reshape(-1) for part in parts])


@pytest.fixture
def model():
    model = tiny.build(rank=4, layers=1)
    model.fit_labels(TALK.labels)
    return model


def test_each_domain_moves_its_own_ranks_and_no_bit_of_the_others(model, requests_, tmp_path):
    method = elastic_mask.build(mode="slices", rank_per_domain=2)
    kept, _ = method.begin({}, model.vector(), model.manifest, 0)
    here = phase(tmp_path, 0, model.manifest, method.told(kept))
    before, after = trained(model, method, requests_, here)
    assert (slices_of(before, 0, 2) != slices_of(after, 0, 2)).mean() > 0.9
    assert slices_of(before, 2, 4).tobytes() == slices_of(after, 2, 4).tobytes()
    free = [v[:, 2:] for n, v in after.items() if n.endswith(".lora_B")]
    assert not any(part.any() for part in free)  # so they add nothing yet

    kept = method.learn(kept, lesson(model, 0))
    model.fit_labels(LABELS)
    kept, _ = method.begin(kept, model.vector(), model.manifest, 1)
    here = phase(tmp_path, 1, model.manifest, method.told(kept))
    before, after = trained(model, method, DISHES, here)
    assert slices_of(before, 0, 2).tobytes() == slices_of(after, 0, 2).tobytes()
    assert (slices_of(before, 2, 4) != slices_of(after, 2, 4)).mean() > 0.9


@pytest.mark.parametrize("rows", ["frozen", "shared"])
def test_rows_of_earlier_labels_stand_still_where_the_head_is_frozen(rows, model, tmp_path):
    method = elastic_mask.build(mode="slices", head=rows)
    model.fit_labels(LABELS)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    here = phase(tmp_path, 1, model.manifest)
    before, after = trained(model, method, DISHES, here)
    for name in ("head.weight", "head.bias"):
        assert (before[name][3:] != after[name][3:]).all()
        same = before[name][:3].tobytes() == after[name][:3].tobytes()
        assert same is (rows == "frozen")


def test_tuning_rounds_move_all_rows_of_the_head(model, tmp_path):
    method = elastic_mask.build(mode="slices")
    model.fit_labels(LABELS)
    here = replace(phase(tmp_path, 1, model.manifest), tuning=True)
    before, after = trained(model, method, DISHES, here)
    assert (before["head.bias"] != after["head.bias"]).all()


def test_a_domain_without_a_slice_is_refused_before_anything_is_asked(model):
    method = elastic_mask.build(mode="slices", rank_per_domain=2)
    kept, params = {}, model.vector()
    for index, left in ((0, 1), (1, 0)):
        kept, params = method.begin(kept, params, model.manifest, index)
        assert method.begin(kept, params, model.manifest, index)[0] == kept  # after a crash
        kept = method.learn(kept, lesson(model, index))
        assert method.facts(kept)["domains_left"] == left
        assert method.facts(kept)["ranks_left"] == 2 * left
    with pytest.raises(RunError, match=r"rank = 6 or more.*rank_per_domain.*adapters.*replay"):
        method.begin(kept, params, model.manifest, 2)


def test_a_later_run_goes_on_with_the_next_slice(model, tmp_path):
    method = elastic_mask.build(mode="slices", rank_per_domain=1)
    kept, params = method.begin({}, model.vector(), model.manifest, 0)
    kept = method.learn(kept, lesson(model, 0))
    kept, _ = method.begin(kept, params, model.manifest, 0)  # index 0 of another run
    memory = method.start(phase(tmp_path, 0, model.manifest, method.told(kept)))
    assert (memory.first, memory.end) == (1, 2)


def test_slices_need_factors():
    bare = Manifest(("head.weight", "head.bias"), ((2, 3), (2,)))
    with pytest.raises(RunError, match=r"LoRA factors.*got|LoRA factors.*trains head\.weight"):
        elastic_mask.build(mode="slices").begin({}, np.zeros(8, np.float32), bare, 0)


@pytest.mark.parametrize(("layers", "moving"), [(0, ()), (1, ("1",)), (2, ("0", "1"))])
def test_only_the_last_layers_and_the_head_move(layers, moving, requests_, tmp_path):
    model = tiny.build(layers=0)  # LoRA in both layers
    model.fit_labels(TALK.labels)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    method = elastic_mask.build(mode="last_layers", layers=layers)
    before, after = trained(model, method, requests_, phase(tmp_path, 0, model.manifest))
    for name in before:
        still = before[name].tobytes() == after[name].tobytes()
        number = name.split("layer.")[1][0] if "layer." in name else ""
        assert still is (bool(number) and number not in moving), name


def test_layers_are_counted_in_the_whole_model(tmp_path):
    model = tiny.build(layers=0)
    method = elastic_mask.build(mode="last_layers", layers=1)
    memory = method.start(phase(tmp_path, 0, model.manifest))
    lower = {n: p for n, p in model.parameters().items() if ".0." in n}
    masks = method.mask(memory, lower)
    assert masks.keys() == lower.keys()
    assert not any(mask.any() for mask in masks.values())


def test_last_layers_needs_numbered_layers_of_one_list_and_something_that_moves():
    method = elastic_mask.build(mode="last_layers", layers=0)
    nothing = np.zeros(0, np.float32)

    def begin(*names):
        method.begin({}, nothing, Manifest(names, ((2, 2),) * len(names)), 0)

    begin("layer.0.key.lora_A", "layer.0.key.lora_B", "head.weight")
    with pytest.raises(RunError, match="nothing of this model may move"):
        begin("model.layers.0.key.lora_A")
    with pytest.raises(RunError, match=r"number the layers.*got query\.lora_A"):
        begin("query.lora_A", "head.weight")
    with pytest.raises(RunError, match=r"decoder\.block\.0 and encoder\.block\.0"):
        begin("encoder.block.0.k.lora_A", "decoder.block.0.k.lora_A", "head.weight")


def test_in_a_chain_masks_of_both_hold(model, requests_, tmp_path):
    tables = ({"name": "elastic_mask", "mode": "slices", "rank_per_domain": 2}, {"name": "none"})
    method = chain.build(methods=tables)
    kept, _ = method.begin({}, model.vector(), model.manifest, 0)
    kept = method.learn(kept, lesson(model, 0))
    here = phase(tmp_path, 0, model.manifest, method.told(kept))
    before, after = trained(model, method, requests_, here)
    assert slices_of(before, 0, 2).tobytes() == slices_of(after, 0, 2).tobytes()
    assert method.facts(kept)["elastic_mask.domains_left"] == 1


@pytest.mark.parametrize(
    ("mode", "foreign"),
    [
        ("slices", {"layers": 2, "router": "means"}),
        ("last_layers", {"rank_per_domain": 1, "router_width": 0}),
        ("adapters", {"head": "frozen", "layers": 1}),
    ],
)
def test_options_of_another_mode_are_refused(mode, foreign):
    with pytest.raises(ConfigError) as caught:
        elastic_mask.build(mode=mode, **foreign)
    message = str(caught.value)
    for name in foreign:
        assert f"continual.{name}" in message
    assert f"does nothing with mode = '{mode}'" in message
    assert "whose option it is" in message
    elastic_mask.build(mode=mode)


def test_masks_lie_on_the_parameters_device(tmp_path):
    manifest = Manifest(("layer.0.k.lora_A", "layer.0.k.lora_B"), ((4, 3), (5, 4)))
    method = elastic_mask.build(mode="slices", rank_per_domain=2)
    memory = method.start(phase(tmp_path, 0, manifest))
    shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
    parts = {name: torch.zeros(shape, device="meta") for name, shape in shapes.items()}
    assert all(mask.device.type == "meta" for mask in method.mask(memory, parts).values())
