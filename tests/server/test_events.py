from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.errors import RunError
from perennial.server.events import EventLog, parse_line, read_events, settle

WHOLE = b'{"event":"domain_started","time":1.0,"domain":0}\n'


def at(event, *place, time=1.0, **fields):
    keys = ("domain", "round", "attempt", "node")
    return {"event": event, "time": time, **dict(zip(keys, place, strict=False)), **fields}


def test_what_is_emitted_is_read_back(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit("run_started", run="r", domains=[{"name": "b\nänk\u2028", "labels": ["x"]}])
        log.emit("round_finished", domain=0, round=0, attempt=0, loss=0.5)
    first, second = read_events(path)
    assert first["domains"] == [{"name": "b\nänk\u2028", "labels": ["x"]}]
    assert second == {**at("round_finished", 0, 0, 0), "time": second["time"], "loss": 0.5}
    assert 0 < second["time"] - 1.7e9 < 1e10
    assert path.read_bytes().count(b"\n") == 2


def test_an_event_is_there_before_the_log_is_closed(tmp_path):
    with EventLog(tmp_path / "e") as log:
        log.emit("run_finished")
        assert [event["event"] for event in read_events(tmp_path / "e")] == ["run_finished"]


def test_numpy_and_what_json_cannot_say(tmp_path):
    with EventLog(tmp_path / "e") as log:
        log.emit("x", a=np.float32(0.5), b=np.int64(3), c=math.nan, d=(math.inf, 1), e=np.ones(2))
        with pytest.raises(TypeError, match="an event holds JSON values; got object"):
            log.emit("x", a=object())
    (event,) = read_events(tmp_path / "e")
    assert (event["a"], event["b"], event["c"]) == (0.5, 3, None)
    assert (event["d"], event["e"]) == ([None, 1], [1.0, 1.0])


def test_the_listener_sees_what_was_written(tmp_path):
    seen = []
    with EventLog(tmp_path / "e", also=seen.append) as log:
        log.emit("round_failed", domain=0, round=1, attempt=2, reason="r")
    assert seen == read_events(tmp_path / "e")


@pytest.mark.parametrize("torn", [b'{"event":"re', b"\x00\x00\x00\n", b'{"event":"x"}\n', b"[1]\n"])
def test_a_torn_last_line_is_passed_over_and_then_cut_off(tmp_path, torn):
    path = tmp_path / "e"
    path.write_bytes(WHOLE + torn)
    assert len(read_events(path)) == 1
    with EventLog(path) as log:
        log.emit("run_finished")
    assert path.read_bytes().startswith(WHOLE + b'{"event":"run_finished"')
    assert [event["event"] for event in read_events(path)] == ["domain_started", "run_finished"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(WHOLE + WHOLE[:-1])
    assert len(read_events(path)) == 2
    with EventLog(path) as log:
        log.emit("run_finished")
    assert len(read_events(path)) == 3


def test_a_torn_line_longer_than_a_block(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(WHOLE + b'{"event":"' + b"x" * 200_000)
    EventLog(path).close()
    assert path.read_bytes() == WHOLE


def test_a_torn_only_line_leaves_an_empty_file(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(b'{"ev')
    assert read_events(path) == []
    EventLog(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("broken", [b"{oops}\n", b"42\n", b'{"event":"x"}\n', b"\xff\xfe\n"])
def test_a_broken_line_in_the_middle_names_file_and_line(tmp_path, broken):
    path = tmp_path / "events.jsonl"
    path.write_bytes(WHOLE + broken + WHOLE)
    with pytest.raises(RunError, match=r"events\.jsonl, line 2: must be a JSON object"):
        read_events(path)


def test_blank_lines_are_no_events(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(WHOLE + b"\n  \n" + WHOLE)
    assert len(read_events(path)) == 2


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / "nothing")


def test_a_repeat_replaces_the_earlier():
    first, second = at("reply", 0, 0, 0, 7, loss=1.0), at("reply", 0, 0, 0, 7, loss=2.0)
    other = at("reply", 0, 0, 1, 7, loss=3.0)
    assert settle([first, other, second]) == [other, second]


def test_a_resume_voids_what_comes_after_it():
    log = [
        at("run_started"),
        at("domain_started", 0),
        at("round_finished", 0, 0, 0),
        at("evaluated", 0, 1),
        at("round_finished", 0, 1, 0),
        at("evaluated", 0, 2),
        at("domain_finished", 0),
        at("domain_started", 1),
        at("round_started", 1, 0, 0),
        at("run_finished"),
    ]
    # One round is done: its evaluation stays, the second round and all after it go.
    assert settle([*log, at("run_resumed", 0, 1)]) == log[:4]
    assert settle([*log, at("run_resumed", 1, 0)]) == log[:8]


def test_unknown_events_are_dropped():
    assert settle([at("from_the_future", 3)]) == []


@pytest.mark.parametrize("bad", [None, "1", 1.5, True, -1])
def test_an_event_without_its_place_is_refused(bad):
    with pytest.raises(RunError, match="'round_failed' must have an integer 'round'"):
        settle([{**at("round_failed", 0, 0, 0), "round": bad}])


@given(st.binary(max_size=80))
def test_any_bytes_are_an_event_or_none(line):
    event = parse_line(line)
    assert event is None or (isinstance(event["event"], str) and json.dumps(event))


@given(st.data())
def test_settling_twice_is_settling_once(data):
    names = st.sampled_from(["round_started", "round_finished", "run_resumed", "evaluated"])
    small = st.integers(0, 2)
    log = data.draw(st.lists(st.builds(at, names, small, small, small), max_size=20))
    assert settle(settle(log)) == settle(log)
