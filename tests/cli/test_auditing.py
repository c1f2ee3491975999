"""`perennial audit`: what it writes, prints and answers the shell."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from perennial.cli.main import app
from perennial.privacy import guards, steps
from perennial.server.drill_charts import drill_picture, panels, standalone
from perennial.simulations.audit_page import page, verdict

TEXT = """
[run]
name = "signed"
[data]
name = "sample"
[shards]
num_clients = 3
[model]
name = "tiny"
[train]
epochs = 1
batch_size = 16
lr = 5e-3
[round]
weight = "uniform"
"""
PRIVATE = """
[privacy]
name = "dp_sgd"
epsilon = 8.0
delta = 1e-5
noise_multiplier = 2.0
sample_rate = 0.5
"""


def kind(name="gradient", bound=0.3, passed=True):
    return {
        "kind": name,
        "canaries": 400,
        "guesses": 40,
        "right": 29,
        "lower_bound": bound,
        "pass": passed,
    }


def readings(tokens):
    names = {"bare": "no protection", "dp_1": "noise for epsilon 1"}
    return [
        {"key": key, "name": name, "tokens": tokens, "named": 0.75, "example": "<b>read</b>"}
        for key, name in names.items()
    ]


@pytest.fixture
def result():
    members = [
        {"key": key, "name": key, "area": area, "found": 0.25, "members": 80, "curve": []}
        for key, area in (("bare", 0.9), ("dp", 0.6), ("sealed", 0.5))
    ]
    inversion = {
        "records": 3,
        "candidates": 50,
        "frozen": False,
        "example": "<i>said</i>",
        "readings": readings(0.8),
    }
    return {
        "run": "<signed>",
        "when": "today",
        "seconds": 1.0,
        "quick": True,
        "claimed": 1.0,
        "delta": 1e-5,
        "confidence": 0.95,
        "kinds": [kind()],
        "pass": True,
        "drill": {"membership": members, "inversion": inversion},
    }


def test_the_verdict_in_three_cases(result):
    assert "claim stands" in verdict(result)
    failed = {**result, "kinds": [kind(), kind("wrong_label", 2.5, False)], "pass": False}
    assert "does not hold" in verdict(failed)
    assert "2.50" in verdict(failed)
    assert "Nothing is promised" in verdict({**result, "claimed": None})


def test_the_page_escapes_what_others_wrote(result):
    html = page(result)
    assert "&lt;signed&gt;" in html
    assert "&lt;i&gt;said&lt;/i&gt;" in html
    assert "&lt;b&gt;read&lt;/b&gt;" in html
    assert "<signed>" not in html
    assert "passed" in html
    assert "FAILED" in page({**result, "pass": False})


@pytest.mark.parametrize("width", [344.0, 760.0])
def test_the_picture_is_sound_and_stays_in_its_frame(result, width):
    svg = ElementTree.fromstring(drill_picture(result["drill"], width))
    assert float(svg.get("width")) == width
    boxes = list(svg.iter("rect"))
    assert len(boxes) == 3 + 2 + 2
    assert all(float(box.get("x")) + float(box.get("width")) <= width for box in boxes)
    heights = [float(text.get("y")) for text in svg.iter("text")]
    assert max(heights) <= float(svg.get("height"))


def test_a_bar_is_as_long_as_its_share(result):
    svg = ElementTree.fromstring(drill_picture(result["drill"], 760.0))
    first, second, third = [float(box.get("width")) for box in list(svg.iter("rect"))[:3]]
    assert second / first == pytest.approx(0.6 / 0.9, abs=0.01)
    assert third / first == pytest.approx(0.5 / 0.9, abs=0.01)


def test_a_question_that_does_not_apply_is_left_out(result):
    drill = {**result["drill"]}
    assert len(panels(drill)) == 3
    drill["inversion"] = {**drill["inversion"], "readings": readings(None), "frozen": True}
    assert [panel.heading for panel in panels(drill)] == [
        "Was this record used?",
        "Which of the known texts was it?",
    ]
    assert "keeps A still" in panels(drill)[1].below
    assert drill_picture({}, 760.0) == standalone({}, 760.0) == ""


def test_the_picture_alone_is_a_file(result):
    root = ElementTree.fromstring(standalone(result["drill"], 760.0))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].tag == "{http://www.w3.org/2000/svg}style"


def test_a_faulty_config_leaves_no_folder(tmp_path):
    file = tmp_path / "faulty.toml"
    file.write_text(TEXT + '[evaluate]\nevery = "x"\n[simulation]\nx = 1\n')
    home = tmp_path / "runs"
    done = CliRunner().invoke(app, ["audit", str(file), "--set", f"run.folder={home}"])
    assert done.exit_code != 0
    assert not home.exists()


def invoke(tmp_path, text, *options):
    file = tmp_path / "config.toml"
    file.write_text(text)
    home = ["--set", f"run.folder={tmp_path / 'runs'}"]
    return CliRunner().invoke(app, ["audit", str(file), "--quick", *home, *options])


@pytest.mark.integration
def test_a_private_config_passes_and_leaves_its_result(tmp_path):
    done = invoke(tmp_path, TEXT + PRIVATE, "--json", "--seed", "3")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("audit-signed-")
    assert json.loads((folder / "audit.json").read_text()) == result
    assert (folder / "audit.html").read_text() == page(result)
    assert "seed = 3" in (folder / "audited.toml").read_text()
    assert (folder / "drill.svg").exists()
    assert result["claimed"] == 1.0
    assert result["pass"]
    assert [one["kind"] for one in result["kinds"]] == ["gradient", "wrong_label"]
    assert "audit: one training with gradient canaries" in done.stderr


@pytest.mark.integration
def test_a_broken_promise_fails(tmp_path, monkeypatch):
    real = steps.with_noise
    monkeypatch.setattr(steps, "with_noise", lambda t, n, std: real(t, n, std * 1e-9))
    monkeypatch.setattr(guards.Guards, "released", lambda *_: None)
    done = invoke(tmp_path, TEXT + PRIVATE)
    assert done.exit_code == 1
    assert "FAIL" in done.stdout
    assert "does not hold" in done.stdout


@pytest.mark.integration
def test_no_promise_is_no_failure(tmp_path):
    done = invoke(tmp_path, TEXT)
    assert done.exit_code == 0, done.output
    assert "Nothing is promised" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "audit.json").read_text())["claimed"] is None


def test_a_folder_that_cannot_be_written(tmp_path):
    from perennial.cli import folders
    from perennial.core import check
    from perennial.core.errors import DataError

    (tmp_path / "runs").write_text("a file")
    config = check.read(TEXT.replace("[run]", f'[run]\nfolder = "{tmp_path / "runs"}"'))
    with pytest.raises(DataError, match="folder to write to"):
        folders.fresh(config, "audit-")
