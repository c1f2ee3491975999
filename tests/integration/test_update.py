"""`perennial update`: weekly domains under one ledger, one poisoned; kills, rollbacks, faults."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from running import COMMAND, changed

from perennial.cli.releasing import trust
from perennial.cli.updating import GATED_OUT, update
from perennial.core.errors import ConfigError, DataError, ModelError, RunError
from perennial.data import sample
from perennial.server import release_proofs, releases, room, updates
from perennial.server import run as server_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WEEKS = ("bank", "clinic", "telecom", "shop")
TINY = """
[run]
name = "weekly"
seed = 11
[data]
name = "sample"
[shards]
num_clients = 3
[model]
name = "tiny"
[train]
lr = 2e-2
epochs = 2
[round]
rounds = 3
[continual]
name = "chain"
methods = [{name = "replay", per_class = 5}, {name = "ewc"}]
[update]
home = "{home}"
min_accuracy = 0.0
min_gain = 0.0
max_loss = 100.0
"""
# Noise that protects people is never seeded: the bars leave room for it (about 65 % is usual of six
# labels, 17 % with the labels dealt anew).
PRIVATE = """
[run]
name = "weekly"
[data]
name = "csv"
train = "{data}/train.csv"
validation = "{data}/validation.csv"
test = "{data}/test.csv"
[shards]
num_clients = 3
[model]
layers = 1
[round]
rounds = 0
weight = "uniform"
[privacy]
name = "dp_sgd"
epsilon = 8.0
delta = 1e-4
updates = 6
[continual]
name = "analytic_head"
form = "means"
layers = 2
[update]
home = "{home}"
min_accuracy = 0.35
max_loss = 50.0
"""


def tiny(home, **tables):
    return changed(TINY.replace("{home}", str(home)), **tables)


def run(text, domain="", **options):
    asked = {"dry_run": False, "again": False, "quiet": True, "as_json": True, **options}
    return update(text, domain, **asked)


def written(folder, domains, poisoned=()):
    """Files of the sample's first domains; the labels of the poisoned ones are dealt anew."""
    folder.mkdir(exist_ok=True)
    splits = sample.build().read()
    rng = np.random.default_rng(3)
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        rows = list(zip(part.ids, part.texts, part.targets, part.domains, strict=True))
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "label", "domain"])
            for domain in domains:
                own = [list(row) for row in rows if row[3] == domain]
                if domain in poisoned and name == "train":
                    for row, label in zip(own, rng.permutation([r[2] for r in own]), strict=True):
                        row[2] = label
                writer.writerows(own)
    return folder


