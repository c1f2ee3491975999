import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from perennial.core.config import Train
from perennial.core.errors import ModelError
from perennial.models import bases, causal_lm, place, tiny

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def folder(llama_folder, tmp_path):
    return shutil.copytree(llama_folder, tmp_path / "base")


def load(folder):
    return bases.load(str(folder), transformers.AutoModelForCausalLM)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_loads_frozen_in_float32_and_is_the_same_each_time(folder):
    first, tokenizer = load(folder)
    second, _ = load(folder)
    assert bases.fingerprint(first) == bases.fingerprint(second)
    assert not any(p.requires_grad for p in first.parameters())
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    assert tokenizer("w1")["input_ids"] == [1, 4]


@pytest.mark.parametrize("content", [None, b"", b"x" * 1000, 1000])
def test_damaged_weights_are_a_model_error(folder, content):
    weights = folder / "model.safetensors"
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(
        ModelError, match=r"\[model\] base .*base' cannot be loaded: .* Give a folder"
    ):
        load(folder)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1, such as 'model.layers.1.self_attn.q_proj"):
        load(folder)


def test_an_encoder_is_no_causal_model():
    with pytest.raises(ModelError, match=r"lacks .*trained for this kind of model"):
        causal_lm.build(base="minilm")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: edit_config(folder, model_type="zork"),
        lambda folder: edit_config(folder, hidden_size=32),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: shutil.rmtree(folder),
    ],
    ids=["no config", "half a config", "odd type", "another shape", "odd tokenizer", "nothing"],
)
def test_a_folder_that_is_no_base_is_a_model_error(folder, break_it):
    break_it(folder)
    with pytest.raises(ModelError, match=r"\[model\] base .* cannot be loaded"):
        load(folder)


def test_the_embedded_base_is_checked_against_its_hash(monkeypatch):
    assert bases.embedded_path().endswith("model")
    monkeypatch.setattr(bases, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"sha256 0{16}\.\.\.; got 53aa51172d142c89.*Install"):
        bases.load(bases.EMBEDDED, transformers.AutoModel)


@pytest.mark.parametrize("tensor", [0, -1])
def test_the_fingerprint_sees_one_bit_a_name_and_a_shape(tensor):
    def linear():
        made = torch.nn.Linear(3, 4)
        with torch.no_grad():
            for p in made.parameters():
                p.copy_(torch.arange(p.numel()).reshape(p.shape))
        return made

    before = bases.fingerprint(linear())
    assert bases.fingerprint(linear()) == before
    changed = linear()
    with torch.no_grad():
        list(changed.parameters())[tensor].view(-1)[1] += 1e-6
    assert bases.fingerprint(changed) != before
    assert bases.fingerprint(torch.nn.Sequential(linear())) != before
    turned = linear()
    turned.weight = torch.nn.Parameter(turned.weight.reshape(3, 4))
    assert bases.fingerprint(turned) != before


@pytest.mark.parametrize(
    "config",
    [
        transformers.BertConfig(**SMALL, intermediate_size=32),
        transformers.LlamaConfig(**SMALL, intermediate_size=32, attention_dropout=0.5),
        transformers.OPTConfig(
            **SMALL,
            ffn_dim=32,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
            dropout=0.5,
            attention_dropout=0.5,
            activation_dropout=0.5,
            layerdrop=0.5,
        ),
        transformers.FalconConfig(**SMALL, hidden_dropout=0.5, attention_dropout=0.5),
        transformers.BloomConfig(
            vocab_size=64,
            hidden_size=16,
            n_layer=2,
            n_head=2,
            hidden_dropout=0.5,
            attention_dropout=0.5,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_without_dropout_train_and_eval_mode_agree(config):
    ids = torch.arange(3, 11)[None]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        model.train()
        noisy = [model(input_ids=ids)[0] for _ in range(2)]
        assert not torch.equal(*noisy)  # there was something to switch off
        bases.without_dropout(model)
        found = model(input_ids=ids)[0]
        assert torch.equal(found, model.eval()(input_ids=ids)[0])


def test_the_tiny_base_is_the_same_whatever_torch_drew_before():
    torch.manual_seed(1)
    first = tiny.build()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = tiny.build(rank=1)
    assert first.identity() == second.identity()
    assert tiny.build(width=64).identity() != first.identity()
    assert not torch.equal(torch.get_rng_state(), before)  # A is drawn from torch's seed


def test_words_are_hashed_the_same_everywhere():
    # CRC-32 of "hello" is 0x3610a686: 1 + 907060870 % 511.
    found = tiny.hash_words(["hello hello", "", "a b c"], True, 2)["input_ids"]
    assert found[0] == [1 + 907060870 % 511] * 2
    assert found[1] == [1]
    assert len(found[2]) == 2


class Recorder:
    def place(self, device, precision):
        self.asked = (device, precision)


@pytest.mark.parametrize(
    ("there", "table", "wanted"),
    [
        (False, {}, ("cpu", "fp32")),
        (False, {"precision": "bf16"}, ("cpu", "fp32")),
        (True, {}, ("cuda", "bf16")),
        (True, {"precision": "fp32"}, ("cuda", "fp32")),
        (True, {"device": "cpu"}, ("cpu", "fp32")),
        (True, {"device": "cuda", "precision": "bf16"}, ("cuda", "bf16")),
    ],
)
def test_where_a_run_computes(monkeypatch, there, table, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    model = Recorder()
    place.place(model, Train(**table))
    assert model.asked == wanted


def test_cuda_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match='device = "cuda" needs a CUDA device'):
        place.place(Recorder(), Train(device="cuda"))
