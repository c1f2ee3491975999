"""`perennial plan`, and what a private config leaves open."""

import json
import subprocess
import sys
import time
import tomllib

import pytest
from typer.testing import CliRunner

from perennial.cli.main import app
from perennial.cli.overrides import override
from perennial.cli.planning import against_data, plan, planned
from perennial.cli.settling import domains_of, settle
from perennial.core import check
from perennial.core.config import parse
from perennial.core.errors import ConfigError, DataError, PrivacyError
from perennial.core.values import Spend
from perennial.privacy.accounting import epsilon, noise_for
from perennial.privacy.ledger import open_ledger

PLAIN = """\
# a comment that stays
[data]
name = "sample"

[continual]
name = "none"
"""
EXAMPLE = f"""{PLAIN}
[round]
rounds = 2

[train]
epochs = 3

[privacy]
name = "dp_sgd"
epsilon = 8
delta = 1e-4
"""
CENTRAL = f"""{PLAIN}
[round]
rounds = 2

[user_privacy]
name = "central"
epsilon = 8.0
delta = 0.01
clip = 1.0
"""
DISTRIBUTED = f"""{PLAIN}
[shards]
num_clients = 30

[secure_sum]
name = "masks"
min_clients = 20
clip = 0.1

[user_privacy]
name = "distributed"
epsilon = 8.0
delta = 0.01
clip = 5.0
clients = 20
updates = 3
"""


def value(text, key):
    tree = tomllib.loads(text)
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_a_config_that_promises_nothing_is_untouched_and_loads_nothing():
    code = (
        "import sys; from perennial.cli.settling import settle\n"
        f"text = {PLAIN!r}\n"
        "assert settle(text) == (text, [])\n"
        "assert settle(text + '[privacy]\\nname = \"none\"') [1] == []\n"
        "heavy = {'dp_accounting', 'opacus', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_toml_is_left_to_the_check():
    assert settle("[data") == ("[data", [])


def test_noise_is_planned_for_all_domains_of_the_data():
    text, lines = settle(EXAMPLE)
    noise = value(text, "privacy.noise_multiplier")
    assert value(text, "privacy.sample_rate") == 0.25
    assert value(text, "round.weight") == "uniform"
    # Nothing is replayed: a record pays for its own update, 2 rounds of 3 / 0.25 steps.
    assert noise == noise_for(8.0, 1e-4, [(0.25, 24)])
    assert check.read(text).privacy.options["noise_multiplier"] == noise
    assert lines[-1].startswith(f"planned: privacy.noise_multiplier = {noise} for 6 updates of 2")
    assert [line.split(" = ")[0] for line in lines[:-1]] == [
        "filled in: round.weight",
        "filled in: privacy.sample_rate",
    ]
    assert "optimizer" not in value(text, "train")
    assert settle(text) == (text, [])


def test_strong_privacy_takes_the_settings_that_were_measured_best():
    text, lines = settle(override(EXAMPLE, ["privacy.epsilon=3"]))
    config = check.read(text)
    assert config.privacy.options["sample_rate"] == 1.0
    assert (config.train.optimizer, config.train.momentum) == ("sgd", 0.9)
    assert config.strategy.name == "ffa"
    assert config.round.weight == "uniform"
    written = [line.split(": ")[1].split(" = ")[0] for line in lines]
    assert written == [
        "round.weight",
        "privacy.sample_rate",
        "train.optimizer",
        "train.lr",
        "train.momentum",
        "strategy.name",
        "privacy.noise_multiplier",
    ]
    for key in written:
        assert value(text, key) == value(settle(text)[0], key)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("privacy.sample_rate", 0.5),
        ("privacy.noise_multiplier", 9.0),
        ("train.optimizer", "adamw"),
        ("train.lr", 0.007),
        ("strategy.name", "fedavg"),
        ("strategy.momentum", 0.5),
        ("round.weight", "records"),
    ],
)
def test_what_the_user_wrote_is_kept(key, given):
    written = override(EXAMPLE, ["privacy.epsilon=3", f"{key}={json.dumps(given)}"])
    text, lines = settle(written)
    assert value(text, key) == given
    assert not any(key in line for line in lines)
    if key == "train.lr":  # it was meant for the optimizer that stands when none is written
        assert parse(text).train.optimizer == "adamw"


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        (["privacy.updates=52"], 52),
        (["domains.joint=true"], 1),
        (['domains.order=["clinic", "bank"]'], 2),
        ([], 6),
    ],
)
def test_the_life_that_is_planned(settings, updates):
    line = settle(override(EXAMPLE, settings))[1][-1]
    assert f" for {updates} update" in line


def test_the_number_of_domains_may_be_given():
    assert " for 9 updates" in settle(override(EXAMPLE, []), domains=9)[1][-1]
    assert domains_of(parse(PLAIN)) == 6


def test_data_that_is_not_here_says_what_to_write():
    text = override(EXAMPLE, ['data.name="csv"', 'data.train="nowhere.csv"'])
    with pytest.raises(DataError, match=r"nowhere.csv(.|\n)*write updates = NUMBER"):
        settle(text)
    text, _ = settle(override(text, ["privacy.updates=4"]))
    found = planned(text)
    assert "not read" in found["notes"][-1]
    assert found["units"][0]["updates"] == 4


