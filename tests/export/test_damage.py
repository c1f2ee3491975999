"""What `predict` and `export` do with files that were damaged, swapped or left half-done."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perennial.cli import exporting
from perennial.cli.predicting import predict
from perennial.core.config import parse
from perennial.core.errors import ConfigError, DataError, ModelError, RunError
from perennial.export import artefact, merge
from perennial.export.model_card import causal_card
from perennial.privacy import signing
from perennial.server import releases
from perennial.server.releases import Signer

pytestmark = pytest.mark.integration  # whole exports, and processes that are killed

NAMES = ("a", "b\tc", "é")


@pytest.fixture(scope="module")
def words(bert_folder):
    return bert_folder / "tokenizer.json"


@pytest.fixture
def fill(words):
    """(folder) -> a whole artefact of three labels whose scores are those of a constant graph."""

    def filled(folder):
        mask = helper.make_node("ReduceSum", ["attention_mask", "axes"], ["length"], keepdims=1)
        cast = helper.make_node("Cast", ["length"], ["real"], to=TensorProto.FLOAT)
        ids = helper.make_node("ReduceMax", ["input_ids", "axes"], ["top"], keepdims=1)
        used = helper.make_node("Cast", ["top"], ["used"], to=TensorProto.FLOAT)
        zero = helper.make_node("Mul", ["used", "nought"], ["unused"])
        rest = helper.make_node("Add", ["real", "unused"], ["both"])
        times = helper.make_node("Mul", ["both", "weight"], ["logits"])
        axes = ["batch", "tokens"]
        graph = helper.make_graph(
            [mask, cast, ids, used, zero, rest, times],
            "g",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, axes)
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [
                numpy_helper.from_array(np.array([1], np.int64), "axes"),
                numpy_helper.from_array(np.zeros(1, np.float32), "nought"),
                numpy_helper.from_array(np.array([[0.1, 0.2, 0.3]], np.float32), "weight"),
            ],
        )
        opsets = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10),
                  folder / "model.onnx")  # fmt: skip
        shutil.copyfile(words, folder / "tokenizer.json")
        (folder / "labels.json").write_text(json.dumps(NAMES))
        return {"profile": "p", "model": "model.onnx", "threshold": 0.9, "max_length": 8}

    return filled


@pytest.fixture
def made(tmp_path, fill):
    return artefact.place(tmp_path / "one" / "p", fill, None).folder


def asked(folder, **more):
    given = {"top": 1, "jsonl": False, "threads": 1, "as_json": True, **more}
    return predict(str(folder), None, "p", folder, folder, **given)


def recard(folder, **more):
    card = json.loads((folder / artefact.CARD).read_text())
    (folder / artefact.CARD).write_text(json.dumps({**card, **more}))


@pytest.mark.parametrize(
    "more",
    [
        {"files": []},
        {"files": {"model.onnx": "x"}},
        {"files": {}},
        {"files": {"../../x": {"sha256": "0"}}},
        {"model": "../x"},
        {"model": None},
        {"threshold": "x"},
    ],
)
def test_a_card_that_does_not_name_and_hash_all_files_is_refused(made, more):
    recard(made, **more)
    with pytest.raises(DataError, match="must be of schema 1"):
        artefact.read(made)


def test_a_card_nested_too_deeply_is_damaged(made):
    (made / artefact.CARD).write_text("[" * 100_000)
    with pytest.raises(DataError, match="is damaged"):
        artefact.read(made)


@pytest.mark.parametrize("text", ["{", '["a"]', '{"a": 1, "b": 2, "c": 3}', "[1, 2, 3]"])
def test_labels_must_be_those_that_the_model_scores(made, text):
    (made / "labels.json").write_text(text)
    card = json.loads((made / artefact.CARD).read_text())
    card["files"]["labels.json"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    recard(made, files=card["files"])
    with pytest.raises(DataError, match=r"labels\.json"):
        asked(made)


def test_an_export_of_a_home_must_bear_its_mark(tmp_path, fill):
    key = signing.key(tmp_path / releases.KEY)
    signer = Signer(signing.public(key), partial(signing.sign, key))
    folder = artefact.place(tmp_path / "exports" / "0001" / "p", fill, signer).folder
    (folder / artefact.MARK).unlink()
    with pytest.raises(DataError, match=r"export\.sig cannot be read"):
        asked(folder)


def released(home, run):
    key = signing.key(home / releases.KEY)
    signer = Signer(signing.public(key), partial(signing.sign, key))
    files = {str(p.relative_to(run)): p for p in run.rglob("*") if p.is_file()}
    return releases.cut(home, files, {"accuracy": {}, "domains": []}, signer), signer


def test_the_export_of_another_release_is_not_taken(tmp_path, fill, run_folder):
    _, signer = released(tmp_path, run_folder())
    artefact.place(
        tmp_path / "exports" / "0001" / "p", lambda f: {**fill(f), "digest": "0" * 64}, signer
    )
    given = {"top": 1, "jsonl": False, "threads": 1, "as_json": True}
    with pytest.raises(DataError, match="was not made of this release"):
        predict("1", None, "p", tmp_path, tmp_path, **given)
    with pytest.raises(DataError, match="Take one with --profile: p"):
        predict("1", None, "fast", tmp_path, tmp_path, **given)


def test_a_release_that_was_changed_is_not_exported(tmp_path, run_folder):
    release, _ = released(tmp_path, run_folder())
    labels = release.folder / "adapter" / "labels.json"
    labels.write_text(labels.read_text().replace("label0", "label9"))
    with pytest.raises(DataError, match=r"labels\.json is not the file that was released"):
        exporting.export("1", "", tmp_path, tmp_path, [], merged=False, as_json=True)
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("text", ["[]", '{"run": "x"}', "[" * 100_000])
def test_a_damaged_report_is_named(tmp_path, run_folder, text):
    folder = tmp_path / "run"
    shutil.copytree(run_folder(), folder)
    (folder / "report.json").write_text(text)
    with pytest.raises(DataError, match=r"report\.json (must be the report )?of a run"):
        merge.origin(folder, "", {})


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", json.dumps(["label0"] * 6)])
def test_damaged_labels_are_named(tmp_path, run_folder, text):
    folder = tmp_path / "run"
    shutil.copytree(run_folder(), folder)
    (folder / "adapter" / "labels.json").write_text(text)
    source = merge.origin(folder, (folder / "config.toml").read_text(), {})
    with pytest.raises(ModelError, match=r"labels\.json must"):
        merge.restored(source)


def test_a_head_whose_scores_are_no_numbers_is_refused(tmp_path, run_folder):
    folder = tmp_path / "run"
    shutil.copytree(run_folder(width=40), folder)
    head = np.load(folder / "adapter" / "answer.npy")
    head[40:60] = np.nan
    np.save(folder / "adapter" / "answer.npy", head)
    with pytest.raises(RunError, match="scores must be numbers"):
        exporting.export(str(folder), "fp32", tmp_path, tmp_path, [], merged=False, as_json=True)
    assert not (folder / "exports").exists()


def test_the_head_that_answered_in_the_run_may_not_be_missing(tmp_path, run_folder):
    folder = tmp_path / "run"
    shutil.copytree(run_folder(width=40), folder)
    (folder / "adapter" / "answer.npy").unlink()
    text = (folder / "config.toml").read_text()
    told = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**told, "answered_by": ["model", None]}))
    assert merge.restored(merge.origin(folder, text, {})).answer is None
    (folder / "report.json").write_text(json.dumps({**told, "answered_by": ["head", None]}))
    with pytest.raises(ModelError, match=r"answer\.npy is missing"):
        merge.restored(merge.origin(folder, text, {}))


@pytest.mark.parametrize(
    ("licence", "line"),
    [("MIT", "mit"), ("Apache-2.0", "apache-2.0"), ("Ours: # v2", '"ours: # v2"')],
)
def test_a_licence_is_one_value_of_the_card(run_folder, licence, line):
    folder = run_folder()
    source = merge.origin(folder, (folder / "config.toml").read_text(), {})
    text = causal_card(source, chosen="onnx-cache", base="b", licence=licence, gap=0.0, files={})
    assert f"\nlicense: {line}\n" in text
    with pytest.raises(ConfigError, match=r"export\.licence"):
        parse('[data]\nname = "sample"\n[export]\nlicence = "a\\nb: c"\n')


def _slow(folder):
    (folder / "a").write_text("slow")
    (folder.parent.parent / "begun").touch()
    time.sleep(1.0)
    (folder / "b").write_text("slow")
    return _SAID


_SAID = {"kind": "causal", "profile": "p", "model": "a", "threshold": None, "max_length": 8}


def _quick(folder):
    (folder / "a").write_text("quick")
    return _SAID


def test_two_exports_at_once_are_both_whole(tmp_path):
    target = tmp_path / "x" / "p"
    context = multiprocessing.get_context("fork")
    other = context.Process(target=artefact.place, args=(target, _slow, None))
    other.start()
    end = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (artefact.place(target, _quick, None).folder / "a").read_text() == "quick"
    other.join()
    assert other.exitcode == 0


def test_what_a_killed_export_had_moved_aside_comes_back(tmp_path):
    target = tmp_path / "x" / "p"
    artefact.place(target, _quick, None)
    os.rename(target, target.with_name(".p.old-0000"))  # killed between its two renames

    def full(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artefact.place(target, full, None)
    assert (artefact.read(target).folder / "a").read_text() == "quick"


def started(folder, *more, **options):
    command = [sys.executable, "-m", "perennial", "predict", str(folder), *more]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, **{**pipes, **options})


def test_an_interrupt_ends_it_while_the_pipe_is_silent(made):
    process = started(made)
    process.stdin.write(b"w1\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"1\t")
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(20) != 0
    finally:
        process.kill()
    assert b"Traceback" not in process.stderr.read()
    process.communicate()


def test_a_reader_that_leaves_ends_it_while_the_pipe_is_silent(made):
    process = started(made)
    for _ in range(2):
        process.stdin.write(b"w1\n")
        process.stdin.flush()
        if not process.stdout.closed:
            assert process.stdout.readline().startswith(b"1\t")
            process.stdout.close()
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()


def test_answers_are_utf8_in_columns_on_any_terminal(made):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    out, err = started(made, "--top", "9", env=env).communicate(b"w1\n")
    columns = out.decode().rstrip("\n").split("\t")
    assert [columns[i] for i in (1, 3, 5)] == ["é", "b c", "a"], err
    assert len(columns) == 8


def test_closed_standard_streams_are_named(made):
    for closed, words in ((0, b"no standard input"), (1, b"standard output")):
        process = started(made, preexec_fn=partial(os.close, closed))
        _, err = process.communicate()
        assert words in err, err
        assert b"Traceback" not in err
