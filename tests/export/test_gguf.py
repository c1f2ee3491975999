import json
import os
import urllib.request

import numpy as np
import parrots
import pytest
import torch
import transformers

from perennial.core.errors import ModelError, RunError
from perennial.export import gguf

gguf_package = pytest.importorskip("gguf", reason="the package gguf is missing: NO GGUF IS TESTED")

KINDS = ("llama-bpe", "gpt-2", "qwen2", "smollm", "sentencepiece")
# What tokenizers disagree about: spaces, digits, apostrophes, other scripts, bytes, line ends.
HARD = (
    "They'RE here; we'll see 12345 or 6 of 'em,  twice   spaced ",
    " leading space\n\n\ttabs\r\nand lines   \n",
    "Ünïcödé, naïve cafés, Straße, 東京都, привет, مرحبا, 🙂👩‍👩‍👧 e\u0301",
    "x=1;y=[2,3]!?... https://a.b/c?d=e&f=%20 $3.50 50% #tag @me",
    "a</s>b <s> c</s></s>d",
    "",
)


@pytest.fixture(scope="module")
def made():
    """(kind) -> a model that knows its sentences, and its tokenizer; trained once per kind."""
    kept = {}

    def make(kind):
        if kind not in kept:
            tokenizer = (
                parrots.sentencepiece() if kind == "sentencepiece" else parrots.byte_level(kind)
            )
            kept[kind] = (parrots.llama(tokenizer), tokenizer)
        return kept[kind]

    return make


@pytest.fixture
def parrot(made):
    return made("llama-bpe")


@pytest.fixture
def serve():
    """(path) -> llama.cpp with that file, in this process, on a port of its own choosing."""
    xllamacpp = pytest.importorskip(
        "xllamacpp", reason="the package xllamacpp is missing: NOTHING RUNS UNDER LLAMA.CPP"
    )

    def start(path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 128
        params.n_parallel = 1
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.n_threads_http = 1
        params.warmup = False
        params.verbosity = -1
        return xllamacpp.Server(params)

    return start


def asked(server, prompt, count=24):
    """(ids, log-probabilities of the best of each place by id) that follow `prompt`."""
    body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "n_probs": 5}
    places = server.handle_completions(body)["choices"][0]["logprobs"]["content"]
    tops = [{top["id"]: top["logprob"] for top in place["top_logprobs"]} for place in places]
    return [place["id"] for place in places], tops


def posted(server, path, body):
    request = urllib.request.Request(
        server.listening_address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def without_end(ids, model):
    return [index for index in ids if index != model.config.eos_token_id]


@pytest.mark.parametrize("packing", ["F16", "Q8_0"])
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_goes_on_as_torch_does_through_text(made, serve, tmp_path, kind, packing):
    model, tokenizer = made(kind)
    written = gguf.write(model, tokenizer, tmp_path / "model.gguf", packing)
    assert written.size_bytes == written.path.stat().st_size
    server = serve(written.path)
    for prompt in parrots.PROMPTS:
        wanted = without_end(parrots.greedy(model, tokenizer(prompt)["input_ids"], 24), model)
        assert len(wanted) > 5
        found, _ = asked(server, prompt)
        assert without_end(found, model) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_hard_texts_as_the_tokenizer_does(made, serve, tmp_path, kind):
    model, tokenizer = made(kind)
    server = serve(gguf.write(model, tokenizer, tmp_path / "model.gguf").path)
    draw = np.random.default_rng(3)
    letters = [*"  \n\t'aeilnstS.,!?0123456789-_äß東🙂", " the", " and", "'ll", "\r\n"]
    drawn = ["".join(draw.choice(letters, size=60)) for _ in range(40)]
    for text in (*HARD, *drawn):
        body = {"content": text, "add_special": True, "parse_special": True}
        assert posted(server, "/tokenize", body)["tokens"] == tokenizer(text)["input_ids"], text


VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide_heads": {"head_dim": 32},
    "all_heads": {"num_key_value_heads": 4},
    "unused_rows": {"vocab_size": 448},
    "another_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_log_probabilities_are_torchs(made, serve, tmp_path, name):
    _, tokenizer = made("llama-bpe")
    model = parrots.llama(tokenizer, steps=6, **VARIANTS[name])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for parameter in model.parameters():  # norms and biases begin as ones and zeros
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    server = serve(gguf.write(model, tokenizer, tmp_path / "model.gguf", "F16").path)
    prompt = parrots.TEXTS[2]
    ids = tokenizer(prompt)["input_ids"]
    _, tops = asked(server, prompt, count=1)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert max(wanted) < -0.05  # or the likeliest alone would be compared
    found = tops[0]
    assert {int(i) for i in wanted.topk(3).indices} <= set(found)
    for index, value in found.items():
        assert value == pytest.approx(float(wanted[index]), abs=0.02)


def test_the_end_token_ends_an_answer(made, serve, tmp_path):
    model, tokenizer = made("llama-bpe")
    server = serve(gguf.write(model, tokenizer, tmp_path / "model.gguf").path)
    answer = server.handle_completions({"prompt": "The bank", "max_tokens": 60, "temperature": 0})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] == parrots.TEXTS[0].removeprefix("The bank")


