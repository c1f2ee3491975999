"""What a service shows to Prometheus, read back by Prometheus's own parser."""

import json
import os

from prometheus_client.parser import text_string_to_metric_families

from perennial.cli.metrics import parts, runs, text_of, work
from perennial.server.tally import Tally


class Watched:
    """A watch over this very process and one that is down."""

    def states(self):
        return {"worker": "up", "node": "down"}

    def starts(self):
        return {"worker": 3, "node": 1}

    def processes(self):
        return {"worker": os.getpid()}


def parsed(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_parts_tell_whether_they_serve_and_what_they_take():
    found = parsed(text_of(parts(Watched())))
    assert found["perennial_up", "worker"] == 1.0
    assert found["perennial_up", "node"] == 0.0
    assert found["perennial_starts_total", "worker"] == 3.0
    assert found["perennial_resident_bytes", "worker"] > 1e6
    assert ("perennial_resident_bytes", "node") not in found


def test_runs_tell_rounds_rejections_and_spent_privacy(tmp_path):
    tally = Tally(tmp_path / "none", rounds=4, replies=9, bytes_up=100, seconds=2.5)
    tally.rejected['late "quoted"\n'] = 2
    tally.epsilon["example"] = 1.5
    tally.promised |= {"example": 8.0, "user": 3.0}
    tally.accuracy["bank"] = 0.75
    tally.state["loss"] = 0.5
    found = parsed(text_of(runs(tally)))
    assert found["perennial_rounds_total",] == 4.0
    assert found["perennial_round_seconds_total",] == 2.5
    assert found["perennial_up_bytes_total",] == 100.0
    assert found["perennial_rejected_total", 'late "quoted"\n'] == 2.0
    assert found["perennial_epsilon", "example"] == 1.5
    assert found["perennial_epsilon_left", "example"] == 6.5
    assert found["perennial_epsilon_left", "user"] == 3.0
    assert found["perennial_accuracy", "bank"] == 0.75
    assert found["perennial_run_loss",] == 0.5


def test_a_worker_tells_its_tasks_and_an_odd_file_tells_nothing(tmp_path):
    path = tmp_path / "worker.json"
    told = {"tasks": {"train": {"completed": 3, "failed": 1}}, "seconds": {"train": 4.0}}
    path.write_text(json.dumps({**told, "loads": 1, "gpu_bytes": 7}))
    found = parsed(text_of(work(path)))
    assert found["perennial_tasks_total", "completed", "train"] == 3.0
    assert found["perennial_tasks_total", "failed", "train"] == 1.0
    assert found["perennial_task_seconds_total", "train"] == 4.0
    assert found["perennial_loads_total",] == 1.0
    assert found["perennial_gpu_bytes",] == 7.0
    for odd in ("", "[]", "{"):
        path.write_text(odd)
        assert parsed(text_of(work(path)))["perennial_loads_total",] == 0.0