def test_every_fault_is_told_but_the_noise_that_is_ours_to_plan():
    text = override(EXAMPLE, ["privacy.epsilon=0", "privacy.sample_rate=2", "strategy.name=moon"])
    text = text.replace("delta = 0.0001\n", "")
    with pytest.raises(ConfigError) as error:
        settle(text)
    places = [fault.place for fault in error.value.faults]
    assert sorted(places) == [
        "privacy.delta",
        "privacy.epsilon",
        "privacy.sample_rate",
        "strategy.name",
    ]


def test_delta_is_given_by_the_user():
    text = EXAMPLE.replace("delta = 1e-4\n", "")
    with pytest.raises(
        ConfigError, match=r"1 fault(.|\n)*\[privacy.delta\] must be given; write one"
    ):
        settle(text)


def test_an_epsilon_that_no_noise_reaches():
    with pytest.raises(PrivacyError, match="epsilon must be reachable"):
        settle(override(EXAMPLE, ["privacy.epsilon=1e-6", "privacy.delta=1e-8"]))


def test_users_pay_every_round_of_every_domain():
    text, lines = settle(CENTRAL)
    noise = value(text, "user_privacy.noise_multiplier")
    assert noise == noise_for(8.0, 0.01, [(1.0, 12)])
    assert lines[0].startswith("filled in: round.weight")
    assert "2 rounds, epsilon 8 per user" in lines[-1]
    assert "sample_rate" not in value(text, "user_privacy")


def test_noise_inside_the_sum_is_planned_for_what_it_hides():
    text, _ = settle(DISTRIBUTED)
    noise = value(text, "user_privacy.noise_multiplier")
    config = check.read(text)
    hidden = check.build(config, "secure_sum").multiplier(2**62, 20)
    assert hidden < noise
    spends = [Spend(1.0, hidden, config.round.rounds * 3, "all", "skellam")]
    assert 7.8 < epsilon(spends, 0.01) <= 8.0


def test_both_units_may_be_promised_at_once():
    both = override(
        EXAMPLE,
        [f"user_privacy.{item}" for item in ("name=central", "epsilon=8", "delta=0.01", "clip=1")],
    )
    text, lines = settle(both)
    assert value(text, "privacy.noise_multiplier") != value(text, "user_privacy.noise_multiplier")
    assert [u["unit"] for u in planned(text)["units"]] == ["example", "user"]
    assert sum(line.startswith("planned") for line in lines) == 2


def test_the_plan_in_plain_values():
    found = planned(override(EXAMPLE, ["privacy.epsilon=3"]))
    (unit,) = found["units"]
    assert (unit["unit"], unit["target"], unit["delta"], unit["updates"]) == ("example", 3, 1e-4, 6)
    assert unit["noise_multiplier"] == unit["noise_needed"]
    said = unit["epsilon"]
    assert 0.99 * 3 < said["accounted"] <= 3 < said["rdp"]
    assert said["prv"] == pytest.approx(said["accounted"], abs=0.05)
    assert [row["updates"] for row in unit["after"]] == [1, 2, 3, 4, 5, 6]
    assert unit["updates_that_fit"] == 6
    assert any("sgd with momentum" in line for line in unit["advice"])
    assert unit["ledger"] is None
    assert json.loads(json.dumps(found)) == found


def test_too_little_noise_is_said():
    (unit,) = planned(override(CENTRAL, ["user_privacy.noise_multiplier=1.0"]))["units"]
    assert 0 < unit["updates_that_fit"] < 6
    assert "Leave noise_multiplier out" in unit["advice"][0]
    assert unit["noise_needed"] > 1.0
    assert unit["epsilon"]["accounted"] > 8.0


def test_a_long_life_is_shown_in_a_few_rows():
    (unit,) = planned(override(CENTRAL, ["user_privacy.updates=52"]))["units"]
    rows = [row["updates"] for row in unit["after"]]
    assert len(rows) == 12
    assert (rows[0], rows[-1]) == (1, 52)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["privacy.delta=0.05"],
            r"\[privacy.delta\] must be at most 1 / number of records .* 1/75;",
        ),
        (["privacy.sample_rate=0.01"], r"\[privacy.sample_rate\] 0.01 needs 100 records .* 75 of"),
    ],
)
def test_the_data_refuses(settings, message):
    with pytest.raises(ConfigError, match=message):
        planned(override(EXAMPLE, settings))


def test_delta_is_below_one_over_the_number_of_users():
    with pytest.raises(ConfigError, match=r"\[user_privacy.delta\] .* clients, 1/4;"):
        planned(override(CENTRAL, ["user_privacy.delta=0.3"]))


def test_fewer_updates_than_domains_are_noted():
    found = planned(override(EXAMPLE, ["privacy.updates=2"]))
    assert "the data has 6 domains, and noise is planned for 2" in found["notes"][-1]


