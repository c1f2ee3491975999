"""`perennial drift`: what it prints, writes, starts and answers the shell."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from perennial.cli.drifting import ALARM, drift, to_start
from perennial.core.errors import ConfigError, DataError
from perennial.server import releases
from perennial.simulations.drift import read_new
from perennial.simulations.drift_page import page, verdict

OLD, NEW = ("o0", "o1", "o2"), ("n0", "n1", "n2")
TEXT = """
[run]
name = "watched"
folder = "{folder}/runs"
[data]
name = "csv"
train = "{folder}/train.csv"
validation = "{folder}/validation.csv"
test = "{folder}/validation.csv"
[domains]
order = {order}
[shards]
num_clients = 2
[model]
name = "tiny"
[train]
epochs = 1
[round]
rounds = 1
[continual]
name = "drift"
window = 30
"""


def lines(labels, domain, count, seed):
    """Sentences of three of a label's own five words; label follows label, as in many files."""
    rng = np.random.default_rng(seed)
    found = []
    for label in labels:
        for _ in range(count):
            words = rng.choice([f"{label}{i}" for i in range(5)], 3)
            found.append((" ".join(words), label, domain))
    return found


def write(path, rows, head=("text", "label", "domain")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def text(tmp_path):
    """A config of an old and a new domain."""
    write(tmp_path / "train.csv", lines(OLD, "old", 40, 0) + lines(NEW, "new", 20, 1))
    write(tmp_path / "validation.csv", lines(OLD, "old", 10, 2) + lines(NEW, "new", 10, 3))
    return TEXT.format(folder=tmp_path, order='["old", "new"]')


@pytest.fixture
def old_only(text, tmp_path):
    return TEXT.format(folder=tmp_path, order='["old"]')


def found(text, capsys, new=None, **options):
    """Whether there is drift, and what `--json` prints."""
    given = {"window": 30, "json": True, "page": None, "update": None, **options}
    answer = drift(text, new, **given)
    return answer, json.loads(capsys.readouterr().out)


def test_a_new_domain_is_drift(text, capsys):
    answer, result = found(text, capsys)
    assert answer is True
    assert result["drift"] is True
    assert result["alarms"] == len(result["windows"]) == 2
    assert result["reference"] == {"records": 120, "of": 120, "domains": ["old"]}
    assert result["new"]["name"] == "new"
    assert verdict(result).startswith("Drift: 2 of 2 windows of new look unlike old")


def test_more_of_the_same_is_none_though_label_follows_label(old_only, tmp_path, capsys):
    path = tmp_path / "requests.csv"
    write(path, lines(OLD, "", 40, 5))
    answer, result = found(old_only, capsys, path)
    assert answer is False
    assert result["drift"] is False
    assert verdict(result).startswith("No drift:")
    assert sum(window["records"] for window in result["windows"]) == 120


@pytest.mark.parametrize("chained", [False, True])
def test_it_judges_as_the_runs_own_method_does(text, chained, capsys):
    given = 'name = "drift"\nwindow = 30\n'
    assert given in text
    options = 'name = "drift", window = 30, false_alarms = 0.4'
    own = given + "false_alarms = 0.4\n"
    text = text.replace(given, f'name = "chain"\nmethods = [{{{options}}}]\n' if chained else own)
    drift(text, None, window=None, json=True, page=None, update=None)
    told = json.loads(capsys.readouterr().out)
    assert told["false_alarms"] == 0.4
    drift(text, None, window=20, json=True, page=None, update=None)
    assert len(json.loads(capsys.readouterr().out)["windows"]) > len(told["windows"])


def test_in_order_a_window_is_a_piece_of_the_file(old_only, tmp_path, capsys):
    path = tmp_path / "requests.csv"
    write(path, lines(OLD, "", 20, 5) + lines(NEW, "", 20, 6))
    result = found(old_only, capsys, path, in_order=True)[1]
    assert [window["alarm"] for window in result["windows"]][2:] == [True, True]
    assert not result["windows"][0]["alarm"]


def test_new_records_need_no_label(old_only, tmp_path, capsys):
    path = tmp_path / "requests.csv"
    write(path, [(text,) for text, *_ in lines(NEW, "", 20, 6)], ("text",))
    assert found(old_only, capsys, path)[0] is True
    rows = [json.dumps({"text": text}) for text, *_ in lines(NEW, "", 20, 6)]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(rows))
    assert found(old_only, capsys, path)[0] is True


