"""Releases: whole or not there, hashed, signed, in a line; one pointer that moves at once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from perennial.cli.releasing import signer, trust
from perennial.core.errors import DataError
from perennial.server import release_proofs, releases


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def key(home):
    return signer(home)


@pytest.fixture
def trusted(home, key):
    return trust(home / f"{releases.KEY}.pub")


def made(home, key, content="a", **card):
    source = home / "source"
    source.mkdir(exist_ok=True)
    (source / "adapter.bin").write_text(content)
    (source / "labels.json").write_text('["x"]')
    files = {"adapter/adapter.bin": source / "adapter.bin", "labels.json": source / "labels.json"}
    present = releases.in_service(home)
    parent = present.number if present else None
    return releases.cut(home, files, {"domain": "bank", **card}, key, parent)


def test_a_release_holds_copies_their_hashes_and_its_parent(home, key, trusted):
    first = made(home, key)
    assert (first.folder / "adapter" / "adapter.bin").read_text() == "a"
    assert first.card["parent"] is None
    assert releases.in_service(home) is None
    assert releases.promote(home, 1) == first
    second = made(home, key, "b")
    assert second.card["parent"] == {"number": 1, "digest": first.digest}
    assert [r.number for r in releases.all_of(home)] == [1, 2]
    assert releases.in_service(home) == first  # until it is promoted
    assert release_proofs.verify(home, 2, trusted) == []
    assert not list((home / "releases").glob(".new-*"))


def test_rollback_goes_back_step_by_step_and_forth_again(home, key):
    for content in "abc":
        releases.promote(home, made(home, key, content).number)
    assert releases.rollback(home).number == 2
    assert releases.rollback(home).number == 1
    with pytest.raises(DataError, match="no release before"):
        releases.rollback(home)
    assert releases.in_service(home).number == 1
    releases.promote(home, 3)
    assert releases.rollback(home).number == 1  # what was in service before it
    assert [(h["from"], h["to"]) for h in releases.history(home)] == [
        (None, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 3), (3, 1),
    ]  # fmt: skip


def test_a_lost_history_does_not_lose_what_is_in_service(home, key):
    for content in "ab":
        releases.promote(home, made(home, key, content).number)
    path = home / "releases" / "history.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"time": "20')
    assert releases.in_service(home).number == 2
    assert releases.rollback(home).number == 1
    assert releases.history(home)[-1]["to"] == 1  # the torn line before it swallowed nothing


def test_a_change_whose_line_was_lost_is_known_by_the_next(home, key):
    for content in "abc":
        releases.promote(home, made(home, key, content).number)
    path = home / "releases" / "history.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "5", "{}", '{"to": "x"}', lines[2]]) + "\n")
    assert releases.rollback(home).number == 2


def spoil_file(release):
    (release.folder / "labels.json").write_text('["y"]')


def spoil_missing(release):
    (release.folder / "labels.json").unlink()


def spoil_extra(release):
    (release.folder / "more.bin").write_text("x")


def spoil_link(release):
    (release.folder / "labels.json").unlink()
    (release.folder / "labels.json").symlink_to("/etc/hostname")


def spoil_card(release):
    path = release.folder / "release.json"
    path.write_text(path.read_text().replace("bank", "city"))


def spoil_signature(release):
    path = release.folder / "release.sig"
    mark = json.loads(path.read_text())
    path.write_text(json.dumps({**mark, "signature": "00" * 64}))


def spoil_no_signature(release):
    (release.folder / "release.sig").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_file, "is not the file that was released"),
        (spoil_missing, "is missing"),
        (spoil_extra, "does not belong"),
        (spoil_link, "is missing"),
        (spoil_card, "valid signature"),
        (spoil_signature, "valid signature"),
        (spoil_no_signature, "cannot be read"),
    ],
)
def test_what_is_changed_is_found(spoil, words, home, key, trusted):
    release = made(home, key)
    assert release_proofs.verify(home, 1, trusted) == []
    spoil(release)
    faults = release_proofs.verify(home, 1, trusted)
    assert len(faults) == 1
    assert words in faults[0]
    if spoil not in (spoil_card, spoil_signature, spoil_no_signature):
        with pytest.raises(DataError, match="must not go into service"):
            releases.promote(home, 1)
        assert releases.in_service(home) is None


def test_another_hand_and_a_rewritten_parent_are_found(home, key, trusted, tmp_path):
    releases.promote(home, made(home, key).number)
    made(home, key, "b")
    stranger = signer(tmp_path / "stranger")
    text = releases.read(home, 1).folder / "release.json"
    text.write_text(text.read_text().replace("bank", "city"))
    mark = {
        "signer": stranger.public,
        "signature": stranger.sign(text.read_bytes()),
    }
    (text.parent / "release.sig").write_text(json.dumps(mark))
    faults = release_proofs.verify(home, 2, trusted)
    assert any("not the parent" in fault for fault in faults)
    assert any("who is not trusted" in fault for fault in faults)


def test_names_may_not_leave_the_folder_and_nothing_is_left(home, key):
    home.mkdir(exist_ok=True)
    (home / "file").write_text("x")
    for name in ("../up", "a/../../up", "/abs", "release.json"):
        with pytest.raises(DataError, match="inside its folder"):
            releases.cut(home, {name: home / "file"}, {}, key)
    with pytest.raises(DataError, match="no such file"):
        releases.cut(home, {"a": home / "none"}, {}, key)
    assert releases.all_of(home) == []
    assert not [p for p in (home / "releases").iterdir() if p.name.startswith(".new")]


def test_odd_folders_and_pointers_get_one_clear_error(home, key):
    with pytest.raises(DataError, match="there are: none"):
        releases.read(home, 1)
    with pytest.raises(DataError, match="there is none"):
        releases.promote(home, 1)
    made(home, key)
    pointer = home / "releases" / "current"
    pointer.symlink_to("../../etc")
    with pytest.raises(DataError, match="must lead to a release"):
        releases.in_service(home)
    pointer.unlink()
    pointer.write_text("0001")
    with pytest.raises(DataError, match="must be a link"):
        releases.in_service(home)
    (home / "releases" / "0001" / "release.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        releases.all_of(home)


CUTTING = """
import sys
from pathlib import Path
from perennial.cli.releasing import signer
from perennial.server import releases
home = Path(sys.argv[1])
key = signer(home)
source = home / "big"
source.write_text("x" * 1_000_000)
while True:
    releases.promote(home, releases.cut(home, {"a": source, "b/c": source}, {}, key).number)
"""


@pytest.mark.integration
def test_a_process_killed_at_any_moment_leaves_only_whole_releases(home, key, trusted):
    for wait in (0.0, 0.011, 0.023, 0.037):
        process = subprocess.Popen([sys.executable, "-c", CUTTING, home])
        before = len(releases.all_of(home))
        end = time.monotonic() + 60
        while len(releases.all_of(home)) < before + 2 and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = releases.all_of(home)
        assert found
        for release in found[-3:]:
            assert release_proofs.verify(home, release.number, trusted) == []
        assert releases.in_service(home).number >= found[-1].number - 1
    releases.cut(home, {}, {}, key)  # the lock died with its holder
