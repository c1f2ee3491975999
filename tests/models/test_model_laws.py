"""What holds for every model in `models/`, so for a new file at once."""

import inspect
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers

from perennial.core import plugins
from perennial.core.errors import ModelError, RunError
from perennial.core.parts import Model, Score
from perennial.core.values import Records
from perennial.models import bases, tiny

# Options that a model requires; one that is not here is built with its defaults.
OPTIONS = {"causal_lm": lambda folder: {"base": str(folder), "rank": 2, "layers": 1}}

NAMES = plugins.names("models", Model)

CHECKPOINTING = [
    name
    for name in NAMES
    if "gradient_checkpointing" in inspect.signature(plugins.find("models", name, Model)).parameters
]


def build(name, folder, **more):
    options = OPTIONS.get(name, lambda folder: {})(folder)
    return plugins.load("models", name, {**options, **more}, Model)


@pytest.fixture(scope="module")
def built(llama_folder):
    return {name: build(name, llama_folder) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def records(name, built, requests_, pairs):
    return requests_ if built[name].labels_needed else pairs


@pytest.fixture
def model(name, built, records):
    """The model with all its tensors away from zero, so that each has a gradient."""
    model = built[name]
    fit(model, records)
    model.load(some_vector(model))
    model.module.zero_grad()
    return model


def fit(model, records):
    model.fit_labels(sorted(set(records.targets)) if model.labels_needed else ())


def some_vector(model, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(scale=0.1, size=model.manifest.size).astype(np.float32)


def losses_of(model, records):
    encoded = model.encode(records)
    return model.losses(encoded.batch(np.arange(len(records))), [])


def test_the_vector_goes_in_and_out_bit_for_bit(model):
    vector = some_vector(model, 3)
    model.load(vector)
    assert model.vector().tobytes() == vector.tobytes()
    found = model.vector()
    found[:] = 0
    assert model.vector().tobytes() == vector.tobytes()


def test_the_manifest_packs_the_parameters(model):
    arrays = {name: p.detach().numpy() for name, p in model.parameters().items()}
    assert tuple(arrays) == model.manifest.names
    assert model.manifest.pack(arrays).tobytes() == model.vector().tobytes()


def test_a_vector_of_another_length_is_refused_and_changes_nothing(model):
    before = model.vector()
    with pytest.raises(ValueError, match="length"):
        model.load(before[:-1])
    assert np.array_equal(model.vector(), before)


def test_loading_makes_no_new_parameters(model):
    before = {name: id(p) for name, p in model.parameters().items()}
    model.load(some_vector(model, 4))
    assert {name: id(p) for name, p in model.parameters().items()} == before


def test_exactly_the_manifest_requires_gradients(model):
    trained = {id(p) for p in model.module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.parameters().values()}


def test_a_new_adapter_changes_nothing_yet(name, llama_folder, records):
    torch.manual_seed(0)
    first = build(name, llama_folder)
    torch.manual_seed(1)
    second = build(name, llama_folder)
    fit(first, records)
    fit(second, records)
    factors = first.manifest.unpack(first.vector())
    for name_, values in factors.items():
        assert values.any() == name_.endswith("lora_A"), name_
    assert not np.array_equal(first.vector(), second.vector())  # A follows torch's seed
    assert torch.equal(losses_of(first, records), losses_of(second, records))


def test_every_trained_tensor_has_a_gradient_and_no_frozen_one(model, records):
    losses = losses_of(model, records)
    assert losses.shape == (len(records),)
    losses.sum().backward()
    for name, parameter in model.parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert all(p.grad is None for p in model.module.parameters() if not p.requires_grad)


def test_train_and_eval_mode_agree(model, records):
    with torch.no_grad():
        model.module.train()
        first = losses_of(model, records)
        again = losses_of(model, records)
        model.module.eval()
        second = losses_of(model, records)
        model.module.train()
    assert torch.equal(first, again)
    assert torch.equal(first, second)


def test_a_loss_does_not_depend_on_who_else_is_in_the_batch(model, records):
    encoded = model.encode(records)
    with torch.no_grad():
        together = model.losses(encoded.batch(np.arange(len(records))), [])
        alone = [model.losses(encoded.batch(np.array([i])), []) for i in range(len(records))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_batches_follow_the_indices(model, records):
    encoded = model.encode(records)
    order = np.array([3, 0, 2])
    with torch.no_grad():
        some = model.losses(encoded.batch(order), [])
        whole = model.losses(encoded.batch(np.arange(len(records))), [])
    assert torch.allclose(some, whole[torch.from_numpy(order)], atol=1e-5)


def test_scores_add_up_over_parts_and_batches(model, records):
    encoded = model.encode(records)
    whole = model.score(encoded, 100)
    assert 0 <= whole.correct <= whole.total
    for size in (1, 2):
        found = model.score(encoded, size)
        assert (found.correct, found.total) == (whole.correct, whole.total)
        assert found.loss == pytest.approx(whole.loss, abs=1e-4)
    parts = Score()
    for half in (records.take([0, 1]), records.take(range(2, len(records)))):
        parts += model.score(model.encode(half), 100)
    assert (parts.correct, parts.total) == (whole.correct, whole.total)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-4)


def test_scoring_leaves_no_gradient(model, records):
    model.score(model.encode(records), 2)
    assert all(p.grad is None for p in model.module.parameters())


def test_no_records_at_all(model):
    encoded = model.encode(Records())
    assert len(encoded) == 0
    assert model.score(encoded, 8) == Score()


def test_losses_fall_along_the_gradient(model, records):
    before = losses_of(model, records).mean()
    before.backward()
    length = torch.cat([p.grad.reshape(-1) for p in model.parameters().values()]).norm()
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter -= 0.01 * parameter.grad / length
    assert losses_of(model, records).mean() < before


def test_the_identity_is_that_of_the_base_alone(name, model, llama_folder):
    before = model.identity()
    model.load(some_vector(model, 7))
    assert model.identity() == before
    assert build(name, llama_folder, rank=3, layers=0).identity() == before
    assert len(before) == 16


def test_the_base_never_moves(name, model, records):
    frozen = {n: p for n, p in model.module.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in frozen.items()}
    optimizer = torch.optim.SGD(model.module.parameters(), lr=1.0)
    losses_of(model, records).mean().backward()
    optimizer.step()
    assert all(torch.equal(frozen[n], before[n]) for n in frozen)


@pytest.mark.parametrize("name", CHECKPOINTING, indirect=True)
def test_gradient_checkpointing_gives_the_same_gradients(name, llama_folder, records):
    found = []
    for layers in (1, 0):
        for checkpointing in (False, True):
            model = build(name, llama_folder, layers=layers, gradient_checkpointing=checkpointing)
            fit(model, records)
            model.load(some_vector(model))
            losses_of(model, records).mean().backward()
            found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters().values()]))
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[2], found[3], atol=1e-6)
    assert found[0].any()


