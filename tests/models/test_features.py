"""Pooled hidden states against transformers' own, and what is kept of them."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers

from perennial.core.errors import ModelError
from perennial.core.values import Records
from perennial.models import adapter, bases, causal_lm, encoder_classifier, tiny
from perennial.models.features import Remembered, pooled

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Families whose layers return a tensor or a tuple, and who norm after the last layer or do not.
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=64, dim=16, hidden_dim=32, n_layers=3, n_heads=2
    ),
    "mpnet": transformers.MPNetConfig(**SIZES),
    "deberta": transformers.DebertaV2Config(**SIZES, relative_attention=True),
    "modernbert": transformers.ModernBertConfig(
        **SIZES, **SPECIAL, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2
    ),
    "llama": transformers.LlamaConfig(**SIZES, **SPECIAL, use_cache=False),
}
TOKENS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [8, 9], [15]]


def plain(base, tokens, layers):
    return pooled(base, tokens, layers, torch.device("cpu"), nullcontext)


def made(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModel.from_config(config)


def some(texts):
    count = len(texts)
    return Records(tuple(f"r{i}" for i in range(count)), tuple(texts), *(("",) * count,) * 3)


@pytest.mark.parametrize("family", CONFIGS)
def test_features_are_the_means_of_transformers_own_hidden_states(family):
    base = made(CONFIGS[family])
    bases.without_dropout(base)
    found = plain(base, TOKENS, 3)
    assert found.shape == (5, 48)
    for row, ids in zip(found, TOKENS, strict=True):
        with torch.no_grad():
            states = base(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert len(states) == 4
        wanted = torch.cat([state[0].mean(0) for state in states[:0:-1]])
        assert np.allclose(row, wanted.numpy(), atol=1e-5)
    assert np.array_equal(plain(base, TOKENS, 1), found[:, :16])


def test_dropout_is_off_and_each_part_is_in_its_mode_again():
    base = made(transformers.BertConfig(**SIZES)).train()
    base.embeddings.eval()
    assert any(m.p for m in base.modules() if isinstance(m, torch.nn.Dropout))
    before = {name: part.training for name, part in base.named_modules()}
    assert np.array_equal(plain(base, TOKENS, 2), plain(base, TOKENS, 2))
    assert {name: part.training for name, part in base.named_modules()} == before
    assert not any(part._forward_hooks for part in base.modules())


def test_many_texts_in_any_order_give_the_same_bits():
    base = made(transformers.BertConfig(**SIZES))
    draw = np.random.default_rng(0)
    tokens = [draw.integers(3, 64, draw.integers(1, 9)).tolist() for _ in range(150)]
    tokens += tokens[:20]
    order = draw.permutation(len(tokens))
    ran = []
    base.register_forward_pre_hook(lambda _, args, given: ran.append(given), with_kwargs=True)
    found = plain(base, tokens, 2)
    first, ran[:] = list(ran), []
    assert np.array_equal(plain(base, [tokens[i] for i in order], 2), found[order])
    # The same batches, so on any machine: a batch of others may round in another way.
    assert len(first) == len(ran) > 1
    for one, other in zip(first, ran, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["attention_mask"], other["attention_mask"])
    assert np.allclose(plain(base, tokens[:3], 2), found[:3], atol=1e-6)


def test_a_base_whose_layers_are_one_gives_its_last_alone():
    config = transformers.AlbertConfig(**SIZES, embedding_size=8)
    base = made(config)
    assert plain(base, TOKENS, 1).shape == (5, 16)
    with pytest.raises(ModelError, match=r"stand in one list.* 2 were asked for\. Ask for 1"):
        plain(base, TOKENS, 2)


@pytest.mark.parametrize("layers", [0, 1])
def test_minilm_gives_what_its_head_sees_while_the_adapter_is_at_its_start(layers, requests_):
    model = encoder_classifier.build(layers=layers)
    model.fit_labels(["greet", "part", "thank"])
    seen = []
    handle = model.module.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.losses(model.encode(requests_).batch(np.arange(7)), [])
    handle.remove()
    found = model.features(requests_, 6)
    assert found.shape == (7, 6 * 384)
    # Activations below the cut are cached in half precision.
    assert np.allclose(found[:, :384], seen[0].detach().numpy(), atol=1e-3 if layers else 1e-6)
    assert np.array_equal(model.features(requests_), found[:, :384])


def test_prompts_alone_are_read(llama_folder, pairs):
    model = causal_lm.build(base=str(llama_folder), rank=2, max_length=8)
    found = model.features(pairs, 2)
    assert found.shape == (4, 32)
    base = transformers.AutoModelForCausalLM.from_pretrained(llama_folder).model
    for row, prompt in zip(found, pairs.texts, strict=True):
        ids = [1, *(3 + int(word[1:]) for word in prompt.split())]  # by the folder's vocabulary
        assert np.allclose(row, plain(base, [ids], 2)[0], atol=1e-6)
    long = " ".join(f"w{i}" for i in range(1, 20))
    # Like a prompt in training, a long one loses its beginning.
    ids = [3 + i for i in range(12, 20)]
    assert np.allclose(model.features(some([long])), plain(base, [ids], 1), atol=1e-6)
    assert np.isfinite(model.features(some([""]))).all()


def test_a_prompt_without_a_token_has_features(llama_folder, tmp_path):
    import tokenizers

    core = tokenizers.Tokenizer.from_file(str(llama_folder / "tokenizer.json"))
    core.post_processor = tokenizers.processors.TemplateProcessing(single="$A", special_tokens=[])
    transformers.AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    model = causal_lm.build(base=str(tmp_path), rank=2)
    assert model._prompt("") == [2]
    assert np.isfinite(model.features(some(["", "w1"]))).all()


def test_bf16_gives_float32_near_the_whole_precision(requests_):
    model = encoder_classifier.build(layers=1)
    exact = model.features(requests_, 2)
    model.place("cpu", "bf16")
    rough = model.features(requests_, 2)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 5e-2 * np.abs(exact).max()
    model.place("cpu", "fp32")
    assert np.array_equal(model.features(requests_, 2), exact)


def test_features_in_the_middle_of_checkpointed_training(requests_):
    wanted = tiny.build(layers=0).features(requests_, 2)
    model = tiny.build(layers=0)
    base = model.module.encoder.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    for _ in range(2):
        assert np.array_equal(model.features(requests_, 2), wanted)
    model.fit_labels(["greet", "part", "thank"])
    model.losses(model.encode(requests_).batch(np.arange(7)), []).sum().backward()
    assert model.parameters()["head.weight"].grad.any()


def test_the_factors_that_were_frozen_stay_frozen():
    model = tiny.build(layers=0)
    names = list(model.parameters())
    model.parameters()[names[0]].requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.module.named_parameters()}
    with adapter.frozen_base(model.module.encoder):
        pass
    assert {name: p.requires_grad for name, p in model.module.named_parameters()} == flags
    with pytest.raises(ZeroDivisionError), adapter.frozen_base(model.module.encoder):
        _ = 1 / 0
    assert {name: p.requires_grad for name, p in model.module.named_parameters()} == flags


def test_a_failure_inside_leaves_the_model_as_it_was(requests_):
    model = tiny.build(layers=1)
    perturbed = np.random.default_rng(0).normal(scale=0.3, size=model.manifest.size)
    model.load(perturbed.astype(np.float32))
    adapted = model.features(requests_, adapted=True)

    def fail(*_):
        raise RuntimeError("no memory left")

    layer = model.module.encoder.get_base_model().encoder.layer[0]
    handle = layer.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        model.features(requests_, 2)
    handle.remove()
    assert all(p.requires_grad for p in model.parameters().values())
    assert all(part.training for part in model.module.modules())
    assert np.array_equal(model.features(requests_, adapted=True), adapted)
    assert not np.allclose(model.features(requests_), adapted, atol=1e-2)


def test_a_frozen_base_is_asked_once(requests_):
    model = tiny.build(layers=1)
    ran = []
    layer = model.module.encoder.get_base_model().encoder.layer[1]
    layer.register_forward_hook(lambda *_: ran.append(1))
    first = model.features(requests_)
    assert np.array_equal(model.features(requests_), first)
    assert len(ran) == 1
    model.features(requests_, adapted=True)
    model.features(requests_, adapted=True)
    assert len(ran) == 3  # what moves is asked each time
    model.features(requests_.take([1, 0]))
    assert len(ran) == 4


def filled(value, count=4):
    return lambda: np.full((1, count), value, np.float32)


def forgotten():
    raise AssertionError("this was to be remembered")


def test_what_is_remembered_cannot_be_changed_from_outside():
    kept = Remembered()
    kept.get(["a"], 1, filled(1.0))[:] = 5.0
    kept.get(["a"], 1, forgotten)[:] = 6.0
    assert kept.get(["a"], 1, forgotten).tolist() == [[1.0] * 4]


def test_texts_and_layers_are_told_apart():
    kept = Remembered()
    for value, (texts, layers) in enumerate(
        [(["ab", "c"], 1), (["a", "bc"], 1), (["c", "ab"], 1), (["ab", "c"], 2), (["abc"], 1)]
    ):
        assert kept.get(texts, layers, filled(value))[0, 0] == value


def test_the_oldest_use_goes_first_and_the_bytes_stay_below_the_bound():
    kept = Remembered(size_bytes=40)  # two rows of 16 bytes
    kept.get(["a"], 1, filled(1.0))
    kept.get(["b"], 1, filled(2.0))
    kept.get(["a"], 1, forgotten)
    kept.get(["c"], 1, filled(3.0))
    kept.get(["a"], 1, forgotten)
    assert kept.get(["b"], 1, filled(7.0))[0, 0] == 7.0
    with pytest.raises(AssertionError, match="remembered"):
        kept.get(["c"], 1, forgotten)
    kept.get(["wide"], 1, filled(4.0, 11))  # 44 bytes: too much to keep, and nothing else goes
    kept.get(["a"], 1, forgotten)
    kept.get(["b"], 1, forgotten)
    kept.forget()
    assert kept.get(["a"], 1, filled(9.0))[0, 0] == 9.0
