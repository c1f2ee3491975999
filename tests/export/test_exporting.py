"""A run's export from end to end: its gate, its files, and what they answer without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from perennial.cli.exporting import GATED_OUT, export
from perennial.cli.overrides import override
from perennial.cli.predicting import predict
from perennial.cli.updating import exported as checks_of
from perennial.core.errors import ConfigError, DataError
from perennial.export import artefact, merge
from perennial.export.exporting import held_out
from perennial.export.predictor import open_artefact

pytestmark = pytest.mark.integration

LOOSE = ["export.min_agreement=0.5", "export.max_loss=50.0", "export.max_domain_loss=60.0"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_folder):
    """A run's folder with its export, and the artefact."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    shutil.copytree(run_folder(width=40), folder)
    settings = [*LOOSE, 'export.licence="MIT"']
    code = start(folder, settings=settings, merged=True)
    assert code == 0
    return folder, artefact.read(folder / "exports" / "balanced")


def start(folder, profile="balanced", settings=(), merged=False):
    home, runs = folder.parent / "none", folder.parent
    return export(str(folder), profile, home, runs, settings, merged=merged, as_json=True)


def test_the_files_are_all_there_and_bear_their_hashes(exported):
    _, made = exported
    assert {"model.onnx", "tokenizer.json", "labels.json", "README.md"} <= set(made.card["files"])
    assert "adapter/adapter_model.safetensors" in made.card["files"]
    assert "merged/model.safetensors" in made.card["files"]
    assert made.card["head"] == "analytic"
    assert made.card["gaps"]["graph"] <= 1e-3
    card = (made.folder / "README.md").read_text()
    for words in (
        "license: mit",
        "domain0",
        "No promise of privacy",
        "training records",
        "SHA-256",
    ):
        assert words in card
    assert made.card["files"]["model.onnx"]["sha256"] in card
    assert str(made.folder) not in card
    named = json.loads((made.folder / "adapter" / "adapter_config.json").read_bytes())
    assert "/" not in named["base_model_name_or_path"]
    assert "base_model: bert" in card  # and not where it lies on this machine


def test_the_merged_model_loads_without_us(exported):
    import transformers

    folder, made = exported
    found = transformers.AutoModel.from_pretrained(made.folder / "merged")
    source = merge.origin(folder, (folder / "config.toml").read_text(), {})
    mine = merge.merged(merge.restored(source).model.module.encoder).state_dict()
    theirs = found.state_dict()
    assert all((theirs[name] == value).all() for name, value in mine.items() if name in theirs)
    assert len(mine.keys() & theirs.keys()) > 20


def test_the_artefact_answers_as_its_gate_measured(exported):
    folder, made = exported
    source = merge.origin(folder, (folder / "config.toml").read_text(), {})
    test = held_out(merge.restored(source)).test
    predictor = open_artefact(made)
    found = [p for text in test.texts for p in predictor.answer([text])]
    right = np.mean([p.labels[0] == t for p, t in zip(found, test.targets, strict=True)])
    assert right == pytest.approx(made.card["figures"]["accuracy"], abs=0.02)
    assert all(abs(p.out_of_scope + p.scores[0] - 1.0) < 1e-5 for p in found)
    (whole,) = predictor.answer([test.texts[0]], top=6)
    assert sum(whole.scores) == pytest.approx(1.0, abs=1e-5)
    assert list(whole.scores) == sorted(whole.scores, reverse=True)
    (long,) = predictor.answer([" ".join(["w7"] * 400)])
    assert long.cut
    assert not whole.cut


def test_predict_loads_no_torch_and_names_each_bad_line(exported):
    _, made = exported
    code = (
        "import sys\n"
        "from perennial.cli import main\n"
        "try: main.run()\n"
        "except SystemExit as error: status = error.code\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, "predict", str(made.folder), "--json"],
        input=b"w1 w2\n\nw\xff\nw3 w4",
        capture_output=True,
    )
    told = [json.loads(line) for line in out.stdout.splitlines()]
    assert [("error" in line, line["line"]) for line in told] == [
        (False, 1),
        (True, 2),
        (True, 3),
        (False, 4),
    ]
    assert out.returncode == 1, out.stderr


def test_a_changed_file_is_not_used(exported, tmp_path):
    _, made = exported
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    (copy / "labels.json").write_text(json.dumps(["x"] * 6))
    with pytest.raises(DataError, match=r"labels\.json is not the file that was exported"):
        predict(
            str(copy), None, "", tmp_path, tmp_path, top=1, jsonl=False, threads=1, as_json=True
        )
    with pytest.raises(DataError, match="perennial export"):
        artefact.read(tmp_path / "nothing")


def test_a_failing_gate_explains_and_leaves_what_was_there(exported, capsys):
    folder, made = exported
    capsys.readouterr()
    assert start(folder, settings=[*LOOSE, "export.max_size=0.01"]) == GATED_OUT
    told = json.loads(capsys.readouterr().out)
    assert not told["exported"]
    assert [c["what"] for c in told["checks"] if not c["holds"]] == ["size"]
    assert artefact.read(made.folder).card == made.card
    assert not [path for path in made.folder.parent.iterdir() if path.name.startswith(".b")]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    def good(folder):
        (folder / "a").write_text("a")
        return {"kind": "causal", "profile": "p", "model": "a", "threshold": 1.0, "max_length": 8}

    def bad(folder):
        (folder / "a").write_text("b")
        raise OSError("disk full")

    artefact.place(tmp_path / "x" / "p", good, None)
    with pytest.raises(OSError, match="disk full"):
        artefact.place(tmp_path / "x" / "p", bad, None)
    assert (artefact.read(tmp_path / "x" / "p").folder / "a").read_text() == "a"
    assert [path.name for path in (tmp_path / "x").glob("[!.]*")] == ["p"]


def test_an_update_is_held_against_what_the_model_becomes(exported):
    folder, _ = exported
    text = (folder / "config.toml").read_text()
    loose = override(text, LOOSE)
    assert all(check.holds for check in checks_of(folder, loose))
    tight = checks_of(folder, override(loose, ["export.max_size=0.01"]))
    assert [check.what for check in tight if not check.holds] == ["export: size"]


def test_unknown_profiles_and_missing_test_records_are_refused(exported, tmp_path):
    folder, _ = exported
    with pytest.raises(ConfigError, match="no export plug-in 'tiny'"):
        start(folder, profile="tiny", settings=LOOSE)
    with pytest.raises(ConfigError, match="no export profile 'balancd'"):
        start(folder, profile="", settings=['export.profile="balancd"'])
    other = tmp_path / "other.csv"
    other.write_text("text,label,domain\nw1 w2,label0,domain9\n")
    with pytest.raises(DataError):
        start(folder, settings=[f'data.test="{other}"'])
