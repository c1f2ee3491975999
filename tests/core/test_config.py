import pytest

from perennial.core.config import parse, suggest
from perennial.core.errors import ConfigError

DATA = '[data]\nname = "sample"\n'


def faults(text):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    return {fault.place: str(fault) for fault in caught.value.faults}


def test_only_the_data_must_be_named():
    config = parse(DATA)
    assert (config.data.name, config.data.options) == ("sample", {})
    assert (config.strategy.name, config.secure_sum.name) == ("fedavg", "plain")
    assert 'name = "sample"' in faults("")["data"]


def test_arrays_become_tuples_and_whole_numbers_floats():
    config = parse(DATA + '[domains]\norder = ["b", "a"]\n[train]\nlr = 1\n')
    assert config.domains.order == ("b", "a")
    assert isinstance(config.train.lr, float)


def test_options_of_a_plugin_are_its_other_keys():
    config = parse(DATA + '[strategy]\nname = "fedprox"\nmu = 0.1\nservers = [[1], {a = [2]}]')
    assert config.strategy.options == {"mu": 0.1, "servers": ((1,), {"a": (2,)})}


def test_an_unknown_key_names_the_nearest():
    found = faults(
        DATA + "[train]\nlrr = 1\n[simulation.faults]\ndroprate = 0.1\n[trian]\nlr = 1\n"
    )
    assert "did you mean 'lr'? allowed: accumulate, " in found["train.lrr"]
    assert "did you mean 'drop_rate'?" in found["simulation.faults.droprate"]
    assert "did you mean 'train'?" in found["trian"]


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("[train]\nepochs = 1.5", "train.epochs", "must be a valid integer; got 1.5"),
        ("[train]\nepochs = true", "train.epochs", "must be a valid integer; got True"),
        ("[train]\nepochs = 0", "train.epochs", "greater than or equal to 1; got 0"),
        ('[train]\nlr = "1"', "train.lr", "must be a valid number; got '1'"),
        ("[train]\nlr = 0", "train.lr", "greater than 0; got 0"),
        ("[train]\nlr = nan", "train.lr", "finite number; got nan"),
        ("[train]\nlr = inf", "train.lr", "finite number; got inf"),
        ("[shards]\nalpha = inf", "shards.alpha", "finite number; got inf"),
        ("[round]\ndeadline_s = nan", "round.deadline_s", "finite number; got nan"),
        ('[train]\ndevice = "gpu"', "train.device", "'auto', 'cpu' or 'cuda'; got 'gpu'"),
        ("[train]\nwarmup_rate = 1.1", "train.warmup_rate", "less than or equal to 1; got 1.1"),
        ("[run]\nseed = -1", "run.seed", "greater than or equal to 0; got -1"),
        ("[run]\nseed = 9223372036854775808", "run.seed", "less than 9223372036854775808"),
        ('[run]\nname = "../x"', "run.name", "pattern"),
        ("[[train]]\nlr = 1", "train", "must be a table; got ({'lr': 1},)"),
        ("[strategy]\nname = 3", "strategy.name", "must be a valid string; got 3"),
        ('[strategy]\nname = ""', "strategy.name", "at least 1 character"),
        ('[domains]\norder = "a"', "domains.order", "must be an array; got 'a'"),
        ('[domains.groups]\na = ["x", 3]', "domains.groups.a.1", "valid string; got 3"),
    ],
)
def test_a_fault_has_its_place_and_what_was_got(line, place, words):
    found = faults(DATA + line)
    assert list(found) == [place]
    assert found[place].startswith(f"[{place}] ")
    assert words in found[place]


def test_a_table_that_is_a_value_is_called_no_table():
    assert faults('data = "sample"')["data"] == "[data] must be a table; got 'sample'"


def test_all_faults_come_at_once():
    text = DATA + '[train]\nlrr = 1\nepochs = 0\n[round]\nweight = "x"\n[nope]\n'
    found = faults(text)
    assert set(found) == {"train.lrr", "train.epochs", "round.weight", "nope"}
    with pytest.raises(ConfigError, match="4 faults in the config:\n  \\["):
        parse(text)


@pytest.mark.parametrize(
    "text", ["x", "[data", 'a = "', DATA + DATA, "[data]\nname = 'a'\nname = 'b'"]
)
def test_what_is_not_toml_is_one_fault_of_the_file(text):
    found = faults(text)
    assert list(found) == [""]
    assert found[""].startswith("the file is not valid TOML: ")


def test_a_config_cannot_be_changed():
    config = parse(DATA)
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 2.0
    with pytest.raises(ValueError, match="frozen"):
        config.run = None


def test_options_are_a_copy():
    config = parse(DATA + '[strategy]\nname = "fedprox"\nmu = 0.1')
    config.strategy.options["mu"] = 5
    assert config.strategy.options == {"mu": 0.1}


def test_suggest_lists_what_is_allowed():
    assert (
        suggest("fedavgg", ["median", "fedavg"]) == "did you mean 'fedavg'? allowed: fedavg, median"
    )
    assert suggest("zzz", ["b", "a"]) == "allowed: a, b"
    assert suggest("zzz", []) == "allowed: nothing"


def test_a_plug_in_table_without_a_name_means_the_default_plug_in():
    config = parse('[data]\nname = "sample"\n[strategy]\nmomentum = 0.5')
    assert config.strategy.name == "fedavg"
    assert config.strategy.options == {"momentum": 0.5}