def base_of(name, folder):
    """The base of a model, fresh, and token ids [2, 5] for it."""
    ids = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 11, 12]])
    if name == "tiny":
        model = tiny.build()
        return model.module.encoder.get_base_model(), ids
    if name == "encoder_classifier":
        return transformers.AutoModel.from_pretrained(bases.embedded_path()), ids
    return transformers.AutoModelForCausalLM.from_pretrained(folder), ids


def strip(model):
    """The tiny base has its own factors inside already: take them out again."""
    for module in list(model.modules()):
        for key, child in list(module.named_children()):
            if hasattr(child, "base_layer"):
                setattr(module, key, child.base_layer)
    return model


@pytest.mark.parametrize("layers", [0, 1])
def test_peft_loads_what_save_wrote(name, llama_folder, records, tmp_path, layers):
    model = build(name, llama_folder, layers=layers)
    fit(model, records)
    model.load(some_vector(model))
    model.save(tmp_path / "adapter")
    base, ids = base_of(name, llama_folder)
    base = strip(base).eval()
    plain = base(input_ids=ids)[0].detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    mine = getattr(model.module, "encoder", model.module)
    with torch.no_grad():
        wanted = mine(input_ids=ids)[0]
        assert torch.allclose(loaded(input_ids=ids)[0], wanted, atol=1e-6)
    assert not torch.allclose(plain, wanted, atol=1e-2)


