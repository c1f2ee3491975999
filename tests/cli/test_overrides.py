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


CHAIN = """
[[continual.methods]]
name = "replay"
per_class = 20
[[continual.methods]]
name = "ewc"
"""


@pytest.mark.parametrize("place", ["0", "replay", " replay ", "00"])
def test_a_method_of_a_chain_is_reached_by_its_place_or_its_name(place):
    text = override(TEXT + CHAIN, [f"continual.methods.{place}.per_class=5"])
    assert tomllib.loads(text)["continual"]["methods"] == [
        {"name": "replay", "per_class": 5},
        {"name": "ewc"},
    ]
    (replay, ewc) = check.read(text).continual.options["methods"]
    assert (replay["per_class"], ewc["name"]) == (5, "ewc")


def test_an_entry_of_an_array_is_replaced():
    assert tree("domains.order.1=b", text='[domains]\norder = ["a", "c"]')["domains"] == {
        "order": ["a", "b"]
    }
    found = tree('continual.methods.1={name = "drift"}', text=CHAIN)["continual"]["methods"]
    assert found[1] == {"name": "drift"}


@pytest.mark.parametrize("place", ["2", "-1", "ewcc", "x"])
def test_a_place_or_name_that_is_not_there_is_named_once(place):
    setting = f"continual.methods.{place}.strength=5"
    with pytest.raises(ConfigError) as caught:
        override(CHAIN, [setting])
    (fault,) = caught.value.faults
    assert str(fault) == (
        f"[--set] {place!r} must be a place from 0, below 2, or the name that one table alone "
        f"has; there are replay, ewc; got {setting!r}"
    )


def test_a_name_that_two_tables_have_is_refused():
    twice = CHAIN.replace("ewc", "replay")
    with pytest.raises(ConfigError, match="one table alone has; there are replay, replay"):
        override(twice, ["continual.methods.replay.per_class=5"])
    assert tree("continual.methods.1.share=0.5", text=twice)["continual"]["methods"][1]["share"]


def test_what_is_in_an_array_may_be_no_table():
    with pytest.raises(ConfigError, match="'0' is no table"):
        override('[domains]\norder = ["a"]', ["domains.order.0.x=1"])
    with pytest.raises(ConfigError, match="there are no names"):
        override('[domains]\norder = ["a"]', ["domains.order.a=1"])


@pytest.mark.parametrize("text", ["", '[continual]\nname = "chain"\n'])
def test_methods_that_the_file_does_not_list_cannot_be_changed(text):
    with pytest.raises(ConfigError, match=r"lists no \[\[continual\.methods\]\]"):
        override(text, ["continual.methods.replay.per_class=5"])


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
