"""Pairs of tables that would break a promise of privacy are refused with the config."""

import pytest
import tomli_w

from perennial.core import check
from perennial.core.errors import ConfigError
from perennial.core.private import Noise

EXAMPLE = """
[privacy]
name = "dp_sgd"
epsilon = 3.0
delta = 1e-5
noise_multiplier = 2.0
sample_rate = 0.5
"""
USER = """
[user_privacy]
name = "{name}"
epsilon = 3.0
delta = 1e-5
noise_multiplier = 2.0
clip = 1.0
"""
CENTRAL = USER.format(name="central")
DISTRIBUTED = USER.format(name="distributed") + "clients = 4\n"
UNIFORM = '[round]\nweight = "uniform"\n'
BFV = '[secure_sum]\nname = "bfv"\nclip = 0.1\nbits = 16\ncapacity = 8\nmin_clients = 4\n'
SUMS = {
    "plain": "",
    "bfv": BFV,
    "masks": BFV.replace("bfv", "masks"),
    "ckks": '[secure_sum]\nname = "ckks"\nclip = 0.1\ncapacity = 8\nmin_clients = 4\n',
}
SIX = "[shards]\nnum_clients = 6\n"

GREEDY = """
import numpy as np
from perennial.continual import none
from perennial.core.parts import Continual
from dataclasses import replace

def build() -> Continual:
    return replace(none.build(), private=False)
"""


def config(*tables):
    return '[data]\nname = "sample"\n[model]\nname = "tiny"\n' + "".join(tables)


def faults(*tables):
    with pytest.raises(ConfigError) as caught:
        check.read(config(*tables))
    return {fault.place: str(fault) for fault in caught.value.faults}


@pytest.mark.parametrize("promise", [EXAMPLE, CENTRAL])
def test_a_private_run_with_uniform_weights_passes(promise):
    check.read(config(promise, UNIFORM))


@pytest.mark.parametrize("promise", [EXAMPLE, CENTRAL])
def test_weights_by_count_and_scores_of_clients_are_leaks(promise):
    found = faults(promise, '[evaluate]\nwhere = "clients"\n')
    assert set(found) == {"round.weight", "evaluate.where"}
    assert 'write weight = "uniform"' in found["round.weight"]
    check.read(config('[evaluate]\nwhere = "clients"\n'))


@pytest.mark.parametrize("line", ["balanced = true", "replay_ratio = 2.0"])
def test_what_weighs_a_record_by_the_others_is_refused_where_records_are_private(line):
    train = f"[train]\n{line}\n"
    assert set(faults(EXAMPLE, UNIFORM, train)) == {"train." + line.split()[0]}
    check.read(config(CENTRAL, UNIFORM, train))  # there a client's whole update is covered
    check.read(config(train))


@pytest.mark.parametrize("missing", ["delta", "epsilon", "noise_multiplier"])
def test_nothing_that_a_promise_needs_has_a_default(missing):
    for table, promise in (("privacy", EXAMPLE), ("user_privacy", CENTRAL)):
        lines = [line for line in promise.splitlines(True) if not line.startswith(missing)]
        assert f"{table}.{missing}" in faults("".join(lines), UNIFORM)


