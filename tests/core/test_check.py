import pytest

from perennial.core import check
from perennial.core.errors import ConfigError
from perennial.core.parts import Strategy

DATA = '[data]\nname = "sample"\n'

HIDING = """
from perennial.core.parts import SecureSum

class Hiding:
    single_updates = False
    capacity = 0
    min_clients = 3

def build() -> SecureSum:
    return Hiding()
"""


def faults(text):
    with pytest.raises(ConfigError) as caught:
        check.read(DATA + text)
    return {fault.place: str(fault) for fault in caught.value.faults}


def test_a_sound_config_passes_and_is_read_once():
    assert check.read(DATA).run.name == "run"
    assert check.read(DATA) is check.read(DATA)


def test_build_passes_the_options_and_extras():
    config = check.read(DATA + '[strategy]\nname = "fedavg"\nserver_lr = 0.5')
    assert isinstance(check.build(config, "strategy"), Strategy)
    with pytest.raises(ConfigError, match=r"\[strategy.nope\] unknown option"):
        check.build(config, "strategy", nope=1)


def test_faults_of_several_plugins_come_at_once():
    text = """
    [strategy]
    name = "fedavg"
    server_lr = 0
    [model]
    name = "tiny"
    rank = 0
    width = 33
    [privacy]
    name = "plain"
    [continual]
    name = "nonne"
    """
    assert set(faults(text)) == {
        "strategy.server_lr",
        "model.rank",
        "model.width",
        "privacy.name",
        "continual.name",
    }


def test_faults_of_plugins_hide_no_impossible_value():
    assert set(faults("[strategy]\nname = 'x'\n[round]\ncohort = 9")) == {
        "strategy.name",
        "round.cohort",
    }


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (
            "[shards]\nnum_clients = 2\n[round]\ncohort = 3",
            "round.cohort",
            "at most shards.num_clients = 2; got 3",
        ),
        (
            "[shards]\nnum_clients = 2\n[round]\nmin_replies = 3",
            "round.min_replies",
            "at most the 2 clients asked",
        ),
        (
            "[round]\ncohort = 2\nmin_replies = 3",
            "round.min_replies",
            "at most the 2 clients asked",
        ),
        ("[train]\nbatch_size = 4\naccumulate = 5", "train.accumulate", "at most batch_size = 4"),
        ("[domains]\njoint = true\norder = ['a']", "domains.order", "no meaning with joint"),
        (
            "[simulation.faults]\ndrop_rate = 0.6\nnan_rate = 0.5",
            "simulation.faults",
            "at most 1; got 1.1",
        ),
        (
            "[simulation]\nbackend = 'ray'\nstrict_wire = true",
            "simulation.backend",
            "no seeded faults",
        ),
        (
            "[simulation]\nbackend = 'ray'\nfaults.drop_rate = 0.1",
            "simulation.backend",
            "no seeded faults",
        ),
        ("[train]\nprecision = 'bf16'\ndevice = 'cpu'", "train.precision", "'bf16' is for CUDA"),
    ],
)
def test_impossible_values(text, place, words):
    found = faults(text)
    assert list(found) == [place]
    assert words in found[place]


@pytest.mark.parametrize(
    "text",
    [
        "[shards]\nnum_clients = 2\n[round]\ncohort = 2\nmin_replies = 2",
        "[train]\nbatch_size = 4\naccumulate = 4",
        "[domains]\njoint = true",
        "[simulation.faults]\ndrop_rate = 0.5\nnan_rate = 0.5",
        "[simulation]\nbackend = 'ray'",
        "[train]\nprecision = 'bf16'",
    ],
)
def test_what_is_just_possible_passes(text):
    check.read(DATA + text)


def test_a_rule_that_needs_single_updates_and_a_sum_that_hides_them(tmp_path, monkeypatch):
    (tmp_path / "hiding_outside").mkdir()
    (tmp_path / "hiding_outside" / "sum.py").write_text(HIDING)
    monkeypatch.syspath_prepend(tmp_path)
    uniform = '[round]\nweight = "uniform"\n'
    hidden = uniform + '[secure_sum]\nname = "hiding_outside.sum"\n'
    found = faults(hidden + '[strategy]\nname = "median"')
    assert list(found) == ["strategy.name"]
    assert "'median' needs each client's own update" in found["strategy.name"]
    assert "'hiding_outside.sum' hides" in found["strategy.name"]
    check.read(DATA + hidden)
    check.read(DATA + '[strategy]\nname = "median"')


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('[secure_sum]\nname = "bfv"', "secure_sum.clip", "must be given"),
        ('[secure_sum]\nname = "masks"', "secure_sum.clip", "must be given"),
        ('[secure_sum]\nname = "ckks"', "secure_sum.clip", "must be given"),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\nmin_clients = 2',
            "secure_sum.min_clients",
            "greater than or equal to 3",
        ),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\nbits = 10',
            "secure_sum.bits",
            "8, 12 or 16",
        ),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\ncapacity = 16\n[shards]\nnum_clients = 17',
            "secure_sum.capacity",
            "room for shards.num_clients = 17",
        ),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\n[shards]\nnum_clients = 2',
            "secure_sum.min_clients",
            "at most the 2 clients asked",
        ),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\n[round]\ncohort = 2',
            "secure_sum.min_clients",
            "at most the 2 clients asked",
        ),
        ('[secure_sum]\nname = "bfv"\nclip = 1.0', "round.max_weight", "must be given"),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\n[strategy]\nname = "median"',
            "strategy.name",
            "needs each client's own update",
        ),
        (
            '[secure_sum]\nname = "bfv"\nclip = 1.0\nidentities = "no/such/file"',
            "secure_sum.identities",
            "readable",
        ),
    ],
)
def test_what_an_encrypted_sum_cannot_do_is_refused(text, place, words):
    found = faults(text)
    assert place in found
    assert words in found[place]


def test_an_encrypted_sum_that_can_work_passes():
    sealed = '[secure_sum]\nname = "bfv"\nclip = 1.0\ncapacity = 16\n[shards]\nnum_clients = 16\n'
    check.read(DATA + sealed + "[round]\nmax_weight = 50.0")
    check.read(DATA + sealed + '[round]\nweight = "uniform"')


@pytest.mark.parametrize(("bits", "capacity"), [(16, 2**20), (12, 2**20), (8, 2**20)])
def test_any_capacity_up_to_a_million_leaves_room_for_one_digit(bits, capacity):
    table = f'[secure_sum]\nname = "bfv"\nclip = 1.0\nbits = {bits}\ncapacity = {capacity}\n'
    check.read(DATA + table + '[round]\nweight = "uniform"')
