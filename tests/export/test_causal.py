import json
import subprocess
import sys

import numpy as np
import parrots
import pytest
import torch
import transformers

from perennial.core.errors import DataError, ModelError, RunError
from perennial.export import causal, generate

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"the package {package} is missing: NO GRAPH IS TESTED")

pytestmark = pytest.mark.integration

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 412,
}


@pytest.fixture(scope="module")
def parrot():
    tokenizer = parrots.byte_level()
    return parrots.llama(tokenizer), tokenizer


@pytest.fixture(scope="module")
def written(parrot, tmp_path_factory):
    return causal.write(*parrot, tmp_path_factory.mktemp("release") / "onnx")


@pytest.fixture(scope="module")
def generator(written):
    return generate.Generator(written.folder)


def test_greedy_tokens_are_torchs(parrot, generator):
    model, tokenizer = parrot
    for prompt in parrots.PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        wanted = parrots.greedy(model, ids, 24)
        assert len(wanted) > 5
        assert wanted[-1] == tokenizer.eos_token_id
        assert list(generator.greedy(ids, 24)) == wanted[:-1]
        assert list(generator.greedy(ids, 3)) == wanted[:3]


def test_answers_are_text(generator):
    assert generator.answer("The bank", 40) == parrots.TEXTS[0].removeprefix("The bank")


def test_prompt_and_single_tokens_give_the_same_logits_as_the_whole_text(parrot, generator):
    model, tokenizer = parrot
    ids = np.array([tokenizer(parrots.TEXTS[3])["input_ids"]])
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    for cuts in ([], [1], [4, 5, 6], list(range(1, ids.shape[1]))):
        past, parts, at = generator.empty(), [], 0
        for end in [*cuts, ids.shape[1]]:
            mask = np.ones((1, end), np.int64)
            logits, past = generator.step(ids[:, at:end], mask, past)
            parts.append(logits)
            at = end
        assert np.allclose(np.concatenate(parts, 1), wanted, atol=1e-4)


def test_padding_on_the_left_changes_nothing(parrot, generator):
    model, tokenizer = parrot
    rows = [tokenizer(prompt)["input_ids"] for prompt in parrots.PROMPTS]
    width = max(map(len, rows))
    ids = np.array([[1] * (width - len(row)) + row for row in rows])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    past = generator.empty(len(rows))
    found = [[] for _ in rows]
    for _ in range(6):
        logits, past = generator.step(ids, mask, past)
        ids = logits[:, -1].argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        for row, token in zip(found, ids[:, 0].tolist(), strict=True):
            row.append(token)
    for row, start in zip(found, rows, strict=True):
        assert row == parrots.greedy(model, start, 6)


def test_axes_have_names_and_the_opset_is_pinned(written):
    import onnx

    graph = onnx.load(written.folder / "model.onnx")
    assert [(o.domain, o.version) for o in graph.opset_import if not o.domain] == [("", 20)]
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes["input_ids"] == ["batch", "tokens"]
    assert shapes["attention_mask"] == ["batch", "total"]
    assert shapes["past.1.value"] == ["batch", 2, "past", 16]
    assert shapes["logits"] == ["batch", "tokens", 412]
    assert shapes["present.0.key"][::3] == ["batch", 16]
    assert written.apart < 1e-4
    assert written.size_bytes == (written.folder / "model.onnx").stat().st_size


def test_the_folder_runs_without_torch(written):
    code = (
        "import sys, pathlib; from perennial.export.generate import Generator; "
        "print(Generator(pathlib.Path(sys.argv[1])).answer('The bank', 40)); "
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, written.folder], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [" opens at 9 and closes at 17, except on Sunday.", "False"]


def test_a_prompt_that_does_not_fit_is_named(generator):
    with pytest.raises(DataError, match="at least one token"):
        generator.greedy([], 3)
    with pytest.raises(DataError, match="at most 128 tokens; got 120"):
        generator.greedy([3] * 120, 9)
    assert len(list(generator.greedy([3] * 120, 2))) <= 2


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "generate.json"])
def test_a_damaged_folder_is_named(written, tmp_path, name):
    for path in written.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(b"{ half a")
    with pytest.raises(ModelError, match=name):
        generate.Generator(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=name):
        generate.Generator(tmp_path)


