"""What an update must share with the release it goes on from: the methods in force, too."""

import hashlib
import json
from types import SimpleNamespace

import pytest

from perennial.cli import descent
from perennial.core import check
from perennial.core.errors import ConfigError
from perennial.server import room

BASE = """
[data]
name = "sample"
[model]
name = "tiny"
[update]
home = "home"
"""
MASKS = '[secure_sum]\nname = "masks"\nclip = 0.3\n[round]\nmax_weight = 500.0\n'
FEW = MASKS.replace("[round]", "bits = 8\n[round]")
ENOUGH = FEW.replace("8", "16")
USERS = """
[user_privacy]
name = "central"
epsilon = 3.0
delta = 1e-3
noise_multiplier = 4.0
clip = 1.0
[round]
weight = "uniform"
"""
CHAIN = '[continual]\nname = "chain"\n'
REPLAY = CHAIN + 'methods = [{name = "replay"}]\n'
DEFAULT = CHAIN + 'methods = [{name = "replay"}, {name = "ewc"}, {name = "analytic_head"}]\n'
BRIEF = DEFAULT.replace('"replay"', '"replay", per_class = 5')


@pytest.fixture
def goes_on(tmp_path, monkeypatch):
    """Whether an update goes on from a release: (tables of its config, those of the update)."""

    def need(before, after):
        (tmp_path / "config.toml").write_text(BASE + before)
        release = SimpleNamespace(folder=tmp_path, name="0001")
        monkeypatch.setattr(descent.releases, "in_service", lambda home: release)
        descent.need_descent(check.read(BASE + after), tmp_path)

    return need


def fault(goes_on, before, after):
    with pytest.raises(ConfigError) as caught:
        goes_on(before, after)
    (found,) = caught.value.faults
    return found


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (FEW, "here, without ewc, analytic_head: [secure_sum] bits = 8 are too few"),
        (USERS, "here, without ewc, analytic_head: [user_privacy] 'central' adds noise"),
    ],
)
def test_what_takes_default_methods_away_is_refused_by_name(goes_on, after, reason):
    found = fault(goes_on, "", after)
    assert found.place == "continual.methods"
    assert "must stay replay, ewc, analytic_head, as in release 0001" in found.problem
    assert "got replay alone" in found.problem
    assert reason in found.problem
    assert "anew in another [update] home" in found.remedy


def test_what_brings_default_methods_is_refused_until_the_old_ones_are_named(goes_on):
    found = fault(goes_on, FEW, "")
    assert "must stay replay alone" in found.problem
    assert "got replay, ewc, analytic_head" in found.problem
    assert "in release 0001, without ewc, analytic_head: [secure_sum] bits = 8" in found.problem
    assert "name replay under [[continual.methods]]" in found.remedy
    goes_on(FEW, REPLAY)


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("", ENOUGH), (FEW, FEW), (FEW, USERS), ("", DEFAULT), (DEFAULT, CHAIN)],
)
def test_the_same_methods_go_on_whatever_decided_them(goes_on, before, after):
    goes_on(before, after)


def test_an_option_of_a_default_method_is_named_by_its_place(goes_on):
    found = fault(goes_on, "", BRIEF)
    assert found.place == "continual.methods.0.per_class"
    assert "must stay left out" in found.problem
    assert fault(goes_on, BRIEF, "").place == "continual.methods.0.per_class"


def opened(tables):
    """As much of a room as `descent` looks at."""
    model = SimpleNamespace(manifest=SimpleNamespace(hash="m"), identity=lambda: "base")
    domains = [SimpleNamespace(name="bank", labels=("a", "b"))]
    stream = SimpleNamespace(domains=domains)
    return SimpleNamespace(config=check.read(BASE + tables), model=model, stream=stream)


def as_written(continual):
    """What a release by a version that hashed the tables as they are written holds."""
    tables = {"model": {"name": "tiny"}, "strategy": {"name": "fedavg"}, "continual": continual}
    text = json.dumps([tables, "m", "base", [["bank", ["a", "b"]]]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_run_is_no_heir_of_one_with_other_methods_in_force():
    plain = room.descent(opened(""), 1)
    assert room.descent(opened(ENOUGH), 1) == room.descent(opened(DEFAULT), 1) == plain
    assert plain not in {room.descent(opened(FEW), 1), *room.older_descents(opened(FEW), 1)}
    few = room.descent(opened(FEW), 1)
    assert room.descent(opened(REPLAY), 1) == few
    assert few not in {plain, *room.older_descents(opened(""), 1)}


def test_releases_of_older_versions_stay_updatable():
    unwritten = as_written({"name": "chain"})
    for same in ("", FEW, REPLAY, DEFAULT):
        assert unwritten in room.older_descents(opened(same), 1)
    assert unwritten not in room.older_descents(opened(BRIEF), 1)
    methods = [{"name": "replay", "per_class": 5}, {"name": "ewc"}, {"name": "analytic_head"}]
    assert as_written({"name": "chain", "methods": methods}) == room.descent(opened(BRIEF), 1)
