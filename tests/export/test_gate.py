"""The gate's arithmetic by hand, and what it says."""

import math
from dataclasses import replace

import numpy as np
import pytest

from perennial.core.config import Export as Limits
from perennial.core.parts import Bars
from perennial.export.gate import (
    Asked,
    Figures,
    bars_of,
    cpu_ratio,
    interval,
    judge,
    measure,
    share_interval,
)
from perennial.export.session import open_session

BARS = Bars(0.27, 0.5, 3.0, 0.99, 0.001, 0.7, 0.7)
GOOD = Figures(0.25, 0.9, 0.9, 0.0, -0.1, 0.1, 1.0, 0.0, 0.5, 0.5, {"a": (500, 0.9, 0.9)}, 500)


def failed(figures, sure=False, bars=BARS):
    return [check.what for check in judge(figures, bars, sure=sure) if not check.holds]


def test_the_interval_is_that_of_agresti_and_min():
    loss, low, high = interval(20, 12, 4500)
    middle = (20.5 - 12.5) / 4502
    spread = 1.959964 * math.sqrt(20.5 + 12.5 - 8.0**2 / 4502) / 4502
    assert loss == pytest.approx(100 * 8 / 4500)
    assert (low, high) == pytest.approx((100 * (middle - spread), 100 * (middle + spread)))
    assert interval(0, 0, 50)[2] > 0.0  # no difference seen is not none there


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        b, c, _ = rng.multinomial(600, (0.03, 0.02, 0.95))
        _, low, high = interval(b, c, 600)
        held += low <= 1.0 <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_wilsons_interval_by_hand():
    low, high = share_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    assert share_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_each_bar_fails_by_its_name():
    assert failed(GOOD) == []
    assert failed(replace(GOOD, size=0.3)) == ["size"]
    assert failed(replace(GOOD, loss=0.6)) == ["accuracy"]
    assert failed(replace(GOOD, agreement=0.95)) == ["agreement"]
    assert failed(replace(GOOD, changed=0.01)) == ["stability"]
    assert failed(replace(GOOD, cpu_1=0.8)) == ["CPU time, single texts"]
    assert failed(replace(GOOD, cpu_32=0.8)) == ["CPU time, batches of 32"]
    assert failed(replace(GOOD, domains={"a": (400, 0.9, 0.9), "b": (100, 0.9, 0.8)})) == [
        "worst domain"
    ]
    assert failed(replace(GOOD, high=0.7), sure=True) == ["accuracy, surely"]


def test_one_record_is_never_too_much():
    small = replace(GOOD, records=50, loss=2.0, domains={"a": (50, 0.9, 0.88)})
    assert failed(small) == []
    assert failed(replace(small, loss=4.0)) == ["accuracy"]


def test_the_config_overrules_a_profile_s_bars():
    bars = bars_of(BARS, Limits(max_loss=2.0, min_agreement=0.9))
    assert (bars.loss, bars.agreement, bars.size) == (2.0, 0.9, BARS.size)


def test_cpu_time_is_measured_in_turns():
    work = np.random.default_rng(0).standard_normal((200, 200))

    def heavy():
        for _ in range(20):
            work @ work

    def light():
        for _ in range(10):
            work @ work

    assert 0.2 < cpu_ratio(light, heavy, turns=5) < 0.8


def test_a_graph_against_itself_loses_nothing(graph):
    path, tokens = graph
    session = open_session(path)
    asked = Asked(tokens, np.zeros(len(tokens), np.intp), ["a"] * len(tokens))
    found = measure(session, open_session(path), (5, 10), asked)
    assert (found.loss, found.agreement, found.changed, found.size) == (0.0, 1.0, 0.0, 0.5)
    assert set(found.domains) == {"a"}
    assert found.records == len(tokens)