def test_save_names_no_folder_of_this_machine_for_an_embedded_base(name, model, tmp_path):
    import json

    model.save(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    if name != "causal_lm":  # its base is the user's own folder, by the name the user gave
        assert not said.startswith("/")


def state_of(model):
    """All of a model that a question must leave alone."""
    parts = dict(model.module.named_modules())
    return (
        model.vector().tobytes(),
        model.labels,
        {n: (p.requires_grad, p.grad is None) for n, p in model.module.named_parameters()},
        {n: (part.training, len(part._forward_hooks)) for n, part in parts.items()},
        torch.get_rng_state().numpy().tobytes(),
    )


def test_asking_changes_nothing_of_the_model(model, records):
    first, *_ = model.parameters().values()
    first.requires_grad_(False)  # as in a round in which some tensors stand still
    next(iter(model.module.children())).eval()
    encoded = model.encode(records)
    batch = encoded.batch(np.arange(len(records)))
    losses = model.losses(batch, []).detach()
    before = state_of(model)
    drawn = model.resampled(batch, np.random.default_rng(0))
    for adapted in (False, True):
        model.features(records, 2, adapted=adapted)
    if model.labels_needed:
        model.logits(encoded, 3)
    assert state_of(model) == before
    assert torch.equal(model.losses(batch, []).detach(), losses)
    assert not drawn.targets.requires_grad
    first.requires_grad_(True)
    model.module.train()


def test_features_go_with_their_records_in_any_order(model, records):
    found = model.features(records, 2)
    assert found.dtype == np.float32
    assert len(found) == len(records)
    order = np.random.default_rng(0).permutation(len(records))
    for adapted in (False, True):
        whole = model.features(records, 2, adapted=adapted)
        mixed = model.features(records.take(order), 2, adapted=adapted)
        assert np.allclose(mixed, whole[order], atol=1e-6)
    one = [model.features(records.take([i]), 2)[0] for i in range(len(records))]
    assert np.allclose(one, found, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.1
    assert np.array_equal(model.features(records), found[:, : found.shape[1] // 2])


def test_features_follow_the_adapter_only_where_asked(name, llama_folder, records):
    model = build(name, llama_folder)
    start = model.features(records)
    assert np.allclose(model.features(records, adapted=True), start, atol=1e-6)
    fit(model, records)
    model.load(some_vector(model))
    assert np.abs(model.features(records, adapted=True) - start).max() > 1e-2
    assert np.array_equal(model.features(records), start)
    again = build(name, llama_folder)
    again.load(some_vector(again))
    assert np.array_equal(again.features(records), start)  # not only what was remembered


def test_features_need_texts_and_nothing_else(model, records):
    strange = Records(
        records.ids, records.texts, ("never heard",) * len(records), records.domains, records.groups
    )
    assert np.array_equal(model.features(strange), model.features(records))
    width = model.features(records).shape[1]
    for adapted in (False, True):
        assert model.features(Records(), 2, adapted=adapted).shape == (0, 2 * width)


@pytest.mark.parametrize("layers", [-1, 0, 99])
def test_features_of_layers_that_are_not_there_are_refused(model, records, layers):
    for asked in (records, Records()):
        with pytest.raises(ModelError, match=rf"1 to \d+ layers.*got {layers}"):
            model.features(asked, layers)


def test_features_are_the_askers_own(model, records):
    found = model.features(records)
    wanted = found.copy()
    found[:] = 0
    assert np.array_equal(model.features(records), wanted)


def test_answers_are_drawn_where_there_are_any(model, records):
    batch = model.encode(records).batch(np.arange(len(records)))
    before = batch.targets.clone()
    drawn = model.resampled(batch, np.random.default_rng(5))
    again = model.resampled(batch, np.random.default_rng(5))
    other = [model.resampled(batch, np.random.default_rng(s)).targets for s in range(20)]
    assert torch.equal(batch.targets, before)
    assert torch.equal(drawn.targets, again.targets)
    assert torch.equal(drawn.mask, batch.mask)
    assert any(not torch.equal(targets, drawn.targets) for targets in other)
    assert drawn.targets.shape == batch.targets.shape
    assert drawn.targets.dtype == batch.targets.dtype
    for targets in other:
        assert torch.equal(targets < 0, batch.targets < 0)  # what is ignored stays ignored
    assert torch.isfinite(model.losses(drawn, [])).all()


def test_logits_stand_in_the_order_of_the_records(model, records):
    encoded = model.encode(records)
    if not model.labels_needed:
        with pytest.raises(RunError, match="has none"):
            model.logits(encoded, 2)
        return
    found = model.logits(encoded, 3)
    assert found.dtype == np.float32
    assert found.shape == (len(records), len(model.labels))
    for i, target in enumerate(records.targets):
        loss = model.losses(encoded.batch(np.array([i])), []).item()
        mine = float(np.logaddexp.reduce(found[i]) - found[i, model.labels.index(target)])
        assert mine == pytest.approx(loss, abs=1e-5)
    right = found.argmax(1) == [model.labels.index(target) for target in records.targets]
    assert right.sum() == model.score(encoded, 3).correct
    assert model.logits(model.encode(Records()), 3).shape == (0, len(model.labels))


def test_joined_records_are_those_of_both(model, records):
    whole = model.encode(records)
    first, second = records.take([2, 0]), records.take([3, 1])
    joined = model.encode(first).joined(model.encode(second))
    assert len(joined) == 4
    nothing = model.encode(Records())
    for found in (joined, nothing.joined(joined), joined.joined(nothing)):
        mine, wanted = found.batch(np.array([3, 0, 2])), whole.batch(np.array([1, 2, 3]))
        assert torch.equal(mine.targets, wanted.targets)
        assert torch.equal(mine.mask, wanted.mask)
        with torch.no_grad():
            assert torch.allclose(model.losses(mine, []), model.losses(wanted, []), atol=1e-3)
    assert len(nothing.joined(nothing)) == 0
    assert model.score(nothing.joined(nothing), 8) == Score()


def test_a_free_example_needs_no_labels_to_be_free_of(model, records):
    batch = model.encode(records).batch(np.arange(len(records)))
    free = torch.arange(len(records)) % 2 == 0
    with torch.no_grad():
        assert torch.equal(model.losses(batch, [], free), model.losses(batch, []))
