"""Schedules by hand: who pays what, and what the choices cost."""

import math
import time
from dataclasses import replace

import pytest

from perennial.core.errors import PrivacyError
from perennial.core.values import Spend
from perennial.privacy.accounting import epsilon, epsilon_of
from perennial.privacy.plan import Schedule, choices

WEEKLY = Schedule("example", 8.0, 1e-5, 52, 10, 1, 0.25, 0.05)
USERS = Schedule("user", 8.0, 1e-3, 6, 5, 1, 1.0, 1.0, mechanism="skellam")


def schedule(**changes):
    plain = Schedule("example", 8.0, 1e-5, 4, 3, 2, 0.25, 0.0)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("epochs", "rate", "steps"), [(1, 1.0, 1), (1, 0.25, 4), (3, 0.2, 15), (1, 0.3, 3), (2, 0.3, 7)]
)
def test_steps_of_a_round(epochs, rate, steps):
    assert schedule(epochs=epochs, sample_rate=rate).steps == steps


def test_without_replay_a_cohort_pays_once():
    assert [schedule().uses(n) for n in (1, 4)] == [[(0.25, 24)]] * 2


def test_with_replay_it_pays_in_each_later_update():
    plan = schedule(replay_rate=0.1)
    assert plan.uses(1) == [(0.25, 24)]
    assert plan.uses(4) == [(0.25, 24), (0.1, 72)]


def test_sums_at_the_end_of_an_update_are_paid_too():
    assert schedule(sums=1).uses(4) == [(0.25, 24), (1.0, 1)]
    assert schedule(sums=1, replay_rate=0.1).uses(4) == [(0.25, 24), (0.1, 72), (1.0, 1)]
    assert schedule(sums=1, rounds=0, replay_rate=0.1).uses(4) == [(1.0, 1)]


def test_a_user_pays_every_release():
    assert sum(steps for rate, steps in USERS.uses(6) if rate == 1.0) == 30


@pytest.mark.parametrize(
    "plan",
    [schedule(), schedule(replay_rate=0.1), schedule(sums=1, replay_rate=0.25, updates=3), USERS],
)
def test_the_first_cohort_is_the_one_that_pays_most(plan):
    """Every cohort written out, round by round, as clients charge them."""
    noise, spends = plan.noise(), []
    for update in range(plan.updates):
        for cohort in range(update + 1) if plan.replay_rate else [update]:
            name = "all" if plan.unit == "user" else str(cohort)
            rate = plan.sample_rate if cohort == update else plan.replay_rate
            if plan.unit == "user" and cohort != update:
                continue
            steps = [Spend(rate, noise, plan.steps, name, plan.mechanism)] * plan.rounds
            # A record is summed once, when it is new; what a user holds is in each sum.
            sums = plan.sums if cohort == update else 0
            spends += [*steps, *[Spend(1.0, noise, 1, name, plan.mechanism)] * sums]
    planned = plan.epsilon(plan.updates, noise)
    assert epsilon_of(spends, plan.delta) == pytest.approx(planned, rel=1e-9)
    assert 0.99 * plan.target < planned <= plan.target


def test_noise_under_which_all_updates_fit_and_no_more():
    plan = schedule(replay_rate=0.1)
    noise = plan.noise()
    assert plan.fits(noise) == 4
    assert replace(plan, updates=40).fits(noise) == 4
    assert plan.fits(0.9 * noise) < 4
    assert plan.fits(0.1) == 0


def test_a_year_of_weekly_updates_is_planned_in_seconds():
    started = time.perf_counter()
    noise = WEEKLY.noise()
    assert time.perf_counter() - started < 10.0
    assert 0.99 * 8.0 < WEEKLY.epsilon(52, noise) <= 8.0
    after = [WEEKLY.epsilon(n, noise) for n in (1, 13, 26, 52)]
    assert after == sorted(after)
    # The same life without replay takes a third less noise; an accountant that forgets it says so.
    assert replace(WEEKLY, replay_rate=0.0).noise() < 0.7 * noise


def test_quality_by_hand():
    """16 steps of noise 2 over half of the records: 2 / (0.5 * 4)."""
    assert schedule(sample_rate=0.5, rounds=4, epochs=2).quality(2.0) == pytest.approx(1.0)


def test_quality_is_the_deviation_of_the_mean_gradient():
    import numpy as np

    plan, records, noise, clip = schedule(), 100, 1.7, 0.5
    steps = plan.rounds * plan.steps
    rng = np.random.default_rng(0)
    draws = rng.normal(0.0, noise * clip, (20000, steps)) / (plan.sample_rate * records)
    expected = plan.quality(noise) * clip / records
    assert draws.mean(1).std() == pytest.approx(expected, rel=0.02)


def test_choices_change_one_thing_each():
    plan = schedule(replay_rate=0.1)
    found = choices(plan)
    assert [(c.name, c.value) for c in found] == [
        ("as planned", ""),
        ("sample rate", "0.125"),
        ("sample rate", "0.5"),
        ("sample rate", "1"),
        ("rounds", "1"),
        ("rounds", "6"),
        ("replay rate", "0"),
        ("replay rate", "0.05"),
        ("replay rate", "0.2"),
        ("updates", "8"),
    ]
    by_name = {(c.name, c.value): c for c in found}
    assert found[0].noise == plan.noise()
    assert by_name["rounds", "6"].noise == replace(plan, rounds=6).noise() > found[0].noise
    assert by_name["replay rate", "0"].noise < found[0].noise < by_name["updates", "8"].noise
    # What the study measured: all records in few steps beat small batches in many.
    assert by_name["sample rate", "1"].quality < found[0].quality


def test_choices_of_users_have_no_rates():
    assert {c.name for c in choices(USERS)} == {"as planned", "rounds", "updates"}
    assert {c.name for c in choices(replace(USERS, rounds=1))} == {
        "as planned",
        "rounds",
        "updates",
    }


def test_a_replay_rate_that_follows_the_sample_rate_goes_on_following():
    plan = schedule(replay_rate=0.25)
    half = next(c for c in choices(plan) if c.value == "0.125")
    assert half.noise == replace(plan, sample_rate=0.125, replay_rate=0.125).noise()


def test_a_choice_that_no_noise_saves_is_shown_as_such():
    plan = schedule(target=0.00034, sample_rate=1.0, rounds=4, epochs=1, updates=1)
    found = {c.value: c for c in choices(plan)}
    assert found[""].noise > 0
    assert found["8"].noise == 0.0 == found["8"].quality
    with pytest.raises(PrivacyError, match="epsilon must be reachable"):
        replace(plan, rounds=8).noise()


def test_skellam_is_planned_by_renyi():
    noise = USERS.noise()
    gaussian = replace(USERS, mechanism="gaussian")
    assert gaussian.noise() < noise
    assert epsilon([Spend(1.0, noise, 30, "all", "skellam")], 1e-3) <= 8.0
    assert math.isclose(USERS.epsilon(6, noise), 8.0, rel_tol=1e-2)
