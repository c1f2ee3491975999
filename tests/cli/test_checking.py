import pytest

from perennial.cli.checking import describe
from perennial.core.errors import ConfigError, DataError

DATA = '[data]\nname = "sample"\n'


def lines(text):
    first, *rest = describe(text).splitlines()
    assert first == "config is sound:"
    return dict(line.split(maxsplit=1) for line in rest)


def test_the_sample_in_words():
    found = lines(DATA + "[round]\nrounds = 5\ncohort = 2\n[shards]\nsplit = 'dirichlet'")
    assert found["domains"].startswith("6: ")
    assert found["labels"] == "36"
    assert found["clients"] == "4, dealt dirichlet; 2 asked in a round"
    assert found["rounds"] == "6 per domain (5 and 1 of the continual methods), 36 in all"
    assert found["continual"] == "replay, ewc, analytic_head"
    assert "without" not in found
    assert found["model"].startswith("encoder_classifier; strategy fedavg; privacy none")
    assert found["updates"] == "in the clear: the server sees every update"
    assert found["data"].startswith("sample: ")


def test_rounds_are_those_of_the_methods_in_force():
    named = '[continual]\nname = "ewc"'
    assert lines(DATA + named)["continual"] == "ewc"
    assert lines(DATA + named + "\n[round]\nrounds = 5")["rounds"] == "5 per domain, 30 in all"


def test_default_methods_that_are_left_out_are_named_and_why():
    few = '[secure_sum]\nname = "bfv"\nclip = 0.3\nbits = 8\n[round]\nmax_weight = 500.0\n'
    found = lines(DATA + few)
    assert found["continual"] == "replay"
    assert found["without"].startswith("ewc, analytic_head: [secure_sum] bits = 8 are too few")
    assert "write bits = 16" in found["without"]
    assert "without" not in lines(DATA + few.replace("8\n", "16\n"))
    named = '[continual]\nname = "chain"\nmethods = [{name = "replay"}]'
    assert "without" not in lines(DATA + few + named)
    users = "[user_privacy]\nname = 'central'\nepsilon = 3.0\ndelta = 1e-3\n"
    users += "noise_multiplier = 4.0\nclip = 1.0\n[round]\nweight = 'uniform'"
    found = lines(DATA + users)
    assert found["continual"] == "replay"
    assert found["without"].startswith("ewc, analytic_head: [user_privacy] 'central' adds noise")


def test_a_joint_run_has_one_domain():
    found = lines(DATA + "[domains]\njoint = true")
    assert found["domains"] == "1: all"
    assert found["labels"] == "36"


def test_faults_of_the_config_come_before_the_data_is_read():
    with pytest.raises(ConfigError, match=r"data.train"):
        describe('[data]\nname = "csv"')


def test_data_that_is_not_there():
    with pytest.raises(DataError, match=r"nowhere.csv"):
        describe('[data]\nname = "csv"\ntrain = "nowhere.csv"')


def test_a_domain_that_is_not_there():
    with pytest.raises(DataError, match="no domain 'moon'"):
        describe(DATA + '[domains]\norder = ["moon"]')


def test_a_split_that_the_data_does_not_allow():
    split = "[shards]\nsplit = 'label'\nnum_clients = 2\nlabels_per_client = 2"
    with pytest.raises(DataError, match="must hold 6 labels; raise labels_per_client to 3"):
        describe(DATA + split)
    assert lines(DATA + split.replace("_client = 2", "_client = 3"))["clients"].startswith(
        "2, dealt label"
    )
    with pytest.raises(DataError, match="sharding column"):
        describe(DATA + "[shards]\nsplit = 'column'")


def test_a_pipeline_of_completions_has_no_labels(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = '{"prompt": "p%d", "completion": "c%d", "domain": "d"}\n'
    path.write_text("".join(row % (i, i) for i in range(20)))
    text = f"""
    [data]
    name = "jsonl"
    train = "{path}"
    prompt = "prompt"
    completion = "completion"
    [model]
    name = "causal_lm"
    base = "somewhere"
    """
    assert lines(text)["labels"] == "0"


def test_slices_have_ranks_for_all_domains_of_the_data():
    slices = '[continual]\nname = "elastic_mask"\nmode = "slices"\nrank_per_domain = 2\n'
    with pytest.raises(ConfigError, match=r"\[model.rank\] must be at least 12: each of 6 domains"):
        describe(DATA + slices)  # of the 8 that a model has by default
    assert lines(DATA + slices + "[model]\nname = 'encoder_classifier'\nrank = 12")["domains"]
