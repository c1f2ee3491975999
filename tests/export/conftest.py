"""A small encoder with a trained-like adapter, as a run leaves it, and its graphs."""

import csv
import json

import numpy as np
import pytest
import tomli_w

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(2196))]
LABELS = tuple(f"label{i}" for i in range(6))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A random two-layer BERT and a word tokenizer, as a Hugging Face folder."""
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    core = tokenizers.Tokenizer(words)
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def texts(seed, count):
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{i}" for i in rng.integers(0, 2100, rng.integers(2, 12))) for _ in range(count)
    ]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, bert_folder):
    """(analytic options or None) -> the folder of a run: config, adapter, report, data.

    The labels of its records are the model's own answers, so that what is lost can be seen.
    """
    from perennial.core import check
    from perennial.core.values import Records

    made = {}

    def folder_of(**analytic):
        key = json.dumps(analytic, sort_keys=True)
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("run")
        method = {"name": "analytic_head", **analytic} if analytic else {"name": "none"}
        model = {"base": str(bert_folder), "layers": 1, "rank": 4, "max_length": 32}
        tree = {
            "data": {
                "name": "csv",
                "train": str(folder / "train.csv"),
                "validation": str(folder / "validation.csv"),
                "test": str(folder / "test.csv"),
            },
            "model": {"name": "encoder_classifier", **model},
            "continual": method,
            "export": {"max_cpu_1": 1e3, "max_cpu_32": 1e3, "max_size": 0.9},
        }
        (folder / "config.toml").write_text(tomli_w.dumps(tree))
        config = check.read((folder / "config.toml").read_text())
        classifier = check.build(config, "model")
        classifier.fit_labels(LABELS)
        rng = np.random.default_rng(5)
        classifier.load(0.3 * rng.standard_normal(classifier.manifest.size).astype(np.float32))
        classifier.forget_cut()
        classifier.save(folder / "adapter")
        answer = None
        if analytic:
            head = solved(classifier, analytic)
            np.save(folder / "adapter" / "answer.npy", head)
            answer = check.build(config, "continual").answer(head, classifier, LABELS)
        for number, (name, count) in enumerate({"train": 60, "validation": 64, "test": 96}.items()):
            found = texts(number, count)
            blank = ("",) * count
            asked = Records(
                tuple(map(str, range(count))), tuple(found), (LABELS[0],) * count, blank, blank
            )
            logits = (
                answer.logits(asked) if answer else classifier.logits(classifier.encode(asked), 32)
            )
            best = logits.argmax(1)
            if name == "train":
                best = np.arange(count) % len(LABELS)
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label", "domain"])
                for text, label in zip(found, best, strict=True):
                    writer.writerow([text, LABELS[label], f"domain{label % 2}"])
        report = {
            "run": "small",
            "version": "0",
            "model": {"identity": classifier.identity()},
            "num_clients": 2,
            "clients": [{"rounds": 1, "records": 30.0}, {"rounds": 1, "records": 30.0}],
            "privacy": None,
        }
        (folder / "report.json").write_text(json.dumps(report))
        made[key] = folder
        return folder

    return folder_of


def solved(model, options):
    """A head in closed form with random weights: what it answers is all that matters here."""
    from perennial.continual.analytic_answer import Head, Recipe
    from perennial.continual.heads import Linear

    rng = np.random.default_rng(9)
    each = []
    for seed, adapted in ((1, False), (2, True)):
        recipe = Recipe(2, options.get("width", 0), seed, adapted)
        size = recipe.num_features(32)
        weight = (rng.standard_normal((len(LABELS), size)) / (16 * np.sqrt(size))).astype(
            np.float32
        )
        bias = np.zeros(len(LABELS), np.float32)
        each.append(Head(recipe, Linear(weight, bias), 3.0, options.get("blend", 0.0)).vector())
    if options.get("encoder") == "both":
        digits = np.array(divmod(each[0].size, 2**20), np.float32)
        return np.concatenate([digits, *each])
    return each[1 if options.get("encoder") == "refresh" else 0]


@pytest.fixture(scope="session")
def origin_of(run_folder):
    """(analytic options or None) -> what is exported."""
    from perennial.export import merge

    def made(**analytic):
        folder = run_folder(**analytic)
        return merge.origin(folder, (folder / "config.toml").read_text(), {"run": folder.name})

    return made


@pytest.fixture(scope="session")
def graph(tmp_path_factory, origin_of):
    """The float32 graph of the linear classifier, and the ids of its test texts."""
    from perennial.export import merge
    from perennial.export.classifier import whole
    from perennial.export.exporting import held_out, tokens_of
    from perennial.export.graph import write_graph

    found = merge.restored(origin_of())
    folder = tmp_path_factory.mktemp("graph")
    model = whole(found.model, found.answer)
    write_graph(model, folder / "float32.onnx")
    tokens = tokens_of(model, folder / "tokenizer.json", held_out(found).test)
    return folder / "float32.onnx", tokens