def test_the_chat_template_comes_along(parrot, serve, tmp_path):
    model, tokenizer = parrot
    template = (
        "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] "
        "{{ message['content'] }}{{ eos_token }}{% endfor %}[assistant]"
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    server = serve(gguf.write(model, tokenizer, tmp_path / "model.gguf").path)
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    talk += [{"role": "user", "content": "9 or 10?"}]
    wanted = tokenizer.apply_chat_template(talk, tokenize=False)
    found = posted(server, "/apply-template", {"messages": talk})["prompt"]
    # llama.cpp leaves out the start token that reading the prompt adds.
    assert found in (wanted, wanted.removeprefix("<s>"))


def test_named_templates_and_further_ends_are_in_the_file(parrot, tmp_path):
    model, tokenizer = parrot
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    model.generation_config.eos_token_id = [1, 5, 6]
    try:
        gguf.write(model, tokenizer, tmp_path / "model.gguf")
    finally:
        model.generation_config.eos_token_id = 1
    fields = gguf_package.GGUFReader(tmp_path / "model.gguf").fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert found["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    ids = [found[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert ids == [1, 5, 6]


def test_the_tokenizer_may_be_a_folder(parrot, tmp_path):
    model, tokenizer = parrot
    tokenizer.save_pretrained(tmp_path / "words")
    gguf.write(model, tokenizer, tmp_path / "a.gguf")
    gguf.write(model, tmp_path / "words", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_what_is_packed_is_what_the_packages_own_numbers_say(parrot, tmp_path):
    model, tokenizer = parrot
    written = gguf.write(model, tokenizer, tmp_path / "model.gguf")
    tensors = {t.name: t for t in gguf_package.GGUFReader(written.path).tensors}
    assert written.num_tensors == len(tensors)
    kinds = {name: t.tensor_type.name for name, t in tensors.items()}
    assert {kinds[n] for n in kinds if "norm" in n} == {"F32"}
    assert {kinds[n] for n in kinds if "norm" not in n} == {"Q8_0"}
    down = tensors["blk.1.ffn_down.weight"]
    values = gguf_package.quants.dequantize(down.data, down.tensor_type)
    weight = model.model.layers[1].mlp.down_proj.weight.numpy()
    # Half a step, and what 127 steps lose because their width is a half-precision number.
    steps = np.abs(weight.reshape(-1, 32)).max(1, keepdims=True) / 127
    assert (np.abs(values - weight).reshape(-1, 32) <= 0.57 * steps).all()
    assert 0 < written.lost < 0.02


def test_the_size_is_what_the_packing_says(made, tmp_path):
    model, tokenizer = made("smollm")
    sizes = {p: gguf.write(model, tokenizer, tmp_path / p, p).size_bytes for p in ("F16", "Q8_0")}
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    saved = weights * (2 - 34 / 32)
    assert sizes["F16"] - sizes["Q8_0"] == pytest.approx(saved, rel=0.01)


def test_progress_counts_every_tensor_twice(parrot, tmp_path):
    seen = []
    written = gguf.write(*parrot, tmp_path / "m.gguf", progress=lambda *at: seen.append(at))
    total = 2 * written.num_tensors
    assert seen == [(i + 1, total) for i in range(total)]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_is_stopped_leaves_the_old_file(parrot, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the last release")

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.write(*parrot, path, progress=stop)
    assert path.read_bytes() == b"the last release"
    assert files(tmp_path) == ["model.gguf"]
    gguf.write(*parrot, path)
    assert path.read_bytes()[:4] == b"GGUF"
    assert files(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_byte_that_changed_on_disk_is_found(parrot, tmp_path, place):
    path = tmp_path / "model.gguf"

    def spoil(done, total):
        if done == total // 2:  # all is written, nothing compared
            (fresh,) = tmp_path.iterdir()
            with fresh.open("rb+") as file:
                file.seek(int(place * os.path.getsize(fresh)))
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))

    # The last tensor is still in the writer's buffer then; the byte lies before it.
    with pytest.raises(RunError, match="read back"):
        gguf.write(*parrot, path, progress=spoil)
    assert files(tmp_path) == []


def test_a_folder_that_is_not_there_is_said(parrot, tmp_path):
    with pytest.raises(FileNotFoundError):
        gguf.write(*parrot, tmp_path / "no" / "model.gguf")


def changed(parrot, **config):
    """A copy of the model's weights under another config."""
    _, tokenizer = parrot
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": len(tokenizer)}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | config))), tokenizer


def test_another_architecture_is_named(parrot, tmp_path):
    config = transformers.GPT2Config(vocab_size=420, n_embd=32, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(ModelError, match="got gpt2"):
        gguf.write(model, parrot[1], tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="LlamaModel"):
        gguf.write(parrot[0].model, parrot[1], tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="got Linear"):
        gguf.write(torch.nn.Linear(2, 2), parrot[1], tmp_path / "m.gguf")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_act": "gelu"}, "silu"),
        ({"hidden_size": 48, "num_attention_heads": 4}, "Write this model as F16"),
        ({"head_dim": 3}, "even width"),
        ({"vocab_size": 300}, "a row for every token"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
    ],
)
def test_what_does_not_fit_is_named(parrot, tmp_path, config, words):
    with pytest.raises(ModelError, match=words):
        gguf.write(*changed(parrot, **config), tmp_path / "m.gguf")
    assert files(tmp_path) == []


def test_a_window_shorter_than_the_context_is_named(parrot, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(parrot[1])}
    config = transformers.MistralConfig(**sizes, **heads, sliding_window=16)
    model = transformers.MistralForCausalLM(config)
    with pytest.raises(ModelError, match="16 tokens"):
        gguf.write(model, parrot[1], tmp_path / "m.gguf")
    config.max_position_embeddings = 16
    assert gguf.write(model, parrot[1], tmp_path / "m.gguf").num_tensors == 12


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_that_is_not_merged_is_named(parrot, tmp_path):
    import peft

    model = peft.get_peft_model(changed(parrot)[0], peft.LoraConfig(target_modules=["q_proj"]))
    for form in (model, model.get_base_model()):
        with pytest.raises(ModelError, match="merge the adapter"):
            gguf.write(form, parrot[1], tmp_path / "m.gguf")
    merged = model.merge_and_unload()
    assert gguf.write(merged, parrot[1], tmp_path / "m.gguf").num_tensors == 12


def test_weights_of_another_type_or_value_are_named(parrot, tmp_path):
    model, tokenizer = changed(parrot)
    with pytest.raises(ModelError, match="bfloat16"):
        gguf.write(model.to(torch.bfloat16), tokenizer, tmp_path / "m.gguf")
    model = model.float()
    for value in (float("nan"), float("inf"), 1e6):
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 5] = value
        with pytest.raises(ModelError, match="ffn_up"):
            gguf.write(model, tokenizer, tmp_path / "m.gguf", "F16")
    assert files(tmp_path) == []


def test_odd_tensors_are_named(parrot, tmp_path):
    model, tokenizer = changed(parrot)
    up = model.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight[:90].clone())
    with pytest.raises(ModelError, match=r"up_proj.weight must be \[96, 64\].*got \[90, 64\]"):
        gguf.write(model, tokenizer, tmp_path / "m.gguf")
    model, _ = changed(parrot)
    model.model.layers[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"no tensor for model\.layers\.0\.extra"):
        gguf.write(model, tokenizer, tmp_path / "m.gguf")
    model, _ = changed(parrot)
    del model.model.layers[0].mlp.up_proj
    with pytest.raises(ModelError, match=r"lacks model\.layers\.0\.mlp\.up_proj"):
        gguf.write(model, tokenizer, tmp_path / "m.gguf")


def test_a_head_that_is_only_called_tied_is_named(parrot, tmp_path):
    model, tokenizer = changed(parrot)
    model.config.tie_word_embeddings = True
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        gguf.write(model, tokenizer, tmp_path / "m.gguf")


def test_no_tokenizer_is_named(parrot, tmp_path):
    with pytest.raises(ModelError, match="none was given"):
        gguf.write(parrot[0], None, tmp_path / "m.gguf")
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match="no tokenizer can be loaded"):
            gguf.write(parrot[0], folder, tmp_path / "m.gguf")
    assert files(tmp_path) == []


def test_another_packing_is_refused(parrot, tmp_path):
    with pytest.raises(ValueError, match="F16, Q8_0"):
        gguf.write(*parrot, tmp_path / "m.gguf", "Q4_0")
