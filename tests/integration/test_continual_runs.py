"""Whole runs with a memory: killed, sealed, and after somebody withdrew."""

import numpy as np
import pytest
from running import TINY, broken_run, changed, run

from perennial.client import withdrawn
from perennial.continual import memory
from perennial.server import knowledge, lessons

pytestmark = pytest.mark.integration

METHODS = """
[[continual.methods]]
name = "replay"
per_class = 3
[[continual.methods]]
name = "ewc"
samples = 10
[[continual.methods]]
name = "analytic_head"
layers = 2
"""
TEXT = changed(
    TINY.replace('[continual]\nname = "none"\n', METHODS), round__rounds=1, train__epochs=1
)
SEALED = {
    "secure_sum__name": "bfv",
    "secure_sum__clip": 0.3,
    "secure_sum__bits": 16,
    "round__max_weight": 500.0,
}


def kept_of(folder):
    token = (folder / "line").read_text()
    return knowledge.load(folder / lessons.FOLDER, 3, token).kept


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, run(folder, TEXT)


def test_a_killed_run_ends_with_the_same_bits(unbroken, tmp_path):
    folder, report = broken_run(tmp_path, kills=4, text=TEXT, seed=3)
    assert report["adapter_hash"] == unbroken[1]["adapter_hash"]
    assert report["accuracy_matrix"] == unbroken[1]["accuracy_matrix"]
    first, again = kept_of(unbroken[0]), kept_of(folder)
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    answers = [f / "adapter" / "answer.npy" for f in (folder, unbroken[0])]
    assert answers[0].read_bytes() == answers[1].read_bytes()


def test_sealed_sums_teach_what_plain_ones_do(unbroken, tmp_path):
    """Peaks of Fisher and statistics are orders of magnitude apart: each has its own scale."""
    one = {"domains__order": ["bank"], "train__lr": 1e-9}
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    run(plain, changed(TEXT, **one))
    run(sealed, changed(TEXT, **one, **SEALED))
    before, after = (
        knowledge.load(f / lessons.FOLDER, 1, (f / "line").read_text()).kept
        for f in (plain, sealed)
    )
    # Labels are drawn for the Fisher, and ties of an untrained head fall this way or that.
    assert after["ewc:fisher"].mean() == pytest.approx(before["ewc:fisher"].mean(), rel=1e-3)
    assert np.count_nonzero(after["ewc:fisher"]) > 0.5 * np.count_nonzero(before["ewc:fisher"])
    for name in ("analytic_head:gram", "analytic_head:sums", "analytic_head:counts"):
        wanted, got = (np.asarray(kept[name], np.float64) for kept in (before, after))
        # Of 3 clients each rounds by a step of 1/32767 of a unit of at most sqrt(2) peaks, and the
        # server to whole numbers.
        assert np.abs(got - wanted).max() <= 3 * 1.5 / 32767 * np.abs(wanted).max() + 1.0


def test_after_a_client_withdrew_the_statistics_are_those_of_a_run_without_it(
    tmp_path, monkeypatch
):
    def leaving(folder, at):
        text = changed(TEXT, simulation__clients=str(folder / "disks"), train__lr=1e-9)
        real = lessons.begin

        def begin(room, state, known, index):
            if index == at:
                disk = folder / "disks" / "00002"
                disk.mkdir(parents=True, exist_ok=True)
                withdrawn.write(disk, [], everything=True)
            return real(room, state, known, index)

        with monkeypatch.context() as patch:
            patch.setattr(lessons, "begin", begin)
            run(folder / "run", text)
        return kept_of(folder / "run")

    late, never = leaving(tmp_path / "late", 2), leaving(tmp_path / "never", 0)
    for name in ("analytic_head:gram", "analytic_head:sums", "analytic_head:counts"):
        assert np.array_equal(late[name], never[name]), name
    assert memory.describe(tmp_path / "late" / "disks" / "00002")["records"] == 0
    assert memory.describe(tmp_path / "late" / "disks" / "00001")["records"] > 0