def test_nothing_promised_says_how_to():
    found = planned(PLAIN)
    assert found["units"] == []
    assert "nothing is promised" in found["notes"][0]


def test_updates_that_an_existing_ledger_holds(tmp_path):
    text, _ = settle(override(CENTRAL, ["user_privacy.updates=10"]))
    noise = value(text, "user_privacy.noise_multiplier")
    account = open_ledger(tmp_path, "c7", unit="user", epsilon=8.0, delta=0.01)
    for i in range(6):  # three domains of two rounds
        account.charge({"round": i}, [Spend(1.0, noise, 1, "all")])
    (unit,) = planned(text, tmp_path)["units"]
    assert unit["ledger"]["client"] == "c7"
    assert unit["ledger"]["releases"] == 6
    assert unit["ledger"]["updates_left"] == 7
    assert unit["ledger"]["epsilon"] == account.statement().epsilon
    with pytest.raises(PrivacyError, match="promised epsilon 8"):
        planned(override(text, ["user_privacy.epsilon=9"]), tmp_path)
    with pytest.raises(PrivacyError, match="holds none"):
        planned(text, tmp_path / "other")


def test_the_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    plan(override(EXAMPLE, ["privacy.epsilon=3"]), None, as_json=False)
    shown = capsys.readouterr().out
    for part in ("planned: privacy.noise", "RDP", "PRV", "after update", "sample rate", "less is"):
        assert part in shown
    plan(CENTRAL, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["units"][0]["plug_in"] == "central"


@pytest.mark.integration
def test_the_command(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CENTRAL)
    command = [sys.executable, "-m", "perennial", "plan", str(path), "--json"]
    done = subprocess.run(
        [*command, "--set", "user_privacy.epsilon=2"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["units"][0]["target"] == 2
    done = subprocess.run(
        [*command, "--set", "user_privacy.delta=0.5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "[user_privacy.delta] must be at most 1 / number of clients" in done.stderr


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (EXAMPLE, ["privacy.delta=0.05"], "[privacy.delta] must be at most 1 / number of records"),
        (EXAMPLE, ["privacy.sample_rate=0.01"], "[privacy.sample_rate] 0.01 needs 100 records"),
        (CENTRAL, ["user_privacy.delta=0.5"], "[user_privacy.delta] must be at most 1 / number"),
    ],
)
@pytest.mark.parametrize("command", ["check", "simulate", "bundle"])
def test_what_clients_would_refuse_is_refused_before_a_run(
    text, settings, message, command, tmp_path
):
    path = tmp_path / "config.toml"
    path.write_text(override(text, settings))
    arguments = [command, str(path), *([str(tmp_path / "out")] if command == "bundle" else [])]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, ConfigError)
    assert message in str(found.exception)
    assert list(tmp_path.iterdir()) == [path]


def test_what_each_client_brings_itself_is_left_to_it():
    text = override(EXAMPLE, ["privacy.delta=0.05", 'shards.split="local"'])
    assert against_data(check.read(settle(text)[0])) == []
    assert against_data(check.read(settle(CENTRAL)[0])) == []
    with pytest.raises(ConfigError, match="number of records"):
        against_data(check.read(settle(override(text, ['shards.split="iid"']))[0]))


@pytest.mark.integration
def test_the_data_is_checked_without_heavy_libraries():
    text = override(EXAMPLE, ["privacy.noise_multiplier=9.0", "privacy.sample_rate=0.25"])
    text = override(text, ['round.weight="uniform"'])
    code = (
        "import sys; from perennial.cli.planning import against_data\n"
        "from perennial.core import check\n"
        f"config = check.read({text!r})\n"
        "before = set(sys.modules)\n"
        "assert against_data(config) == []\n"
        "heavy = {'dp_accounting', 'opacus', 'torch', 'scipy'} & (set(sys.modules) - before)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_clip_of_users_that_rounding_drowns():
    with pytest.raises(ConfigError, match=r"\[user_privacy.clip\] (.|\n)*levels or more"):
        planned(override(DISTRIBUTED, ["user_privacy.clip=1e-6"]))
    small = override(DISTRIBUTED, ["user_privacy.clip=1e-4", "user_privacy.noise_multiplier=9.0"])
    assert "with 60000 trained values" in planned(small)["notes"][-1]
    assert not any("60000" in note for note in planned(DISTRIBUTED)["notes"])


def test_a_life_that_is_too_long_is_refused_and_a_long_one_is_bounded():
    many = override(EXAMPLE, ["train.epochs=1000000", "privacy.sample_rate=0.25"])
    with pytest.raises(PrivacyError, match=r"steps of .* life must be at most 1,000,000; got 8,"):
        planned(many)
    start = time.monotonic()
    (unit,) = planned(override(EXAMPLE, ["train.epochs=50000", "privacy.updates=1"]))["units"]
    assert time.monotonic() - start < 20
    assert 7.99 < unit["epsilon"]["accounted"] <= 8.0
    assert unit["epsilon"]["accounted"] == unit["epsilon"]["rdp"]
    assert unit["updates_that_fit"] == 1
