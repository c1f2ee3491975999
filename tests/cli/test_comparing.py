from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from perennial.cli.comparing import locate, print_comparison, read, show
from perennial.core.errors import DataError, RunError
from perennial.server.report import write_report


def events(scores, names=("bank", "[bold]travel")):
    log = [{"event": "run_started", "run": "r", "config": {"round": {"rounds": 1}},
            "domains": [{"name": name, "labels": []} for name in names]}]  # fmt: skip
    for d, row in enumerate(scores):
        log.append({"event": "evaluated", "domain": d, "round": 1, "totals": {},
                    "accuracy": dict(zip(names, row, strict=False))})  # fmt: skip
    log.append({"event": "run_finished", "adapter_hash": "x", "seconds": 6.0})
    return [{**event, "time": 100.0 + i} for i, event in enumerate(log)]


def make_run(home, name, scores, *, reported=True):
    folder = home / name
    folder.mkdir()
    (folder / "config.toml").write_text("")
    text = "".join(json.dumps(event) + "\n" for event in events(scores))
    (folder / "events.jsonl").write_text(text)
    if reported:
        write_report(folder)
    return folder


@pytest.fixture
def home(tmp_path):
    make_run(tmp_path, "naive-20260101-000000", [[0.9], [0.2, 0.8]])
    make_run(tmp_path, "kept-20260101-000000", [[0.9], [0.1, 0.1]])
    make_run(tmp_path, "kept-20260102-000000", [[0.9], [0.9, 0.8]], reported=False)
    make_run(tmp_path, "kept-more-20260103-000000", [[0.3], [0.3, 0.3]])
    return tmp_path


def test_tables_and_a_page(home, capsys):
    show(["kept", "naive-20260101-000000"], home, page=home / "new" / "out.html")
    out = capsys.readouterr().out
    assert "after 2 domains" in out
    assert "kept answers 85.0" in out.replace("\n", " ")
    assert "20.0 (70.0)" in out
    assert "[bold]travel" in out
    page = (home / "new" / "out.html").read_text(encoding="utf-8")
    assert "Average accuracy after each domain" in page
    assert f"page: {home / 'new' / 'out.html'}" in out


def test_json(home, capsys):
    show(["kept", "naive", "kept-20260101-000000"], home, as_json=True)
    found = json.loads(capsys.readouterr().out)
    names = ["kept-20260102-000000", "naive-20260101-000000", "kept-20260101-000000"]
    assert [run["run"] for run in found["runs"]] == names
    assert [run["final_accuracy"] for run in found["runs"]] == pytest.approx([0.85, 0.5, 0.1])


def test_a_name_means_its_newest_run_and_no_other_name(home):
    assert locate("kept", home).name == "kept-20260102-000000"
    assert locate("kept-more", home).name == "kept-more-20260103-000000"
    assert locate(str(home / "naive-20260101-000000"), home / "elsewhere").parent == home
    with pytest.raises(DataError, match="'kep' must be a run folder"):
        locate("kep", home)


def test_a_report_is_read_and_rebuilt_where_it_is_missing(home):
    folder = home / "kept-20260102-000000"
    assert not (folder / "report.json").exists()
    assert read(folder)["final_accuracy"] == pytest.approx(0.85)
    assert not (folder / "report.json").exists()
    write_report(folder)
    known = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**known, "version": "told"}))
    assert read(folder)["version"] == "told"
    (folder / "report.json").write_text("{torn")
    assert read(folder)["final_accuracy"] == pytest.approx(0.85)


def test_faults_are_named(home):
    with pytest.raises(DataError, match="at least two runs; got 1"):
        show(["kept"], home)
    with pytest.raises(DataError, match=r"'nothing' must be a run folder.*There are: .*naive"):
        show(["kept", "nothing"], home)
    (home / "empty").mkdir()
    (home / "empty" / "config.toml").write_text("")
    with pytest.raises(DataError, match=r"must hold events\.jsonl; the run never began"):
        show(["kept", "empty"], home)
    (home / "empty" / "events.jsonl").write_text("broken\n" + json.dumps(events([])[0]) + "\n")
    with pytest.raises(RunError, match="line 1: must be a JSON object"):
        show(["kept", "empty"], home)
    (home / "file").write_text("")
    with pytest.raises(DataError, match=r"--page .* must be a file that can be written"):
        show(["kept", "naive"], home, page=home / "file" / "out.html")


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_tables_fit_their_terminal(home, capsys, width):
    runs = ["kept", "naive", "kept-more", "kept-20260101-000000"]
    show(runs, home, as_json=True)
    found = json.loads(capsys.readouterr().out)
    console = Console(file=io.StringIO(), width=width)
    print_comparison(found, console)
    out = console.file.getvalue()
    assert max(map(len, out.splitlines())) <= width
    assert out.count("85.0") >= 1
    assert ("(70.0)" in out) == (width >= 100)
    assert ("2 naive" in out.split("accuracy at the end")[1]) == (width >= 200)
    assert ("worst client" in out) == (width >= 200)
    assert ("learnt" in out) == (width >= 100)