def said(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_three_weeks_under_one_ledger_a_poisoned_fourth_and_a_rollback(tmp_path, capsys):
    home, spent = tmp_path / "home", []
    text = PRIVATE.replace("{home}", str(home)).replace("{data}", str(tmp_path / "data"))
    for week in range(3):
        written(tmp_path / "data", WEEKS[: week + 1])
        assert run(text) == 0
        told = said(capsys)
        assert (told["state"], told["in_service"]) == ("released", week + 1)
        assert list(told["accuracy"]) == list(WEEKS[: week + 1])
        assert told["epsilon"] <= 8.0
        spent.append([len(p.read_bytes()) for p in sorted((home / "clients").rglob("ledger*"))])
    assert all(later >= first for later, first in zip(spent[2], spent[0], strict=True))
    assert sum(spent[2]) > sum(spent[0])  # one ledger a client, and it grew

    written(tmp_path / "data", WEEKS, poisoned=("shop",))
    assert run(text) == GATED_OUT
    told = said(capsys)
    assert (told["state"], told["in_service"]) == ("refused", 3)
    failed = [check["what"] for check in told["checks"] if not check["holds"]]
    assert "new domain shop" in failed
    assert run(text) == GATED_OUT  # as cron would: nothing is run again
    assert "gated out before" in said(capsys)["why"]
    assert len(list((home / "updates").iterdir())) == 4

    started = time.monotonic()
    assert releases.rollback(home).number == 2
    assert time.monotonic() - started < 1.0
    trusted = trust(home / f"{releases.KEY}.pub")
    assert release_proofs.verify(home, 3, trusted) == []
    card = releases.read(home, 3).card
    assert card["parent"]["number"] == 2
    assert card["clients"] == 3
    assert card["records"] is None  # a private run does not tell
    assert {"adapter/answer.npy", "config.toml", "report.json"} <= set(card["files"])


def test_an_update_goes_on_where_the_release_ended_as_one_run_would(tmp_path):
    """What two updates learn is what one run of two domains learns, bit for bit."""
    from perennial.simulations.simulate import simulate

    text = tiny(tmp_path / "home")
    assert run(text) == run(text) == 0
    found = releases.in_service(tmp_path / "home").card
    whole = changed(text, domains__order=["bank", "clinic"])
    simulate(whole, tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert found["adapter_hash"] == report["adapter_hash"]
    assert list(found["accuracy"].values()) == report["accuracy_matrix"][1]
    told = json.loads((releases.in_service(tmp_path / "home").folder / "report.json").read_text())
    assert told["accuracy_matrix"] == report["accuracy_matrix"]
    assert told["finished"]
    assert len(told["rounds"]) == len(report["rounds"])


@pytest.mark.parametrize(
    "wait", [*(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 0.7)), 1.6]
)
def test_an_update_that_is_killed_goes_on_and_is_released_once(wait, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(tiny(whole)) == run(tiny(whole)) == 0
    assert run(tiny(broken)) == 0
    (tmp_path / "c.toml").write_text(tiny(broken))
    command = [*COMMAND, "update", tmp_path / "c.toml", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not list((broken / "updates").glob("0002-*/events.jsonl")):
        time.sleep(0.005)
    time.sleep(wait)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    over = told["domains"] == ["telecom"]  # the killed one had been released: the next was learnt
    assert told["in_service"] == 2 + over
    found = releases.read(broken, 2)
    assert found.card["adapter_hash"] == releases.in_service(whole).card["adapter_hash"]
    assert len([r for r in releases.all_of(broken) if r.card["domain"] == "clinic"]) == 1
    trusted = trust(broken / f"{releases.KEY}.pub")
    assert release_proofs.verify(broken, 2, trusted) == []


def test_after_a_rollback_the_next_update_begins_at_the_release_in_service(tmp_path):
    home = tmp_path / "home"
    for _ in range(2):
        assert run(tiny(home)) == 0
    second = releases.in_service(home)
    releases.rollback(home)
    assert run(tiny(home), "telecom") == 0
    third = releases.in_service(home)
    assert (third.number, third.card["domains"]) == (3, ["bank", "telecom"])
    assert third.card["parent"]["number"] == 1
    assert run(tiny(home), "clinic") == 0
    assert releases.in_service(home).card["domains"] == ["bank", "telecom", "clinic"]
    assert second.card["domains"] == ["bank", "clinic"]


def test_a_crash_between_release_and_promotion_promotes_it_and_cuts_no_other(tmp_path, monkeypatch):
    home = tmp_path / "home"

    def dead(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "promote", dead)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(home))
    monkeypatch.undo()
    assert releases.in_service(home) is None
    assert run(tiny(home)) == 0
    assert [r.number for r in releases.all_of(home)] == [1]
    assert releases.in_service(home).number == 1


@pytest.mark.parametrize("back", [False, True])
def test_a_crash_after_promotion_ends_in_its_card_and_learns_no_other(
    back, tmp_path, monkeypatch, capsys
):
    home = tmp_path / "home"
    assert run(tiny(home)) == 0
    write = updates._write_card

    def dead(folder, card):
        if card["state"] == updates.RELEASED:
            raise KeyboardInterrupt
        write(folder, card)

    monkeypatch.setattr(updates, "_write_card", dead)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(home))
    monkeypatch.undo()
    assert releases.in_service(home).number == 2
    if back:  # what was taken back since stays so
        releases.rollback(home)
    capsys.readouterr()
    assert run(tiny(home)) == 0
    told = said(capsys)
    assert told["state"] == "released"
    assert ("taken back" if back else "cut short") in told["why"]
    assert told["in_service"] == releases.in_service(home).number == 2 - back
    assert len(list((home / "updates").iterdir())) == 2
    if not back:
        assert told["domains"] == ["clinic"]
        assert run(tiny(home)) == 0
        assert said(capsys)["domains"] == ["telecom"]


def test_a_release_that_was_put_in_service_meanwhile_stays_there(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for _ in range(2):
        assert run(tiny(home)) == 0
    conclude = updates.conclude

    def meanwhile(*words):
        releases.rollback(home)
        return conclude(*words)

    monkeypatch.setattr(updates, "conclude", meanwhile)
    with pytest.raises(RunError, match="release 0001 was put in service while this update"):
        run(tiny(home))
    monkeypatch.undo()
    assert releases.in_service(home).number == 1
    assert len(releases.all_of(home)) == 2
    releases.promote(home, 2)
    assert run(tiny(home)) == 0
    assert releases.in_service(home).card["parent"]["number"] == 2


def test_what_was_taken_back_is_not_made_again_by_a_timer(tmp_path, capsys):
    home = tmp_path / "home"
    for _ in range(2):
        assert run(tiny(home)) == 0
    releases.rollback(home)
    assert run(tiny(home)) == 0
    assert "released and taken back" in said(capsys)["why"]
    assert releases.in_service(home).number == 1
    assert run(tiny(home), "telecom") == 0
    releases.promote(home, 2)  # it may serve; what clients count is the other branch's
    with pytest.raises(DataError, match="may serve, but not be updated"):
        run(tiny(home), "shop")


def test_a_dry_run_writes_nothing_and_says_what_would_be(tmp_path, capsys):
    home = tmp_path / "home"
    assert run(tiny(home), dry_run=True) == 0
    told = said(capsys)
    assert (told["state"], told["domains"], told["in_service"]) == ("planned", ["bank"], None)
    assert not home.exists()


def test_all_learnt_is_nothing_to_do(tmp_path, capsys):
    home = tmp_path / "home"
    text = tiny(home, domains__order=["bank", "city"], update__begin=["bank", "city"])
    assert run(text) == 0
    assert list(said(capsys)["accuracy"]) == ["bank", "city"]
    before = sorted(p.name for p in (home / "updates").iterdir())
    for _ in range(2):
        assert run(text) == 0
        assert said(capsys)["state"] == "nothing"
    assert sorted(p.name for p in (home / "updates").iterdir()) == before


def test_faults_are_named_and_write_nothing(tmp_path):
    home = tmp_path / "home"
    with pytest.raises(ConfigError, match=r"\[update\] with home"):
        run(tiny(home).replace("[update]", "[evaluate]").split("home =")[0])
    with pytest.raises(DataError, match="'atlantis'"):
        run(tiny(home), "atlantis")
    private = tiny(home, round__weight="uniform").replace("per_class = 5", "share = 0.5")
    private += '[privacy]\nname = "dp_sgd"\nepsilon = 8.0\n'
    with pytest.raises(ConfigError, match=r"privacy.updates.*must be given for an update"):
        run(private + "delta = 1e-4\n")
    assert not (home / "updates").exists()
    with updates.only_one(home), pytest.raises(RunError, match="another process"):
        run(tiny(home))
    assert run(tiny(home)) == 0
    there = sorted((home / "updates").iterdir())
    fewer = tiny(home, model__rank=2).replace("per_class = 5", "per_class = 3")
    kept = r"continual\.methods\.0\.per_class\] must stay 5, as in release 0001"
    with pytest.raises(ConfigError, match=kept) as error:
        run(fewer)
    ranks = "[model.rank] must stay left out, as in release 0001, which this update goes on from"
    assert ranks in str(error.value)
    assert sorted((home / "updates").iterdir()) == there
    run_folder = home / "updates" / str(releases.in_service(home).card["update"])
    for path in (run_folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="run behind the release"):
        run(tiny(home, run__seed=12))


def test_default_methods_stay_those_in_force_over_a_release_of_an_older_version(
    tmp_path, monkeypatch
):
    home = tmp_path / "home"
    text = tiny(home, round__max_weight=500.0, round__rounds=1)
    text = text[: text.index("[continual]")] + text[text.index("[update]") :]
    with monkeypatch.context() as older:  # it stamped the tables as they are written
        older.setattr(server_run, "descent", lambda r, learnt: min(room.older_descents(r, learnt)))
        assert run(text) == 0
    there = sorted((home / "updates").iterdir())
    with pytest.raises(ConfigError, match=r"must stay replay, ewc, analytic_head.*bits = 8"):
        run(text + '[secure_sum]\nname = "masks"\nclip = 0.3\nbits = 8\n')
    assert sorted((home / "updates").iterdir()) == there
    assert run(text) == 0
    assert releases.in_service(home).number == 2


def test_what_is_damaged_is_named_before_anything_is_trained(tmp_path, capsys):
    home = tmp_path / "home"
    assert run(tiny(home)) == 0
    said(capsys)
    assert run(tiny(home), "bank") == 0
    assert said(capsys)["why"] == "domain 'bank' is learnt"
    whole = tmp_path / "whole"
    shutil.copytree(home, whole, symlinks=True)
    behind = next((home / "updates").iterdir())
    for path, words in (
        (home / "releases" / "0001" / "report.json", "not the file that was released"),
        (behind / "events.jsonl", "events.jsonl is missing"),
        (next((behind / "knowledge").iterdir()), "is missing"),
        (next((behind / "checkpoints").glob("*-00000.npz")), "run behind the release"),
    ):
        text = path.read_bytes()
        path.write_bytes(b"{") if "report" in path.name else path.unlink()
        for dry_run in (True, False):
            with pytest.raises(DataError, match=words):
                run(tiny(home), "clinic", dry_run=dry_run)
        path.write_bytes(text)
    assert sorted(p.name for p in (home / "updates").iterdir()) == [behind.name]
    for odd in (
        str(tmp_path / "whole" / "releases" / "0001" / "report.json"),
        "~nobody7",
        "a\\u0000b",
    ):
        with pytest.raises(ConfigError, match=r"update\.home"):
            run(tiny(odd))


def test_the_command_line_shows_releases(tmp_path):
    assert run(tiny(tmp_path / "home")) == run(tiny(tmp_path / "home")) == 0

    def asked(*words):
        command = [sys.executable, "-m", "perennial", "releases", *words]
        done = subprocess.run(
            [*command, "--home", tmp_path / "home"], capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    assert "0002 *" in asked("list")[1]
    found = json.loads(asked("list", "--json")[1])
    assert [entry["in_service"] for entry in found] == [False, True]
    code, words = asked("show")
    assert code == 0
    assert "release 0002, in service" in words
    code, words = asked("diff", "1", "2")
    assert "setting   domains.order: ['bank'] to ['bank', 'clinic']" in words
    assert "moved by" in words
    assert json.loads(asked("diff", "1", "2", "--json")[1])["moved"]
    assert asked("rollback") == (0, "release 0001 is in service again\n")
    assert asked("promote", "2") == (0, "release 0002 is in service\n")
    assert asked("verify")[0] == 0
    (tmp_path / "home" / "releases" / "0002" / "config.toml").write_text("")
    code, words = asked("verify")
    assert code == 1
    assert "config.toml is not the file that was released" in words
    code, words = asked("promote", "7")
    assert code == 2
    assert "there are: 0001, 0002" in words


def test_an_update_whose_model_cannot_be_exported_is_not_released(tmp_path):
    text = tiny(tmp_path / "home", update__export=True)
    with pytest.raises(ModelError, match="'tiny' cannot be exported"):
        run(text)
    assert releases.all_of(tmp_path / "home") == []
