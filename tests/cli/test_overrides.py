import tomllib

import pytest

from perennial.cli.overrides import override
from perennial.core import check
from perennial.core.errors import ConfigError

TEXT = '# a comment\n[data]\nname = "sample"\n\n[train]\nlr = 0.1\nepochs = 2\n'


def tree(*settings, text=TEXT):
    return tomllib.loads(override(text, settings))


def test_without_settings_the_text_is_left_as_it_is():
    assert override(TEXT, ()) == TEXT
    assert override("not = = toml", ()) == "not = = toml"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0.5", 0.5),
        ("3", 3),
        ("true", True),
        ('["a", "b"]', ["a", "b"]),
        ('"3"', "3"),
        ("sgd", "sgd"),
        ("a b", "a b"),
        ("", ""),
        ("a=b", "a=b"),
        (" sgd ", "sgd"),
        ("{a = 1}", {"a": 1}),
        ("True", "True"),
        ("gr\u00fc\u00df", "gr\u00fc\u00df"),
    ],
)
def test_a_value_is_toml_or_else_a_string(written, value):
    found = tree(f"train.x={written}")["train"]["x"]
    assert found == value
    assert type(found) is type(value)


def test_the_rest_of_the_file_is_kept():
    assert tree("train.lr=0.2") == {"data": {"name": "sample"}, "train": {"lr": 0.2, "epochs": 2}}


def test_tables_that_are_not_there_are_made():
    assert tree("simulation.faults.drop_rate=0.1")["simulation"] == {"faults": {"drop_rate": 0.1}}


def test_the_last_of_two_wins():
    assert tree("train.lr=0.2", "train.lr=0.3")["train"]["lr"] == 0.3


def test_spaces_around_keys_do_not_count():
    assert tree(" train . lr = 0.2 ")["train"]["lr"] == 0.2


@pytest.mark.parametrize(
    "setting", ["train.lr", "=3", "train.=3", ".lr=3", "", "train..lr=3", " . =3"]
)
def test_what_is_no_setting_is_quoted(setting):
    with pytest.raises(ConfigError) as caught:
        override(TEXT, [setting])
    (fault,) = caught.value.faults
    assert str(fault) == f"[--set] must be table.key=value; got {setting!r}"


@pytest.mark.parametrize("setting", ["train.lr.x=1", "train.lr.x.y=1"])
def test_a_value_is_no_table(setting):
    with pytest.raises(ConfigError, match="'lr' is no table"):
        override(TEXT, [setting])


def test_all_faults_come_at_once():
    with pytest.raises(ConfigError, match="2 faults"):
        override(TEXT, ["train.lr", "train.lr.x=1", "train.epochs=3"])


def test_a_file_that_is_not_toml():
    with pytest.raises(ConfigError, match="not valid TOML"):
        override("[train", ["train.lr=1"])


def test_what_was_set_is_checked_like_the_file():
    with pytest.raises(ConfigError, match=r"\[train.lr\] must be a finite number; got nan"):
        check.read(override(TEXT, ["train.lr=nan"]))
    assert check.read(override(TEXT, ["strategy.name=median"])).strategy.name == "median"
