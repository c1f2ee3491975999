"""What a run does with names from the data, with faults at its start, and with a second writer."""

import os

import pytest
from flwr.app import Error, Message, RecordDict

from perennial.core.errors import ConfigError, DataError, RunError
from perennial.server.app import reply
from perennial.server.events import EventLog
from perennial.server.link import Link
from perennial.server.run import _folder_of, run
from perennial.simulations.compat import instruction

TEXT = """
[data]
name = "jsonl"
train = "{path}"
[shards]
split = "{split}"
num_clients = 2
[model]
name = "tiny"
"""


@pytest.mark.parametrize(
    "name",
    ["bank", "a/b", "../../x", "x/../../victim", "..", "a\0b", "é" * 300, "🎉" * 300, "a\\b:c", ""],
)
def test_a_domain_s_adapter_stays_inside_its_folder(name, tmp_path):
    folder = _folder_of(3, name)
    assert os.path.basename(folder) == folder
    assert folder.startswith("03-")
    (tmp_path / f".{folder}.new").mkdir()
    assert _folder_of(3, "auto and commute") == "03-auto and commute"


def test_records_that_cannot_be_dealt_stop_the_run_before_anything_is_written(tmp_path):
    data = tmp_path / "d.jsonl"
    rows = [f'{{"text": "t {i}", "label": "{"ab"[i % 2]}", "domain": "d"}}' for i in range(8)]
    data.write_text("\n".join(rows))
    nobody = Link(nodes=list, ask=lambda *_: [])
    with pytest.raises(DataError, match="sharding column"):
        run(nobody, TEXT.format(path=data, split="column"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_adapter_has_too_few_ranks_stops_before_anything_is_written(tmp_path):
    nobody = Link(nodes=list, ask=lambda *_: [])
    text = """
[data]
name = "sample"
[model]
name = "tiny"
[continual]
name = "elastic_mask"
mode = "slices"
"""
    with pytest.raises(ConfigError, match="must be at least 6: each of 6 domains takes 1 of"):
        run(nobody, text, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_log_has_one_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit("run_started")
        before = path.read_bytes()
        with path.open("ab") as torn:
            torn.write(b'{"event": "half')
        with pytest.raises(RunError, match="another one is running this run"):
            EventLog(path)
        # A line that the other writer is in the middle of is not cut off.
        assert path.read_bytes() == before + b'{"event": "half'
    EventLog(path).close()
    assert path.read_bytes() == before


def test_what_a_client_says_went_wrong_is_one_short_line():
    asked = instruction(1, RecordDict(), "train", 7, "g", 10.0)
    said = Message(Error(2, "train: bad\n\x1b[31m" + "x" * 10_000), reply_to=asked)
    error = reply(said).error
    assert error.startswith("train: bad")
    assert len(error) <= 200
    assert error.isprintable()