def test_single_requests_out_of_scope_are_named(text, capsys):
    result = found(text, capsys)[1]
    parts = [window["out_of_scope"] * window["records"] for window in result["windows"]]
    assert result["scope"]["outside"] == pytest.approx(sum(parts))
    assert 0 < len(result["scope"]["strangest"]) <= result["scope"]["outside"]
    scores = [entry["score"] for entry in result["scope"]["strangest"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > result["scope"]["threshold"]


def test_the_same_question_has_the_same_answer(text, capsys):
    first, second = (found(text, capsys)[1] for _ in range(2))
    changing = {"when", "seconds"}
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in second.items() if k not in changing
    }


def test_the_table_says_it_in_words(text, capsys, tmp_path):
    path = tmp_path / "drift.html"
    assert drift(text, None, window=30, json=False, page=path, update=None)
    said = capsys.readouterr().out
    assert "threshold" in said
    assert said.count("alarm") >= 2
    assert "Drift: 2 of 2 windows of new look unlike old" in said
    assert "out of scope:" in said
    assert str(path) in said


class Page(HTMLParser):
    """Which elements a page opens, and that it closes each."""

    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_each_window_and_escapes_what_it_is_told(text, capsys):
    result = found(text, capsys)[1]
    result["run"] = "<script>"
    result["scope"]["strangest"][0]["text"] = "<b>bold</b> & more"
    shown = page(result)
    seen = Page()
    seen.feed(shown)
    assert not seen.open
    assert "script" not in seen.seen
    assert "b" not in seen.seen[seen.seen.index("figure") :]
    assert seen.seen.count("circle") == 2 * len(result["windows"])  # for desk and phone
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in shown
    assert "http" not in shown


@pytest.mark.integration
def test_an_alarm_starts_the_update(text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    update = text.replace('"watched"', '"learnt"')
    assert drift(text, None, window=30, json=False, page=None, update=update)
    said = capsys.readouterr()
    assert "starting the update 'learnt'" in said.err
    run = next((tmp_path / "runs").iterdir())
    assert run.name.startswith("learnt")
    assert json.loads((run / "report.json").read_text())["learnt"] == 2


@pytest.mark.integration
def test_an_alarm_updates_the_model_in_service(text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "update.toml"
    home = tmp_path / "service"
    first = f'{text}[update]\nhome = "{home}"\nmax_loss = 100.0\nmin_accuracy = 0.0\n'
    file.write_text(first + "min_gain = 0.0\n")
    start = to_start(file, quiet=True)
    for number in (1, 2):
        assert drift(text, None, window=30, json=True, page=None, update=start)
        said = capsys.readouterr()
        assert "starting the update of the model in service" in said.err
        assert releases.in_service(home).number == number
    assert releases.in_service(home).card["domains"] == ["old", "new"]


def test_without_an_alarm_no_update_starts(old_only, tmp_path, capsys):
    path = tmp_path / "requests.csv"
    write(path, lines(OLD, "", 20, 5))
    assert not drift(old_only, path, window=30, json=True, page=None, update=old_only)
    assert "starting" not in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def refused(text, new=None, **options):
    given = {"window": 30, "json": True, "page": None, "update": None, **options}
    with pytest.raises((ConfigError, DataError)) as error:
        drift(text, new, **given)
    return str(error.value)


def test_what_cannot_be_answered_is_refused_in_one_message(text, old_only, tmp_path):
    assert "needs two domains or more" in refused(old_only)
    assert "--new DATA.csv" in refused(old_only)
    assert "there is none" in refused(old_only, tmp_path / "missing.csv")
    assert "must end in one of .csv, .jsonl, .parquet" in refused(old_only, tmp_path / "x.txt")
    assert "--window must be 20 or more; got 19" in refused(text, window=19)
    assert "half a window of 900" in refused(text, window=900)
    file = tmp_path / "update.toml"
    for more in ("", '[update]\nhome = "service"\n'):
        file.write_text(text.replace("epochs", "epoch") + more)
        with pytest.raises(ConfigError, match=r"train\.epoch"):
            to_start(file, quiet=True)
    path = tmp_path / "requests.csv"
    write(path, [("a", "b")] * 30, ("said", "by"))
    assert "column 'text'; got 'said', 'by'" in refused(old_only, path)
    path.write_text("text\n\n")
    assert "at least one record" in refused(old_only, path)
    away = tmp_path / "no" / "such" / "folder.html"
    assert "--page" in refused(text, page=away)


def test_the_column_of_new_texts_is_the_configs(text, tmp_path):
    from perennial.core.config import parse

    path = tmp_path / "requests.csv"
    write(path, [("hello",), ("there",)], ("said",))
    config = parse(text.replace('name = "csv"', 'name = "csv"\ntext = "said"'))
    assert read_new(path, config).texts == ("hello", "there")


def test_the_exit_code_of_an_alarm_is_no_errors_own():
    assert ALARM not in {0, 1, 2, 130}