def test_what_is_written_is_what_the_tokenizer_and_the_model_say(written, parrot):
    facts = json.loads((written.folder / "generate.json").read_text())
    assert facts == {"ends": [parrot[1].eos_token_id], "context": 128, "opset": 20}
    again = transformers.AutoTokenizer.from_pretrained(written.folder)
    for text in parrots.TEXTS:
        assert again(text)["input_ids"] == parrot[1](text)["input_ids"]


def test_another_family_with_its_weights_beside_the_graph(parrot, tmp_path, monkeypatch):
    monkeypatch.setattr(causal, "_MOST_INSIDE", 1_000)
    _, tokenizer = parrot
    config = transformers.GPT2Config(
        vocab_size=412, n_embd=32, n_layer=1, n_head=2, n_positions=48, eos_token_id=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = parrots.trained(transformers.GPT2LMHeadModel(config), tokenizer, steps=20)
    model.train()
    written = causal.write(model, tokenizer, tmp_path / "onnx")
    assert model.training
    model.eval()
    sizes = {path.name: path.stat().st_size for path in written.folder.iterdir()}
    assert sizes["model.onnx.data"] > 4 * model.num_parameters() * 0.9
    assert written.size_bytes == sizes["model.onnx"] + sizes["model.onnx.data"]
    moved = (tmp_path / "onnx").rename(tmp_path / "moved")
    generator = generate.Generator(moved)
    for prompt in parrots.PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        wanted = [i for i in parrots.greedy(model, ids, 20) if i != tokenizer.eos_token_id]
        assert list(generator.greedy(ids, 20)) == wanted


def test_a_graph_that_differs_from_torch_is_not_handed_out(parrot, generator, tmp_path):
    other = transformers.LlamaForCausalLM(parrot[0].config).eval()
    other.load_state_dict(parrot[0].state_dict())
    other.requires_grad_(False)
    assert causal._compare(other, generator) < 1e-4
    other.model.layers[1].mlp.down_proj.weight[3] *= 1.1

    def write():
        with causal._appearing(tmp_path / "onnx") as fresh:
            (fresh / "model.onnx").write_bytes(b"what was compared")
            causal._compare(other, generator)

    with pytest.raises(RunError, match="Nothing was kept"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(parrot, tmp_path):
    (tmp_path / "kept").write_text("x")
    with pytest.raises(FileExistsError, match="already"):
        causal.write(*parrot, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (transformers.MistralConfig(**SIZES, sliding_window=8), "window of 8"),
        (
            transformers.Qwen2Config(
                **SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1
            ),
            "sliding_attention",
        ),
        (
            transformers.MambaConfig(
                vocab_size=412, hidden_size=16, state_size=4, num_hidden_layers=1
            ),
            "linear_attention",
        ),
        (
            transformers.LlamaConfig(
                **SIZES,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            "dynamic",
        ),
    ],
)
def test_what_a_graph_cannot_hold_is_named(parrot, tmp_path, config, words):
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=words):
        causal.write(model, parrot[1], tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_without_keys_and_values_is_named(parrot, tmp_path):
    config = transformers.OpenAIGPTConfig(vocab_size=412, n_embd=16, n_layer=1, n_head=2)
    model = transformers.OpenAIGPTLMHeadModel(config)
    with pytest.raises(ModelError, match="one key and one value"):
        causal.write(model, parrot[1], tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_models_that_are_not_merged_or_not_float32_are_named(parrot, tmp_path):
    import peft

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    with pytest.raises(ModelError, match="output head"):
        causal.write(model.model, parrot[1], tmp_path / "onnx")
    with pytest.raises(ModelError, match="got Linear"):
        causal.write(torch.nn.Linear(2, 2), parrot[1], tmp_path / "onnx")
    with pytest.raises(ModelError, match="float32"):
        causal.write(model.half(), parrot[1], tmp_path / "onnx")
    adapted = peft.get_peft_model(model.float(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="merge the adapter"):
        causal.write(adapted, parrot[1], tmp_path / "onnx")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        causal.write(parrot[0], object(), tmp_path / "onnx")
    with pytest.raises(ModelError, match="no tokenizer can be loaded"):
        causal.write(parrot[0], tmp_path, tmp_path / "onnx")
    with pytest.raises(ValueError, match="18 to 20"):
        causal.write(*parrot, tmp_path / "onnx", opset=17)
    assert not list(tmp_path.iterdir())
