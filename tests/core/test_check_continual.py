"""What `[continual]` means where it is not written, and what does not go with a method."""

import pytest

from perennial.core import check
from perennial.core.check_continual import need_ranks
from perennial.core.errors import ConfigError

BASE = """
[data]
name = "sample"
[model]
name = "tiny"
"""
BFV = '[secure_sum]\nname = "bfv"\nclip = 0.3\n[round]\nmax_weight = 100.0\n'
CENTRAL = """
[user_privacy]
name = "central"
epsilon = 3.0
delta = 1e-3
noise_multiplier = 4.0
clip = 1.0
[round]
weight = "uniform"
"""


def faults(*parts):
    with pytest.raises(ConfigError) as caught:
        check.read("\n".join([BASE, *parts]))
    return {fault.place: str(fault) for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("", ["replay", "ewc", "analytic_head"]),
        (BFV + "[secure_sum]\nbits = 16\n", ["replay", "ewc", "analytic_head"]),
        (BFV, ["replay"]),  # sums of 8 bits: too few for a Fisher or statistics
        (CENTRAL, ["replay"]),
        ('[continual]\nname = "none"\n', ["none"]),
        ('[continual]\nname = "chain"\nmethods = [{name = "ewc"}]\n', ["ewc"]),
    ],
)
def test_methods_where_none_is_named(text, methods):
    text = text.replace("[secure_sum]\nbits", "").replace("clip = 0.3\n", "clip = 0.3\n@")
    bits = "bits = 16\n" if " = 16" in text else ""
    text = text.replace(" = 16\n", "").replace("@", bits)
    config = check.read(BASE + text)
    assert check.methods(config) == methods
    assert check.build(config, "continual") is not None


def test_a_causal_model_has_no_head_to_sum_for():
    text = BASE.replace('name = "tiny"', 'name = "causal_lm"\nbase = "nowhere"')
    assert check.methods(check.read(text)) == ["replay", "ewc"]
    with pytest.raises(ConfigError, match="needs a model with labels"):
        check.read(text + '[continual]\nname = "analytic_head"\n')


def test_statistics_do_not_stand_few_bits():
    found = faults(BFV, '[continual]\nname = "analytic_head"\n')
    assert "at least 12" in found["secure_sum.bits"]


def test_noise_for_users_drowns_statistics_and_moves_what_stands_still():
    for method in ('name = "analytic_head"', 'name = "elastic_mask"\nmode = "slices"'):
        found = faults(CENTRAL, f"[continual]\n{method}\n")
        assert "noise for whole users" in found["continual.name"]


@pytest.mark.parametrize("method", ["none", "replay", "ewc", "elastic_mask"])
def test_without_a_round_something_must_learn(method):
    found = faults("[round]\nrounds = 0\n", f'[continual]\nname = "{method}"\n')
    assert "learns nothing by itself" in found["round.rounds"]


def test_an_analytic_head_needs_no_round():
    check.read(BASE + '[round]\nrounds = 0\n[continual]\nname = "analytic_head"\n')


def test_faults_of_a_method_in_a_chain_name_their_place():
    found = faults('[continual]\nmethods = [{name = "replay", per_clas = 3}, {name = "ewcc"}]\n')
    assert any("methods" in place and "per_class" in text for place, text in found.items())


SLICES = '[continual]\nname = "elastic_mask"\nmode = "slices"\nrank_per_domain = 2\n'
IN_A_CHAIN = SLICES.replace("[continual]", "[[continual.methods]]")
NAMED = '[domains]\norder = ["bank", "clinic", "shop"]\n'
GROUPS = '[domains.groups]\na = ["x"]\nb = ["y"]\nc = ["z"]\n'


@pytest.mark.parametrize("domains", [NAMED, GROUPS])
@pytest.mark.parametrize("continual", [SLICES, IN_A_CHAIN])
def test_too_few_ranks_for_the_domains_that_are_named_are_told_beforehand(domains, continual):
    found = faults(domains, continual)  # the tiny model has 4 ranks
    (place,) = found
    assert place == "model.rank"
    for words in ("must be at least 6", "each of 3 domains takes 2 of", "got 4", "'adapters'"):
        assert words in found[place]
    enough = BASE.replace('"tiny"', '"tiny"\nrank = 6')
    check.read(enough + domains + continual)
    check.read(BASE + domains + continual.replace("= 2", "= 1"))
    adapters = continual.replace('"slices"\nrank_per_domain = 2', '"adapters"')
    check.read(BASE + domains + adapters)


def test_how_many_domains_there_are_is_the_data_s_to_say_where_the_config_names_none():
    config = check.read(BASE + SLICES)
    method = check.build(config, "continual")
    need_ranks(config, method, 2)
    with pytest.raises(ConfigError, match=r"\[model.rank\] must be at least 6: each of 3 domains"):
        need_ranks(config, method, 3)
    joint = check.read(BASE + "[domains]\njoint = true\n" + SLICES)
    need_ranks(joint, method, 1)
