"""Figures of runs, counted from their logs: each event once, whatever is copied or torn."""

import json

from perennial.server.tally import RUNS, Tally, announce

CONFIG = {"privacy": {"name": "dp_sgd", "epsilon": 8.0}, "user_privacy": {"name": "off"}}
START = {"event": "run_started", "time": 1.0, "config": CONFIG}
ROUND = [
    {"event": "round_started", "time": 2.0, "domain": 0, "round": 0, "bytes_down": 30},
    {"event": "reply", "time": 3.0, "ok": True, "bytes_up": 10, "epsilon": {"example": 1.5}},
    {"event": "reply", "time": 3.5, "ok": False, "cause": "late", "bytes_up": 2, "epsilon": {}},
    {"event": "round_finished", "time": 4.0, "seconds": 2.5, "loss": 0.7},
    {"event": "evaluated", "time": 4.5, "accuracy": {"bank": 0.8}},
]


def write(folder, events, mode="a"):
    folder.mkdir(exist_ok=True)
    with (folder / "events.jsonl").open(mode) as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_a_run_is_counted_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    tally = Tally(tmp_path / "runs")
    tally.follow()
    assert tally.rounds == 0
    announce(tmp_path / "one")
    tally.follow()  # it has no log yet
    write(tmp_path / "one", [START, *ROUND[:2]])
    tally.follow()
    assert (tally.replies, tally.bytes_up, tally.rounds) == (1, 10, 0)
    assert tally.state["finished"] == 0.0
    write(tmp_path / "one", ROUND[2:])
    announce(tmp_path / "one")  # resumed
    tally.follow()
    tally.follow()
    assert (tally.replies, dict(tally.rejected)) == (1, {"late": 1})
    assert (tally.rounds, tally.seconds, tally.bytes_up, tally.bytes_down) == (1, 2.5, 12, 30)
    assert tally.epsilon == {"example": 1.5}
    assert tally.promised == {"example": 8.0}
    assert tally.accuracy == {"bank": 0.8}
    write(tmp_path / "one", [{"event": "run_finished", "time": 9.0}])
    tally.follow()
    assert tally.state["finished"] == 1.0


def test_a_copied_log_is_not_counted_again(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    tally = Tally(tmp_path / "runs")
    for name, late in (("one", []), ("two", [{**ROUND[3], "time": 20.0, "seconds": 1.0}])):
        announce(tmp_path / name)
        write(tmp_path / name, [START, *ROUND, *late])
        tally.follow()
    assert (tally.rounds, tally.seconds, tally.replies) == (2, 3.5, 1)


def test_torn_lines_wait_and_odd_ones_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    announce(tmp_path / "one")
    (tmp_path / "runs").open("a").write("no json\n")
    write(tmp_path / "one", [START])
    with (tmp_path / "one" / "events.jsonl").open("a") as file:
        file.write("garbage\n" + json.dumps(ROUND[3])[:20])
        file.flush()
        tally = Tally(tmp_path / "runs")
        tally.follow()
        assert tally.rounds == 0
        file.write(json.dumps(ROUND[3])[20:] + "\n")
    tally.follow()
    assert tally.rounds == 1
    (tmp_path / "one" / "events.jsonl").unlink()
    tally.follow()
    assert tally.rounds == 1


def test_without_a_follower_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(RUNS, raising=False)
    announce(tmp_path / "one")
    assert list(tmp_path.iterdir()) == []
