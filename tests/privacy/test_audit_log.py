import json
import os
import stat
import subprocess
import sys
import time

import pytest

from perennial.core.errors import DataError, RunError
from perennial.privacy.audit_log import AuditLog, verify


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def filled(path, count=4):
    log = AuditLog(path)
    for number in range(count):
        log.append("opened", round=number, run="a run")
    log.close()
    return path.read_bytes()


def test_entries_come_back_in_order_and_chained(path):
    log = AuditLog(path)
    assert log.head == "0" * 64
    first = log.append("started", key="k")
    second = log.append("opened", nodes=[1, -2], size=3, why="ünïcode\nline")
    assert [dict(entry) for entry in log.entries()] == [first, second]
    assert first["previous"] == "0" * 64
    assert second["previous"] == first["hash"]
    assert log.head == second["hash"]
    assert path.read_bytes().count(b"\n") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verify(path) == 2


def test_a_log_goes_on_where_it_stopped(path):
    filled(path)
    log = AuditLog(path)
    log.append("opened", round=4)
    assert [entry["round"] for entry in log.entries()] == [0, 1, 2, 3, 4]
    assert verify(path) == 5


def test_the_names_of_the_chain_are_taken(path):
    log = AuditLog(path)
    with pytest.raises(ValueError, match="taken"):
        log.append("opened", hash="mine")
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append("opened", value=float("nan"))
    assert verify(path) == 0


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(path):
    content = filled(path, 3)
    last = content.rfind(b"\n", 0, -1) + 1
    for end in (*range(last, len(content) - 1, 9), len(content) - 1):
        path.write_bytes(content[:end])
        assert verify(path) == 2
        log = AuditLog(path)
        assert path.read_bytes() == content[:last]
        log.append("opened", round=9)
        assert [entry["round"] for entry in log.entries()] == [0, 1, 9]
        log.close()


def changed(content, kind):
    lines = content.splitlines(keepends=True)
    if kind == "a value":
        lines[1] = lines[1].replace(b'"round":1', b'"round":7')
    elif kind == "dropped":
        del lines[1]
    elif kind == "swapped":
        lines[1], lines[2] = lines[2], lines[1]
    elif kind == "twice":
        lines.insert(1, lines[1])
    elif kind == "blank":
        lines[1] = lines[1].replace(b":", b": ", 1)
    elif kind == "junk":
        lines[1] = b"\x00\xff\n"
    elif kind == "a list":
        lines[1] = b"[1]\n"
    elif kind == "deep":
        lines[1] = b"[" * 100_000 + b"\n"
    elif kind == "its own hash":
        entry = json.loads(lines[1])
        entry["hash"] = "0" * 64
        lines[1] = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
    return b"".join(lines)


@pytest.mark.parametrize(
    "kind",
    ["a value", "dropped", "swapped", "twice", "blank", "junk", "a list", "deep", "its own hash"],
)
def test_a_broken_chain_is_refused_with_its_line(kind, path):
    content = filled(path)
    path.write_bytes(changed(content, kind))
    where = r"audit\.jsonl, line 3" if kind == "twice" else r"audit\.jsonl, line 2"
    for read in (verify, AuditLog):
        with pytest.raises(DataError, match=where):
            read(path)
    assert path.read_bytes() == changed(content, kind), "a refused log is left as it is"


def test_two_cannot_have_it(path):
    log = AuditLog(path)
    with pytest.raises(RunError, match="another process has it open"):
        AuditLog(path)
    code = (
        "import sys, pathlib\n"
        "from perennial.core.errors import RunError\n"
        "from perennial.privacy.audit_log import AuditLog\n"
        "try:\n    AuditLog(pathlib.Path(sys.argv[1]))\n"
        "except RunError:\n    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 7
    log.close()
    AuditLog(path).append("opened")
    assert verify(path) == 1
    with pytest.raises(RunError, match="cannot be written"):
        log.append("opened")


def test_a_log_that_nobody_holds_any_more_is_free(path):
    AuditLog(path).append("opened")
    AuditLog(path).append("opened")
    assert verify(path) == 2


def test_a_full_disk_is_told_and_leaves_no_half_line(path, monkeypatch):
    log = AuditLog(path)
    log.append("opened", round=0)
    write = os.write

    def full(file, content):
        write(file, content[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", full)
        with pytest.raises(RunError, match="No space left on device"):
            log.append("opened", round=1)
    log.append("opened", round=2)
    assert [entry["round"] for entry in log.entries()] == [0, 2]


def test_a_line_that_is_not_synced_is_not_written(path, monkeypatch):
    log = AuditLog(path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(RunError, match="I/O error"):
            log.append("opened", round=1)
    log.append("opened", round=2)
    assert [entry["round"] for entry in log.entries()] == [2]


def test_a_short_write_is_finished(path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:7]))
    AuditLog(path).append("opened", round=1)
    assert verify(path) == 1


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(DataError, match="must be a file that can be written"):
        AuditLog(tmp_path)
    with pytest.raises(DataError, match="must be an audit log that can be read"):
        verify(tmp_path / "none")


@pytest.mark.integration
def test_a_killed_writer_leaves_a_sound_log(path):
    code = (
        "import sys, pathlib\n"
        "from perennial.privacy.audit_log import AuditLog\n"
        "log = AuditLog(pathlib.Path(sys.argv[1]))\n"
        "while True:\n    log.append('opened', filler='x' * 3000)\n"
    )
    told = 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, path])
        deadline = time.monotonic() + 20
        while (not path.exists() or verify(path) < told + 5) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        log = AuditLog(path)
        told = verify(path)
        log.close()
    assert told >= 25
