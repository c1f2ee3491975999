"""What a client charges before it trains, and what leaves it in a private run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from asking import NOTHING, answered, client, delta, pact_of, sealing_of, start, task_of

from perennial.client.parties import Own
from perennial.client.promise import once, one_row_each, strata_of
from perennial.client.site import Site
from perennial.core.errors import BudgetError, PrivacyError, RunError
from perennial.core.private import LEDGER
from perennial.core.values import Records

TEXT = """
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 3
split = "iid"
[train]
batch_size = 16
epochs = 2
[round]
weight = "uniform"
"""
EXAMPLE = """
[privacy]
name = "dp_sgd"
epsilon = 3.0
delta = 1e-3
noise_multiplier = 2.0
sample_rate = 0.5
"""
CENTRAL = """
[user_privacy]
name = "central"
epsilon = 3.0
delta = 1e-3
noise_multiplier = 4.0
clip = 0.01
"""


def made(text=TEXT + EXAMPLE, own=None):
    torch.manual_seed(5)
    if "[continual]" not in text:
        text += '[continual]\nname = "none"\n'
    return Site(text, {}, own or Own())


@pytest.fixture(scope="module")
def site():
    return made()


def charges(mine):
    path = mine.store.folder / LEDGER
    if not path.exists():
        return []
    return [e for e in map(json.loads, path.read_text().splitlines()) if e["event"] == "charge"]


def test_a_round_is_charged_and_says_so(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    body, metrics = answered(site, mine, task, params, NOTHING)
    assert len(charges(mine)) == 1
    assert set(metrics) == {"weight", "epsilon.example", "releases.example"}
    assert metrics["weight"] == 1.0
    assert 0.0 < metrics["epsilon.example"] < 3.0
    assert delta(site, body, task).all(), "noise moves every value"


def test_nothing_that_the_ledger_does_not_cover_leaves(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    _, metrics = answered(site, mine, task, start(site, task), NOTHING)
    assert not {"loss", "seconds", "seal_seconds"} & set(metrics)
    kept = (mine.store.folder / "answer.bin").read_bytes()
    assert b'"loss": NaN' in kept


def test_scores_do_not_leave_whatever_the_server_asks(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    with pytest.raises(PrivacyError, match="scores"):
        site.evaluate(mine, task, start(site, task), NOTHING)


def test_the_charge_is_on_disk_before_the_first_step(site, tmp_path, monkeypatch):
    task, mine = task_of(site), client(site, tmp_path)
    params, seen = start(site, task), []

    def batches(*_):
        seen.append(len(charges(mine)))
        raise RuntimeError("the power went")

    example = replace(site.promise.example, batches=batches)
    monkeypatch.setattr(site, "promise", replace(site.promise, example=example))
    with pytest.raises(RuntimeError, match="the power went"):
        answered(site, mine, task, params, NOTHING)
    assert seen == [1]
    assert len(charges(mine)) == 1
    monkeypatch.undo()
    answered(site, mine, task, params, NOTHING)
    assert len(charges(mine)) == 2, "the server saw that it failed, and that depends on records"


def test_a_resend_is_free_and_the_same_bytes(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    first = answered(site, mine, task, params, NOTHING)
    again = replace(task, ticket=replace(task.ticket, attempt=1))
    assert answered(site, mine, again, params, NOTHING) == first
    assert len(charges(mine)) == 1


def test_another_question_is_another_charge_with_other_noise(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    first, _ = answered(site, mine, task, params, NOTHING)
    other, _ = answered(site, client(site, tmp_path / "b"), task, params, NOTHING)
    assert first != other, "noise is drawn anew"
    answered(site, mine, task, params + np.float32(0.1), NOTHING)
    assert len(charges(mine)) == 2


def test_a_round_above_the_target_trains_nothing(tmp_path):
    site = made(TEXT + EXAMPLE.replace("epsilon = 3.0", "epsilon = 0.05"))
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    site.model.load(np.zeros_like(params))
    with pytest.raises(BudgetError):
        answered(site, mine, task, params, NOTHING)
    assert charges(mine) == []
    assert not (mine.store.folder / "answer.bin").exists()


def test_the_end_of_a_domain_says_what_is_left(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    answered(site, mine, task, params, NOTHING)
    ended = replace(task, ticket=replace(task.ticket, round=3, manifest="summary-0"))
    body, metrics = answered(site, mine, ended, params, NOTHING, "finish")
    assert body == b""
    assert {"epsilon.example", "left.example", "releases.example", "weight"} == set(metrics)
    assert metrics["releases.example"] == 1
    assert metrics["left.example"] >= 0
    assert len(charges(mine)) == 1


def test_a_run_without_noise_after_a_promise_is_refused(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    answered(site, mine, task, params, NOTHING)
    bare = made(TEXT)
    later = replace(task, ticket=replace(task.ticket, round=1))
    with pytest.raises(PrivacyError, match="holds a promise of privacy for each example"):
        answered(bare, client(bare, tmp_path), later, params, NOTHING)


@pytest.mark.parametrize(
    ("text", "own", "words"),
    [
        (TEXT, Own(most_epsilon=1.0), "promises nothing of the kind"),
        (TEXT + EXAMPLE, Own(most_epsilon=1.0), "epsilon is at most 1"),
        (TEXT + EXAMPLE, Own(most_epsilon=3.0, most_delta=1e-4), "delta is at most 0.0001"),
        # The server would see the update itself.
        (TEXT + CENTRAL, Own(most_epsilon=3.0), "promises nothing of the kind"),
        # One unit that is kept does not make up for one that is not.
        (
            TEXT + EXAMPLE + CENTRAL.replace("epsilon = 3.0", "epsilon = 900.0"),
            Own(most_epsilon=3.0),
            "epsilon 900 per user",
        ),
    ],
)
def test_the_operators_limit_is_no_servers_to_raise(text, own, words):
    with pytest.raises(PrivacyError, match=words):
        made(text, own)


def test_a_run_within_the_operators_limit_is_let_in():
    made(TEXT + EXAMPLE, Own(most_epsilon=3.0, most_delta=1e-3))
    made(TEXT + EXAMPLE + CENTRAL, Own(most_epsilon=3.0))


@pytest.mark.parametrize("promise", [EXAMPLE, CENTRAL])
@pytest.mark.parametrize("wrong", [0, 1, -1, +1])
def test_the_servers_word_on_the_size_is_no_discount(promise, wrong, tmp_path):
    site = made(TEXT + promise)
    task, mine = task_of(site), client(site, tmp_path)
    params, sealing = start(site, task), sealing_of(site, mine, task)
    size = wrong if wrong in (0, 1) else sealing.pact.size + wrong
    lie = replace(sealing, pact=replace(sealing.pact, size=size))
    with pytest.raises(RunError, match="the pact must be for"):
        site.train(mine, task, params, NOTHING, lie)
    assert charges(mine) == []
    assert not (mine.store.folder / "answer.bin").exists()
    site.train(mine, task, params, NOTHING, sealing)
    assert len(charges(mine)) == 1
    with pytest.raises(RunError):  # what is kept is not sealed for another size either
        site.train(
            mine, task, params, NOTHING, replace(lie, pact=replace(lie.pact, session="1" * 32))
        )


def test_nothing_of_a_promise_is_told_in_a_run_that_makes_none(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    answered(site, mine, task, params, NOTHING)
    bare = made(TEXT)
    other = client(bare, tmp_path)
    with pytest.raises(PrivacyError, match="holds a promise"):
        bare.evaluate(other, task, params, NOTHING)
    ended = replace(task, ticket=replace(task.ticket, round=3, manifest="summary-0"))
    with pytest.raises(PrivacyError, match="holds a promise"):
        answered(bare, other, ended, params, NOTHING, "finish")


def test_a_record_pays_under_its_first_name_whatever_a_run_calls_it(tmp_path):
    split = made(TEXT + EXAMPLE)
    task, mine = task_of(split), client(split, tmp_path)
    _, before = answered(split, mine, task, start(split, task), NOTHING)
    joined = made(TEXT + EXAMPLE + "[domains]\njoint = true\n")
    same = client(joined, tmp_path)
    task = task_of(joined)
    params = start(joined, task)
    _, after = answered(joined, same, task, params, NOTHING)
    first = charges(mine)[0]["spends"][0]["cohort"]
    assert first in {spend["cohort"] for spend in charges(mine)[1]["spends"]}
    assert after["epsilon.example"] > before["epsilon.example"]

    def go_on():
        for more in range(1, 9):
            answered(joined, same, task, params + np.float32(more), NOTHING)

    with pytest.raises(BudgetError):
        go_on()


def test_a_ledger_without_the_names_of_its_cohorts_is_refused(site, tmp_path):
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    answered(site, mine, task, params, NOTHING)
    (mine.store.folder / "cohorts.json").unlink()
    later = replace(task, ticket=replace(task.ticket, round=1))
    with pytest.raises(PrivacyError, match=r"cohorts.json must say"):
        answered(site, mine, later, params, NOTHING)


def test_a_user_keeps_the_clip_and_counts_as_one(tmp_path):
    site = made(TEXT + CENTRAL)
    task, mine = task_of(site), client(site, tmp_path)
    body, metrics = answered(site, mine, task, start(site, task), NOTHING)
    assert set(metrics) == {"weight", "epsilon.user", "releases.user"}
    assert metrics["weight"] == 1.0
    assert np.linalg.norm(delta(site, body, task).astype(float)) <= 0.01
    assert len(charges(mine)) == 1


def test_both_units_have_accounts_of_their_own(tmp_path):
    site = made(TEXT + EXAMPLE + CENTRAL)
    task, mine = task_of(site), client(site, tmp_path)
    _, metrics = answered(site, mine, task, start(site, task), NOTHING)
    units = {f"{word}.{unit}" for word in ("epsilon", "releases") for unit in ("user", "example")}
    assert set(metrics) == {"weight", *units}
    assert {entry["unit"] for entry in charges(mine)} == {"user", "example"}


COUNTING = """
import numpy as np
from dataclasses import replace
from perennial.continual import none
from perennial.core.parts import Continual

