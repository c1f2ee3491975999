"""The list of the withdrawn: it only grows, and is never guessed."""

import json
import os
import subprocess
import sys

import pytest

from perennial.client import withdrawn
from perennial.client.withdrawn import WITHDRAWN, Withdrawn
from perennial.core.errors import RunError


def test_without_a_list_nothing_is_withdrawn(tmp_path):
    assert withdrawn.read(tmp_path) == Withdrawn(frozenset(), False)


def test_what_is_withdrawn_is_added_up(tmp_path):
    withdrawn.write(tmp_path, ["b", "a"])
    assert withdrawn.write(tmp_path, ["c", "a"]) == Withdrawn(frozenset("abc"))
    assert withdrawn.read(tmp_path) == Withdrawn(frozenset("abc"))
    found = json.loads((tmp_path / WITHDRAWN).read_text())
    assert found == {"schema": 1, "ids": ["a", "b", "c"], "all": False}
    assert withdrawn.write(tmp_path, [], everything=True).everything
    assert withdrawn.write(tmp_path, ["d"]) == Withdrawn(frozenset("abcd"), True)
    assert (tmp_path / WITHDRAWN).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"schema": 1, "ids": ["a"',
        "[]",
        '{"schema": 2, "ids": [], "all": false}',
        '{"schema": 1, "ids": "a", "all": false}',
        '{"schema": 1, "ids": [1], "all": false}',
        '{"schema": 1, "ids": [], "all": "no"}',
        '{"schema": 1, "ids": []}',
        '{"schema": 1, "all": true}',
    ],
)
def test_a_damaged_list_stops_the_client(tmp_path, text):
    (tmp_path / WITHDRAWN).write_text(text)
    for act in (withdrawn.read, lambda folder: withdrawn.write(folder, ["a"])):
        with pytest.raises(RunError, match=r"withdrawn\.json must list what was withdrawn"):
            act(tmp_path)
    assert (tmp_path / WITHDRAWN).read_text() == text


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / WITHDRAWN).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="must list"):
        withdrawn.read(tmp_path)


def test_where_it_cannot_be_written_nothing_counts_as_withdrawn(tmp_path):
    with pytest.raises(RunError, match="Nothing was withdrawn"):
        withdrawn.write(tmp_path / "missing", ["a"])


def test_two_who_withdraw_at_once_are_both_heard(tmp_path):
    code = (
        "import sys; from pathlib import Path; from perennial.client import withdrawn\n"
        "sys.stdin.readline()\n"
        "for i in range(20): withdrawn.write(Path(sys.argv[1]), [f'{sys.argv[2]}-{i}'])"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE)
        for name in "ab"
    ]
    for process in several:
        process.stdin.write(b"go" + os.linesep.encode())
        process.stdin.close()
    assert [process.wait(30) for process in several] == [0, 0]
    expected = {f"{name}-{i}" for name in "ab" for i in range(20)}
    assert withdrawn.read(tmp_path).ids == expected
