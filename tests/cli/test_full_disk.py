"""A file that cannot be written is one message and an exit code, whatever the command."""

import os
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration  # a process of its own

TEXT = '[run]\nname = "full"\n[data]\nname = "sample"\n[model]\nname = "tiny"\n'


def _no_room():
    # Like a full disk to whoever writes: the first bytes go through, the others do not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_disk_without_room_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "c.toml").write_text(TEXT)
    command = [sys.executable, "-m", "perennial", "bundle", tmp_path / "c.toml", tmp_path / "app"]
    # Python would keep cut bytecode of our modules without a word, and every later import fail.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, preexec_fn=_no_room, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("perennial: ")
    assert "too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "app").iterdir()) == []
