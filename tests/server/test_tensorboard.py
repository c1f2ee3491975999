from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perennial.server.tensorboard import ScalarLog, write_tensorboard


def round_(domain, round_, loss=1.0, time=10.0):
    return {"event": "round_finished", "time": time, "domain": domain, "round": round_,
            "attempt": 0, "loss": loss, "bytes_up": 5, "bytes_down": 6, "seconds": 2.5}  # fmt: skip


def score(domain, rounds, **accuracy):
    return {"event": "evaluated", "time": 11.0, "domain": domain, "round": rounds,
            "accuracy": accuracy}  # fmt: skip


def resume(domain, rounds):
    return {"event": "run_resumed", "time": 12.0, "domain": domain, "round": rounds}


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(scalar.step, scalar.value) for scalar in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_scalars_are_read_back_at_global_steps_and_wall_times(tmp_path):
    log = [
        {"event": "run_started", "time": 1.0},
        round_(0, 0, 3.0),
        score(0, 1, a=0.25),
        round_(0, 1, 2.0),
        round_(1, 0, 1.0, time=20.5),
        score(1, 1, a=0.5, b=1.0),
    ]
    write_tensorboard(log, tmp_path)
    scalars = read(tmp_path)
    assert scalars["train/loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert scalars["bytes/up"] == [(1, 5.0), (2, 5.0), (3, 5.0)]
    assert scalars["bytes/down"][0] == (1, 6.0)
    assert scalars["seconds/round"][0] == (1, 2.5)
    assert scalars["accuracy/mean"] == [(1, 0.25), (3, 0.75)]
    assert scalars["accuracy/a"] == [(1, 0.25), (3, 0.5)]
    assert scalars["accuracy/b"] == [(3, 1.0)]
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert accumulator.Scalars("train/loss")[-1].wall_time == pytest.approx(20.5)


def test_a_scalar_can_be_seen_while_the_run_goes_on(tmp_path):
    with ScalarLog(tmp_path, 2) as log:
        log.add(round_(0, 0))
        assert read(tmp_path)["train/loss"] == [(1, 1.0)]


def test_a_resumed_run_replaces_the_void_steps(tmp_path):
    with ScalarLog(tmp_path, 3) as log:
        for event in (round_(0, 0, 3.0), score(0, 1, a=0.5), round_(0, 1, 2.0), round_(0, 2, 1.0)):
            log.add(event)
    with ScalarLog(tmp_path, 3) as log:
        for event in (resume(0, 1), round_(0, 1, 2.5)):
            log.add(event)
    assert len(list(tmp_path.iterdir())) == 2
    scalars = read(tmp_path)
    assert scalars["train/loss"] == [(1, 3.0), (2, 2.5)]
    assert scalars["accuracy/a"] == [(1, 0.5)]


def test_what_is_missing_is_left_out(tmp_path):
    write_tensorboard([round_(0, 0, None), score(0, 1)], tmp_path)
    scalars = read(tmp_path)
    assert "train/loss" not in scalars
    assert "accuracy/mean" not in scalars
    assert scalars["bytes/up"] == [(1, 5.0)]


def test_a_domain_of_any_name(tmp_path):
    write_tensorboard([score(0, 0, **{"a/b <c> \u00e9": 0.5, "mean": 0.1})], tmp_path)
    scalars = read(tmp_path)
    assert scalars["accuracy/a/b <c> \u00e9"] == [(0, 0.5)]
    assert scalars["accuracy/mean"] == [(0, pytest.approx(0.3))]


def test_closing_twice(tmp_path):
    log = ScalarLog(tmp_path, 1)
    log.close()
    log.close()


def said(event, domain, round_, node, **epsilon):
    place = {"domain": domain, "round": round_, "attempt": 0, "node": node}
    return {"event": event, "time": 9.0, **place, "epsilon": epsilon}


def test_epsilon_is_that_of_the_client_that_spent_most(tmp_path):
    log = [
        said("reply", 0, 0, 1, example=0.5, user=0.25),
        said("reply", 0, 0, 2, example=1.5, user=0.25),
        round_(0, 0, None),
        said("reply", 0, 1, 1, example=1.0),
        {**said("reply", 0, 1, 3), "epsilon": None},
        round_(0, 1, None),
        said("statement", 0, 0, 1, example=2.0),
        {"event": "domain_finished", "time": 12.0, "domain": 0},
    ]
    write_tensorboard(log, tmp_path)
    scalars = read(tmp_path)
    assert scalars["privacy/epsilon_example"] == [(1, 1.5), (2, 1.5), (2, 2.0)]
    assert scalars["privacy/epsilon_user"] == [(1, 0.25), (2, 0.25), (2, 0.25)]
    assert "train/loss" not in scalars


def test_a_run_that_promises_nothing_has_no_epsilon(tmp_path):
    write_tensorboard([said("reply", 0, 0, 1), round_(0, 0)], tmp_path)
    assert not any(tag.startswith("privacy") for tag in read(tmp_path))


def ended(domain, rounds, by, ahead=None, **accuracy):
    return {**score(domain, rounds, **accuracy), "by": by, "ahead": ahead or {}}


def continual_log():
    finished = {"event": "domain_finished", "time": 12.0}
    return [
        {"event": "run_started", "time": 1.0, "domains": [{"name": "a"}, {"name": "b"}]},
        {"event": "baseline", "time": 1.0, "accuracy": {"a": 0.125, "b": 0.25}},
        round_(0, 0),
        ended(0, 1, "model", a=0.5),
        ended(0, 1, "head", ahead={"b": 0.5}, a=0.75),
        {"event": "learnt", "time": 11.0, "domain": 0, "bytes_up": 40, "seconds": 2.0,
         "facts": {"analytic_head.regulariser": 0.5, "mode": "word"}},
        {**finished, "domain": 0},
        round_(1, 0),
        ended(1, 1, "model", a=0.25, b=1.0),
        ended(1, 1, "head", a=0.5, b=1.0),
        {**finished, "domain": 1},
    ]  # fmt: skip


def test_what_is_kept_is_written_at_the_end_of_each_domain(tmp_path):
    write_tensorboard(continual_log(), tmp_path)
    scalars = read(tmp_path)
    assert scalars["accuracy/a"] == [(1, 0.5), (2, 0.25)]
    assert scalars["accuracy_head/a"] == [(1, 0.75), (2, 0.5)]
    assert scalars["accuracy_head/mean"] == [(1, 0.75), (2, 0.75)]
    assert scalars["continual/average_accuracy"] == [(1, 0.75), (2, 0.75)]
    assert scalars["continual/forgetting"] == [(1, 0.0), (2, 0.25)]
    assert scalars["continual/backward_transfer"] == [(2, -0.25)]
    assert scalars["continual/forward_transfer"] == [(2, 0.25)]
    assert scalars["continual/learning_accuracy"] == [(1, 0.75), (2, 0.875)]
    assert scalars["bytes/up_at_end"] == [(1, 40.0)]
    assert scalars["facts/analytic_head.regulariser"] == [(1, 0.5)]
    assert "facts/mode" not in scalars


def test_a_resumed_run_knows_what_it_was_before(tmp_path):
    log = continual_log()
    with ScalarLog(tmp_path / "with", 1, past=log[:7]) as scalars:
        for event in [resume(1, 0), *log[7:]]:
            scalars.add(event)
    found = read(tmp_path / "with")
    assert found["continual/forgetting"] == [(2, 0.25)]
    assert found["accuracy/a"] == [(2, 0.25)]
    with ScalarLog(tmp_path / "without", 1) as scalars:
        for event in log[7:]:
            scalars.add(event)
    assert not any(tag.startswith("continual") for tag in read(tmp_path / "without"))


def test_domains_without_rounds_have_a_step_each(tmp_path):
    log = [e for e in continual_log() if e["event"] != "round_finished" and e.get("by") != "model"]
    log = [{**e, "round": 0} if e["event"] == "evaluated" else e for e in log]
    write_tensorboard(log, tmp_path)
    scalars = read(tmp_path)
    assert scalars["accuracy_head/a"] == [(0, 0.75), (1, 0.5)]
    assert scalars["continual/forgetting"] == [(0, 0.0), (1, 0.25)]
