import os
from pathlib import Path

import numpy as np
import pytest

from perennial.core import files, seeds


def test_seeds_are_the_same_on_every_machine():
    # Recorded once: a change breaks every resumed run.
    assert seeds.derive(7) == 4359823973405836615
    assert seeds.derive(7, "client", 3) == 7960138436819256231


def test_seeds_depend_on_the_seed_every_label_its_type_and_the_order():
    found = [
        seeds.derive(0),
        seeds.derive(1),
        seeds.derive(0, "a"),
        seeds.derive(0, "a", "b"),
        seeds.derive(0, "b", "a"),
        seeds.derive(0, "ab"),
        seeds.derive(0, 1),
        seeds.derive(0, "1"),
        seeds.derive(0, 1, 1),
        seeds.derive(0, 11),
    ]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**63 for seed in found)


def test_a_generator_draws_the_same_again():
    first, second = (seeds.generator(5, "x").random(4) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, seeds.generator(5, "y").random(4))


def test_writing_replaces_the_whole_content(tmp_path):
    path = tmp_path / "a.json"
    files.write_atomically(path, "first, and longer")
    files.write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    files.write_atomically(path, "gr\u00fc\u00df")
    assert path.read_text(encoding="utf-8") == "gr\u00fc\u00df"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_no_file_to_write():
    with pytest.raises(IsADirectoryError, match="is a folder"):
        files.write_atomically(Path(), "x")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_content_and_leaves_no_litter(
    tmp_path, monkeypatch, broken
):
    path = tmp_path / "a.json"
    files.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_content_is_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    files.write_atomically(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]  # content, rename, folder