def build(*, honest: bool = True) -> Continual:
    def finish(memory, shard, model, phase):
        rows = np.ones((len(shard), 4), np.float32)
        return phase.summed([rows], shard, 1.0) if honest else rows.sum(0)

    return replace(none.build(), size=lambda manifest: 4, finish=finish)
"""


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """A continual method that sums four values a record at the end of a domain."""
    package = tmp_path / "counting_pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rows.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    return '[continual]\nname = "counting_pack.rows"\n'


def finished(site, mine):
    task = task_of(site)
    ended = replace(task, ticket=replace(task.ticket, round=3, manifest="summary-4"))
    sealing = replace(sealing_of(site, mine, ended), pact=replace(pact_of(site, ended), size=4))
    return ended, site.finish(mine, ended, start(site, ended), NOTHING, sealing)


def test_statistics_of_records_are_charged_and_noised(counting, tmp_path):
    site = made(TEXT + EXAMPLE + counting)
    mine = client(site, tmp_path / "mine")
    ended, (body, _) = finished(site, mine)
    (entry,) = charges(mine)
    assert entry["place"]["kind"] == "statistics"
    found = np.frombuffer(body, "<f4")
    shard = site.shards.of(mine.index, ended.domain.name, "train")
    # rows of norm 2 are cut to 1, and the noise has twice that
    assert found == pytest.approx(len(shard) / 2, abs=12)
    assert len(set(found.tolist())) == 4


def test_statistics_that_nobody_charged_do_not_leave(counting, tmp_path):
    site = made(TEXT + EXAMPLE + counting + "honest = false\n")
    mine = client(site, tmp_path / "mine")
    with pytest.raises(PrivacyError, match="gave 4 values"):
        finished(site, mine)
    assert not (mine.store.folder / "answer.bin").exists()
    bare = made(TEXT + counting + "honest = false\n")
    finished(bare, client(bare, tmp_path / "other"))


def records(*pairs):
    ids = tuple(id_ for id_, _ in pairs)
    return Records(ids, ids, ids, tuple(name for _, name in pairs), ("",) * len(ids))


def test_replayed_records_pay_as_their_own_cohort():
    own = records(("a", "new"), ("b", "new"))
    strata = strata_of(own + records(("x", "old"), ("y", "older"), ("z", "old")), "new", own)
    assert strata.cohorts == ("new", "old", "older")
    assert strata.of.tolist() == [0, 0, 1, 2, 1]
    assert strata.sizes == (2, 2, 1)


def test_a_shard_of_no_record_is_a_cohort_of_none():
    strata = strata_of(records(), "new", records())
    assert strata.cohorts == ("new",)
    assert strata.sizes == (0,)


def test_no_record_is_drawn_twice_in_a_step():
    own = records(("a", "new"), ("b", "new"))
    assert once(own) is own
    again = once(own + records(("x", "old"), ("a", "old")))
    assert again.ids == ("a", "b", "x")
    assert again.domains == ("new", "new", "old")


def test_a_noisy_sum_takes_one_row_for_each_record():
    two, row = records(("a", "x"), ("b", "x")), np.ones((1, 3), np.float32)
    assert len(list(one_row_each([row, row], two))) == 2
    with pytest.raises(PrivacyError, match="one row for each of 2 records"):
        list(one_row_each([row, row, row], two))
    with pytest.raises(PrivacyError, match="each once"):
        list(one_row_each([row], two + two))
