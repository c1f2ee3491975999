import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perennial.core.errors import DataError
from perennial.core.values import Records
from perennial.models import encoder_classifier, tiny

LABELS = ("greet", "part", "thank")


def fitted(layers=1, seed=0, build=tiny.build, **more):
    model = build(layers=layers, **more)
    model.fit_labels(LABELS)
    draw = np.random.default_rng(seed)
    model.load(draw.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    return model


def logits(model, records):
    encoded = model.encode(records)
    with torch.no_grad():
        return model.outputs(encoded.batch(np.arange(len(records))))


def test_the_loss_is_cross_entropy_of_the_pooled_head_by_hand(requests_):
    model = fitted(layers=0)
    ids = tiny.hash_words(list(requests_.texts), True, 64)["input_ids"]
    head = model.parameters()
    for i in range(len(requests_)):
        with torch.no_grad():
            hidden = model.module.encoder(input_ids=torch.tensor([ids[i]])).last_hidden_state
        logit = head["head.weight"] @ hidden[0].mean(0) + head["head.bias"]
        label = LABELS.index(requests_.targets[i])
        wanted = torch.logsumexp(logit, 0) - logit[label]
        found = model.losses(model.encode(requests_).batch(np.array([i])), [])
        assert found.item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("build", [tiny.build, encoder_classifier.build])
def test_cached_activations_give_the_losses_and_gradients_of_the_uncached(build, requests_):
    cached = fitted(build=build, rank=4)
    whole = build(layers=0, rank=4)
    whole.fit_labels(LABELS)
    arrays = {
        n: np.zeros(s, np.float32)
        for n, s in zip(whole.manifest.names, whole.manifest.shapes, strict=True)
    }
    whole.load(whole.manifest.pack({**arrays, **cached.manifest.unpack(cached.vector())}))
    found = []
    for model in (cached, whole):
        losses = model.losses(model.encode(requests_).batch(np.arange(7)), [])
        losses.mean().backward()
        grads = {name: p.grad for name, p in model.parameters().items()}
        found.append(
            (losses.detach(), torch.cat([grads[n].reshape(-1) for n in cached.manifest.names]))
        )
    assert torch.allclose(found[0][0], found[1][0], atol=2e-3)  # half precision in the cache
    norm = found[1][1].norm()
    assert (found[0][1] - found[1][1]).norm() < 5e-3 * norm


def test_the_cache_does_not_depend_on_the_other_records(requests_):
    model = fitted()
    whole, some = model.encode(requests_), model.encode(requests_.take([1, 4]))
    both = zip((whole.batch(np.array([1, 4])), some.batch(np.array([0, 1]))), strict=False)
    (first,), (second,) = both
    assert torch.equal(first.mask, second.mask)
    assert torch.allclose(
        first.inputs * first.mask[..., None], second.inputs * second.mask[..., None], atol=1e-3
    )


def test_answers_restrict_the_loss_by_hand(requests_):
    model = fitted()
    batch = model.encode(requests_).batch(np.arange(7))
    found = model.losses(batch, [2, 0])
    all_logits = logits(model, requests_)
    for i, label in enumerate(requests_.targets):
        if label == "part":
            assert found[i] == 0.0  # no answer of this domain: nothing to learn
        else:
            pair = all_logits[i, [0, 2]]
            wanted = torch.logsumexp(pair, 0) - all_logits[i, LABELS.index(label)]
            assert found[i].item() == pytest.approx(wanted.item(), abs=1e-6)
    found.sum().backward()
    assert not model.parameters()["head.weight"].grad[1].any()
    assert torch.equal(model.losses(batch, [0, 1, 2]), model.losses(batch, []))


def test_fit_labels_keeps_rows_and_starts_new_ones_at_zero():
    model = fitted()
    head = model.manifest.unpack(model.vector())
    model.fit_labels(("new", "thank", "greet", "part"))
    assert model.labels == ("new", "thank", "greet", "part")
    grown = model.manifest.unpack(model.vector())
    for key in ("head.weight", "head.bias"):
        assert not grown[key][0].any()
        assert np.array_equal(grown[key][1:], head[key][[2, 0, 1]])
    assert model.manifest.shapes[-2:] == ((4, 32), (4,))


def test_fit_labels_again_changes_nothing():
    model = fitted()
    before, head = model.vector(), model.parameters()["head.weight"]
    model.fit_labels(list(LABELS))
    assert np.array_equal(model.vector(), before)
    assert model.parameters()["head.weight"] is head


def test_the_factors_do_not_depend_on_the_labels():
    model = fitted()
    names = model.manifest.names
    model.fit_labels(LABELS[:1])
    assert model.manifest.names == names
    assert model.module.head.out_features == 1


def test_an_unknown_label_is_named(requests_):
    model = fitted()
    strange = Records(("line 9",), ("what",), ("askk",), ("talk",), ("",))
    with pytest.raises(
        DataError, match=r"no answer for label 'askk' \(record line 9\); it knows 3"
    ):
        model.encode(requests_ + strange)


def test_head_and_labels_restore_the_same_logits(requests_, tmp_path):
    import peft

    model = fitted(layers=0)
    model.fit_labels((*LABELS, "gr\u00fc\u00dfe"))
    model.save(tmp_path)
    assert json.loads((tmp_path / "labels.json").read_text()) == [*LABELS, "gr\u00fc\u00dfe"]
    head = load_file(tmp_path / "head.safetensors")
    assert head["weight"].shape == (4, 32)
    again = tiny.build(layers=0)
    again.fit_labels(json.loads((tmp_path / "labels.json").read_text()))
    weights = peft.load_peft_weights(str(tmp_path))
    peft.set_peft_model_state_dict(again.module.encoder, weights)
    again.module.head.load_state_dict(head)
    assert torch.equal(logits(again, requests_), logits(model, requests_))


def test_texts_are_cut_to_the_models_length():
    long = Records(("a",), (" ".join(["word"] * 500),), ("greet",), ("talk",), ("",))
    encoded = fitted(layers=0).encode(long)
    assert encoded.batch(np.array([0])).inputs.shape == (1, 64)


def test_a_text_without_words_has_an_answer():
    empty = Records(("a", "b"), ("", "two words"), ("greet", "part"), ("talk",) * 2, ("",) * 2)
    for model in (fitted(0), fitted(1), fitted(1, build=encoder_classifier.build)):
        assert torch.isfinite(model.losses(model.encode(empty).batch(np.array([0, 1])), [])).all()


def test_minilm_sentences_of_one_meaning_are_near():
    model = encoder_classifier.build(layers=0)
    texts = ("how do I reset my password", "I forgot my password", "a recipe for apple pie")
    model.fit_labels(["x"])
    batch = model.encode(Records(("a", "b", "c"), texts, ("x",) * 3, ("",) * 3, ("",) * 3)).batch(
        np.arange(3)
    )
    with torch.no_grad():
        hidden = model.module.encoder(input_ids=batch.inputs, attention_mask=batch.mask)[0]
        mask = batch.mask[..., None]
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    near, far = float(pooled[0] @ pooled[1]), float(pooled[0] @ pooled[2])
    assert near > 0.5 > far


def test_a_base_whose_layers_stand_in_no_list_can_be_adapted_whole(requests_):
    import transformers

    from perennial.core.errors import ModelError
    from perennial.models import adapter

    config = transformers.AlbertConfig(
        vocab_size=512,
        hidden_size=16,
        embedding_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    lora = adapter.Lora(2, 4.0, ("all",))

    def on(layers):
        base = transformers.AlbertModel(config)
        return encoder_classifier.on(base, tiny.hash_words, "albert", lora, layers, 64)

    with pytest.raises(ModelError, match="Write layers = 0 to adapt all of it"):
        on(1)
    model = on(0)
    model.fit_labels(LABELS)
    assert len(model.losses(model.encode(requests_).batch(np.arange(7)), [])) == 7
