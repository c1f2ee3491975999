"""What a task means for one client: its phase, its schedule, and how a domain ends."""

import math
from dataclasses import replace

import pytest
from asking import NOTHING, client, task_of

from perennial.client.phases import ending
from perennial.client.site import Site
from perennial.core.continual import Continual
from perennial.core.errors import RunError
from perennial.core.parts import added
from perennial.core.seeds import derive
from perennial.core.wire import FINISH, PEAK

TEXT = """
[run]
seed = 5
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 2
[continual]
name = "none"
"""


@pytest.fixture(scope="module")
def site():
    return Site(TEXT, {})


def asked_in(site, tmp_path, round_, rounds=5, own=2, **changes):
    """What is asked in `round_` of a domain of `rounds`, the last `own` of them the method's."""
    task = task_of(site)
    task = replace(task, rounds=rounds, ticket=replace(task.ticket, round=round_), **changes)
    asked = site.asked(client(site, tmp_path, 1), task, "a run-1234")
    return replace(asked, continual=Continual(start=lambda phase: phase, rounds=own))


def test_a_phase_says_of_which_run_and_client_it_is(site, tmp_path):
    asked = asked_in(site, tmp_path, 0, counted=(0, 2))
    phase = asked.phase(NOTHING, pytest.fail)
    assert phase.run == "a run-1234"
    assert phase.counted == {0, 2}
    assert phase.folder == asked.client.store.folder
    assert phase.seed == derive(5, "client", 1, "domain", 0)
    assert (phase.private, phase.tuning) == (False, False)
    assert phase.summed is added  # nothing is promised: rows are added as they are
    assert set(phase.held().ids) == set(asked.shard.ids)


@pytest.mark.parametrize(
    ("table", "stiffest"),
    [
        ("", math.inf),
        ('optimizer = "sgd"\nlr = 0.5', 2.0),
        ('optimizer = "sgd"\nlr = 0.5\nhead_lr = 4.0', 0.25),
    ],
)
def test_plain_sgd_can_follow_pulls_up_to_one_over_its_rate(table, stiffest, tmp_path):
    site = Site(f"{TEXT}[train]\n{table}\n", {})
    assert asked_in(site, tmp_path, 0).phase(NOTHING, pytest.fail).stiffest == stiffest


@pytest.mark.parametrize(
    ("round_", "place"), [(0, (0, 3)), (2, (2, 3)), (3, (0, 2)), (4, (1, 2)), (5, (5, 3))]
)
def test_rounds_of_the_domain_and_of_the_method_have_a_schedule_each(site, tmp_path, round_, place):
    asked = asked_in(site, tmp_path, round_)
    schedule = asked.schedule()
    assert (schedule.round, schedule.rounds) == place
    assert asked.tuning == asked.phase(NOTHING, added).tuning == (round_ in (3, 4))
    own = tuple(asked.task.labels.index(label) for label in asked.task.domain.labels)
    assert asked.answers() == (() if asked.tuning else own)  # tuning looks at all labels
    assert asked.phase(NOTHING, added).answers == own  # what the domain was learnt with, at its end


def test_a_domain_learnt_beside_old_records_is_learnt_among_all_labels(tmp_path):
    asked = asked_in(Site(f'{TEXT}[train]\nloss_over = "domain"\n', {}), tmp_path, 0)
    replaying = replace(asked, continual=replace(asked.continual, replays=True))
    assert replaying.answers() == asked.answers() != ()  # of its new records
    assert asked.phase(NOTHING, added).answers == asked.answers()
    assert replaying.phase(NOTHING, added).answers == ()


def test_a_task_whose_domain_has_a_label_that_no_head_has_is_refused(site, tmp_path):
    asked = asked_in(site, tmp_path, 0)
    domain = replace(asked.task.domain, labels=(*asked.task.domain.labels, "nonesuch"))
    broken = replace(asked, task=replace(asked.task, domain=domain))
    with pytest.raises(RunError, match="'nonesuch' is not among them"):
        broken.answers()


def with_ratio(asked, ratio):
    table = asked.config.train.model_copy(update={"replay_ratio": ratio})
    return replace(asked, config=asked.config.model_copy(update={"train": table}))


def test_a_round_replays_some_records_for_each_new_one_and_others_in_the_next(site, tmp_path):
    fresh = [True] * 4 + [False] * 20
    rounds = [with_ratio(asked_in(site, tmp_path, r), 1.5).rehearsed(fresh) for r in range(3)]
    for rows in rounds:
        assert rows[:4].tolist() == [0, 1, 2, 3]
        assert len(set(rows[4:].tolist())) == 6
        assert set(rows[4:].tolist()) <= set(range(4, 24))
    assert rounds[0].tolist() != rounds[1].tolist()
    again = with_ratio(asked_in(site, tmp_path, 1), 1.5).rehearsed(fresh)
    assert again.tolist() == rounds[1].tolist()  # a round that is asked for twice is the same


@pytest.mark.parametrize(
    ("round_", "ratio", "new", "old"),
    [(0, 0.0, 4, 20), (0, 5.0, 4, 20), (3, 0.5, 4, 20), (0, 1.0, 0, 20), (0, 1.0, 4, 0)],
)
def test_all_is_trained_on_where_nothing_is_to_be_left_out(site, tmp_path, round_, ratio, new, old):
    """No ratio, a memory below it, a tuning round, a memory below a batch, and none at all."""
    asked = with_ratio(asked_in(site, tmp_path, round_), ratio)
    assert asked.rehearsed([True] * new + [False] * old).tolist() == list(range(new + old))


def test_a_client_without_new_records_replays_no_more_than_its_share_of_a_batch(site, tmp_path):
    asked = with_ratio(asked_in(site, tmp_path, 0), 0.5)
    rows = asked.rehearsed([False] * 500)
    assert len(rows) == len(set(rows.tolist())) == asked.config.train.batch_size // 2


def test_both_questions_at_a_domain_s_end_are_for_one_answer(site):
    task = task_of(site)
    finish = replace(task, ticket=replace(task.ticket, round=3, manifest="summary-7-80.n"))
    peak = replace(task, ticket=replace(task.ticket, round=4, manifest="summary-7-peak"))
    one, units = ending(finish, FINISH)
    other, none = ending(peak, PEAK)
    assert one == other
    assert (units, none) == ((1.0, 0.0), ())
    with pytest.raises(RunError, match="must be asked for a summary"):
        ending(task, FINISH)
