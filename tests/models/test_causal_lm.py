import warnings

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from perennial.core.values import Records
from perennial.models import causal_lm

# By hand, from the vocabulary of the folder: w1 is 4, <s> is 1, </s> is 2.
IGNORED = -100


@pytest.fixture(scope="module")
def model(llama_folder):
    model = causal_lm.build(base=str(llama_folder), rank=2, max_length=8)
    draw = np.random.default_rng(0)
    model.load(draw.normal(scale=0.3, size=model.manifest.size).astype(np.float32))
    return model


def one(prompt, completion):
    return Records(("a",), (prompt,), (completion,), ("",), ("",))


def row(model, prompt, completion):
    batch = model.encode(one(prompt, completion)).batch(np.array([0]))
    return batch.ids[0].tolist(), batch.targets[0].tolist()


def test_targets_are_the_next_tokens_of_the_completion_by_hand(model):
    ids, targets = row(model, "w1 w2", "w3 w4")
    assert ids == [1, 4, 5, 6, 7, 2]
    assert targets == [IGNORED, IGNORED, 6, 7, 2, IGNORED]


def test_a_long_prompt_loses_its_beginning(model):
    ids, targets = row(model, "w1 w2 w3 w4 w5 w6 w7", "w8 w9")
    assert ids == [6, 7, 8, 9, 10, 11, 12, 2]
    assert targets == [IGNORED] * 4 + [11, 12, 2, IGNORED]


def test_a_long_completion_is_cut_and_keeps_a_prompt(model):
    ids, targets = row(model, "w1", " ".join(f"w{i}" for i in range(2, 20)))
    assert len(ids) == 8
    assert ids == [4, 5, 6, 7, 8, 9, 10, 11]
    assert targets == [5, 6, 7, 8, 9, 10, 11, IGNORED]


@pytest.mark.parametrize(("prompt", "completion"), [("", "w1"), ("w1", ""), ("", "")])
def test_what_is_empty_still_has_a_finite_loss(model, prompt, completion):
    ids, targets = row(model, prompt, completion)
    assert len(ids) == len(targets)
    assert targets[-2] == 2  # the end is always to be learnt
    batch = model.encode(one(prompt, completion)).batch(np.array([0]))
    assert torch.isfinite(model.losses(batch, [])).all()


def test_padding_carries_no_target(model, pairs):
    # Padding repeats a row's first place, and a prompt of one token has a target there.
    batch = model.encode(pairs + one("", "w1")).batch(np.arange(5))
    assert batch.targets[4, 0] == 4
    assert (batch.targets[batch.mask == 0] == IGNORED).all()
    assert (batch.mask == 0).any()


def test_the_loss_is_that_of_transformers_on_labels_masked_by_hand(model, pairs):
    encoded = model.encode(pairs)
    found = model.losses(encoded.batch(np.arange(4)), [])
    for i, (prompt, completion) in enumerate(zip(pairs.texts, pairs.targets, strict=True)):
        start = [1, *(3 + int(w[1:]) for w in prompt.split())]
        end = [*(3 + int(w[1:]) for w in completion.split()), 2]
        start = start[-(8 - len(end)) :]
        labels = torch.tensor([[IGNORED] * len(start) + end])
        wanted = model.module(input_ids=torch.tensor([start + end]), labels=labels).loss
        assert found[i].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_the_gradient_is_that_of_transformers_too(model):
    record = one("w1 w2", "w3 w4")
    found = []
    ids = torch.tensor([[1, 4, 5, 6, 7, 2]])
    labels = torch.tensor([[IGNORED] * 3 + [6, 7, 2]])
    for loss in (
        lambda: model.losses(model.encode(record).batch(np.array([0])), []).sum(),
        lambda: model.module(input_ids=ids, labels=labels).loss,
    ):
        model.module.zero_grad()
        loss().backward()
        found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters().values()]))
    model.module.zero_grad(set_to_none=True)
    assert found[0].any()
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_the_score_counts_completion_tokens(model, pairs):
    score = model.score(model.encode(pairs), 2)
    assert score.total == sum(len(text.split()) + 1 for text in pairs.targets)
    losses = model.losses(model.encode(pairs).batch(np.arange(4)), []).tolist()
    tokens = [len(text.split()) + 1 for text in pairs.targets]
    wanted = sum(loss * count for loss, count in zip(losses, tokens, strict=True))
    assert score.loss == pytest.approx(wanted, abs=1e-4)


def test_each_token_is_drawn_from_the_prediction_at_its_place(model):
    record = one("w1 w2", "w3 w4")
    batch = model.encode(record).batch(np.zeros(3_000, np.int64))
    drawn = model.resampled(batch, np.random.default_rng(0)).targets
    assert (drawn[:, [0, 1, 5]] == IGNORED).all()
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([[1, 4, 5, 6, 7, 2]])).logits[0]
    for place in (2, 3, 4):
        counts = np.bincount(drawn[:, place].numpy(), minlength=32)
        wanted = logits[place].double().softmax(0).numpy()
        assert stats.chisquare(counts, 3_000 * wanted).pvalue > 0.005


def test_answers_and_freedom_mean_nothing_without_labels(model, pairs):
    batch = model.encode(pairs).batch(np.arange(4))
    free = torch.tensor([True, False, True, False])
    with torch.no_grad():
        assert torch.equal(model.losses(batch, [1, 2], free), model.losses(batch, []))


def test_labels_are_refused(model):
    model.fit_labels(())
    with pytest.raises(ValueError, match="no labels"):
        model.fit_labels(("a",))


def test_only_the_top_layers_are_adapted_and_never_the_output(llama_folder):
    top = causal_lm.build(base=str(llama_folder), layers=1).manifest.names
    every = causal_lm.build(base=str(llama_folder), layers=0).manifest.names
    assert {name.split(".")[2] for name in top} == {"1"}
    assert {name.split(".")[2] for name in every} == {"0", "1"}
    assert len(every) == 2 * len(top) == 2 * 2 * 7
    assert causal_lm.build(base=str(llama_folder), layers=9).manifest.names == every


def test_gpt2_whose_linears_stand_transposed(llama_folder, tmp_path, pairs):
    config = transformers.GPT2Config(
        vocab_size=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fan_in_fan_out")
        model = causal_lm.build(base=str(tmp_path), rank=2)
    assert len(model.manifest.names) == 2 * 2 * 4
    assert not any("lm_head" in name for name in model.manifest.names)
    before = model.losses(model.encode(pairs).batch(np.arange(4)), []).mean()
    draw = np.random.default_rng(0)
    model.load(draw.normal(scale=0.3, size=model.manifest.size).astype(np.float32))
    loss = model.losses(model.encode(pairs).batch(np.arange(4)), []).mean()
    assert loss != before
    import peft

    model.save(tmp_path / "adapter")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert torch.allclose(
            again(input_ids=ids).logits, model.module(input_ids=ids).logits, atol=1e-5
        )