def test_a_continual_method_that_does_not_charge_is_refused(tmp_path, monkeypatch):
    (tmp_path / "greedy_memory.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    greedy = '[continual]\nname = "greedy_memory.x"\n'.replace(".x", "")
    greedy = greedy.replace("greedy_memory", "greedy_pack.greedy_memory")
    (tmp_path / "greedy_pack").mkdir()
    (tmp_path / "greedy_memory.py").rename(tmp_path / "greedy_pack" / "greedy_memory.py")
    (tmp_path / "greedy_pack" / "__init__.py").write_text("")
    found = faults(EXAMPLE, UNIFORM, greedy)
    assert set(found) == {"continual.name"}
    assert "Phase.summed" in found["continual.name"]
    check.read(config(greedy))


@pytest.mark.parametrize("sums", ["bfv", "masks"])
def test_noise_inside_the_sum_reaches_the_plugin(sums):
    found = check.read(config(DISTRIBUTED, UNIFORM, SIX, SUMS[sums]))
    assert check.build(found, "secure_sum").noise == Noise(1.0, 2.0, 4)
    found = check.read(config(CENTRAL, UNIFORM, SIX, SUMS[sums]))
    assert check.build(found, "secure_sum").noise.multiplier == 0.0
    assert check.build(check.read(config(SIX, UNIFORM, SUMS[sums])), "secure_sum").noise is None


@pytest.mark.parametrize("sums", ["plain", "ckks"])
def test_sums_that_cannot_hold_noise_are_refused(sums):
    found = faults(DISTRIBUTED, UNIFORM, SIX, SUMS[sums])
    assert "'bfv' or 'masks'" in found["user_privacy.name"]


def test_central_noise_needs_a_bound_on_one_client():
    assert "user_privacy.name" in faults(CENTRAL, UNIFORM, SIX, SUMS["ckks"])
    check.read(config(CENTRAL, UNIFORM, SIX, SUMS["plain"]))


def test_no_sum_with_less_noise_than_was_counted_on_is_opened():
    few = SUMS["bfv"].replace("min_clients = 4", "min_clients = 3")
    found = faults(DISTRIBUTED, UNIFORM, SIX, few)
    assert "min_clients = 3" in found["user_privacy.clients"]


def test_a_rule_that_is_no_mean_has_no_bound():
    found = faults(CENTRAL, UNIFORM, '[strategy]\nname = "median"\n')
    assert set(found) == {"strategy.name"}


@pytest.mark.parametrize(
    "noise", ["{clip = 1.0, multiplier = 0.0, clients = 1}", "1.0", '"x"', "[]"]
)
@pytest.mark.parametrize("sums", SUMS)
def test_noise_is_no_option_of_a_file(noise, sums):
    table = SUMS[sums] or '[secure_sum]\nname = "plain"\n'
    for promise in (CENTRAL, ""):
        found = faults(promise, UNIFORM, SIX, f"{table}noise = {noise}\n")
        wanted = "[secure_sum.noise] unknown option; write [user_privacy] instead"
        assert found == {"secure_sum.noise": wanted}


@pytest.mark.parametrize("promise", [CENTRAL, DISTRIBUTED])
def test_a_users_delta_is_at_most_one_over_the_clients(promise):
    tables = (UNIFORM, SIX, SUMS["bfv"])
    check.read(config(promise.replace("1e-5", "0.16"), *tables))
    found = faults(promise.replace("1e-5", "0.17"), *tables)
    assert set(found) == {"user_privacy.delta"}
    assert "1/6; got 0.17" in found["user_privacy.delta"]
    assert "write delta = 2e-02 or less" in found["user_privacy.delta"]


@pytest.mark.parametrize("sums", ["bfv", "masks"])
def test_neighbours_too_few_to_see_the_noise_are_refused(sums):
    eight = SIX.replace("6", "8")
    table = SUMS[sums].replace("min_clients = 4", "min_clients = 6")
    promise = DISTRIBUTED.replace("clients = 4", "clients = 6")
    check.read(config(promise, UNIFORM, eight, table))
    check.read(config(promise, UNIFORM, eight, f"{table}neighbours = 5\n"))
    check.read(config(CENTRAL, UNIFORM, eight, f"{table}neighbours = 2\n"))
    found = faults(promise, UNIFORM, eight, f"{table}neighbours = 4\n")
    assert set(found) == {"secure_sum.neighbours"}


@pytest.mark.parametrize("promise", [CENTRAL, DISTRIBUTED])
def test_a_clip_that_is_worth_no_level_is_refused(promise):
    found = faults(promise.replace("clip = 1.0", "clip = 1e-6"), UNIFORM, SIX, SUMS["bfv"])
    assert "levels or more" in found["user_privacy.clip"]


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ({"name": "replay", "policy": "herding"}, "policy = 'auto'"),
        ({"name": "analytic_head", "encoder": "refresh"}, "encoder = 'base' or 'first'"),
        ({"name": "analytic_head", "encoder": "both"}, "encoder = 'base' or 'first'"),
    ],
)
def test_what_compares_records_is_refused_with_what_to_write(method, remedy):
    tables = tomli_w.dumps({"continual": method})
    assert remedy in faults(EXAMPLE, UNIFORM, tables)["continual.name"]
    chain = {"continual": {"name": "chain", "methods": [{"name": "ewc"}, method]}}
    found = faults(EXAMPLE, UNIFORM, tomli_w.dumps(chain))["continual.name"]
    assert f"{method['name']}: write {remedy}" in found
    assert "ewc" not in found


def test_limits_that_count_records_are_refused_in_a_private_run():
    few = {"name": "replay", "per_class": 20, "capacity": 9}
    found = faults(EXAMPLE, UNIFORM, tomli_w.dumps({"continual": few}))
    assert {"continual.per_class", "continual.capacity"} == found.keys()
    assert "write share" in found["continual.per_class"]
    chain = tomli_w.dumps({"continual": {"name": "chain", "methods": [few]}})
    assert "continual.methods.replay.capacity" in faults(EXAMPLE, UNIFORM, chain)
    share = tomli_w.dumps({"continual": {"name": "replay", "share": 0.2}})
    check.read(config(EXAMPLE, UNIFORM, share))
    check.read(config(UNIFORM, tomli_w.dumps({"continual": few})))
