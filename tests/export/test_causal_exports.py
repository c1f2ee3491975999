"""A causal run from its adapter to files that llama.cpp and ONNX Runtime answer from."""

import json

import parrots
import pytest
import tomli_w
import torch

from perennial.cli.exporting import export
from perennial.cli.predicting import predict
from perennial.core import check
from perennial.core.errors import ConfigError, DataError
from perennial.export import artefact
from perennial.export.generate import Generator
from perennial.export.merge import causal, origin, restored

PROMPT = parrots.TEXTS[0][:6]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder over a tiny Llama: config, report, and an adapter that changes its words."""
    folder = tmp_path_factory.mktemp("runs") / "words"
    base = folder.parent / "base"
    tokenizer = parrots.byte_level()
    parrots.llama(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    pairs = folder.parent / "pairs.jsonl"
    rows = [{"prompt": t[:6], "completion": t[6:], "domain": "d"} for t in parrots.TEXTS]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    tree = {
        "run": {"name": "words"},
        "data": {
            "name": "jsonl",
            "train": str(pairs),
            "prompt": "prompt",
            "completion": "completion",
        },
        "shards": {"split": "iid", "num_clients": 1},
        "model": {"name": "causal_lm", "base": str(base), "rank": 4},
        "continual": {"name": "none"},
        "export": {"licence": "MIT"},
    }
    folder.mkdir()
    text = tomli_w.dumps(tree)
    (folder / "config.toml").write_text(text)
    model = check.build(check.read(text), "model")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for name, tensor in model.parameters().items():
            tensor.add_(0.05 * torch.randn_like(tensor)) if "lora" in name else None
    model.save(folder / "adapter")
    report = {
        "run": "words",
        "version": "0",
        "privacy": None,
        "num_clients": 1,
        "clients": [{"records": 9, "rounds": 1}],
        "model": {"identity": model.identity()},
        "domains": [],
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def start(run, profile):
    return export(str(run), profile, run / "none", run.parent, [], merged=False, as_json=True)


def merged(run):
    return causal(restored(origin(run, (run / "config.toml").read_text(), {})))


def test_what_is_packed_is_written_with_its_card_and_hashes(run, capsys):
    assert start(run, "") == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["gaps"]["gguf-q8_0"] < 0.02
    made = artefact.read(run / "exports" / "gguf-q8_0")
    assert made.model.read_bytes()[:4] == b"GGUF"
    card = (made.folder / "README.md").read_text()
    for words in ("license: mit", "text-generation", "llama.cpp", "No promise of privacy"):
        assert words in card
    assert str(run.parent) not in card
    with pytest.raises(DataError, match="answers no labels"):
        predict(str(made.folder), None, "", run, run, top=1, jsonl=False, threads=1, as_json=False)


@pytest.mark.integration
def test_the_graph_answers_as_the_merged_model_does(run):
    assert start(run, "onnx-cache") == 0
    made = artefact.read(run / "exports" / "onnx-cache")
    model, tokenizer = merged(run)
    generator = Generator(made.folder / "graph")
    ids = tokenizer(PROMPT)["input_ids"]
    wanted = [id_ for id_ in parrots.greedy(model, ids, 8) if id_ != tokenizer.eos_token_id]
    assert list(generator.greedy(ids, 8)) == wanted  # an end token ends it, left out
    assert wanted
    damaged = made.folder / "graph" / "tokenizer.json"
    damaged.write_text("{}")
    with pytest.raises(DataError, match="not the file that was exported"):
        artefact.read(made.folder)
    assert start(run, "onnx-cache") == 0  # in the place of the damaged one
    artefact.read(made.folder)


def test_formats_and_models_that_do_not_fit_are_named(run):
    with pytest.raises(ConfigError, match="no format of a causal model"):
        start(run, "balanced")
    assert not (run / "exports" / "balanced").exists()
