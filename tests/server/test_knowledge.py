"""What the server keeps between domains: whole, its own, and only the newest."""

import numpy as np
import pytest

from perennial.core.errors import RunError
from perennial.server.knowledge import Knowledge, load, save

KNOWN = Knowledge(
    {"gram": np.arange(6.0).reshape(2, 3), "names": np.array("a,b"), "count": np.array([3])},
    {7: (0, 2), 9: ()},
)


def test_what_was_kept_comes_back(tmp_path):
    save(tmp_path / "k", 3, KNOWN, "stamp")
    found = load(tmp_path / "k", 3, "stamp")
    assert found.kept.keys() == KNOWN.kept.keys()
    assert all(np.array_equal(found.kept[name], KNOWN.kept[name]) for name in KNOWN.kept)
    assert found.kept["gram"].dtype == np.float64
    assert found.counted == KNOWN.counted


def test_a_run_begins_with_nothing(tmp_path):
    assert load(tmp_path, 0, "stamp") == Knowledge()


def test_a_later_domain_needs_its_file(tmp_path):
    with pytest.raises(RunError, match=r"0002.npz must hold what the run learnt"):
        load(tmp_path, 2, "stamp")


def test_only_the_newest_two_are_kept(tmp_path):
    for domain in range(5):
        save(tmp_path, domain, KNOWN, "stamp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0003.npz", "0004.npz"]


def test_that_of_another_run_is_refused(tmp_path):
    save(tmp_path, 1, KNOWN, "stamp")
    with pytest.raises(RunError, match="stamp stamp"):
        load(tmp_path, 1, "other")


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_damaged_file_is_named(tmp_path, cut):
    save(tmp_path, 1, KNOWN, "stamp")
    path = tmp_path / "0001.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RunError, match=r"0001.npz must hold"):
        load(tmp_path, 1, "stamp")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path, 1, KNOWN, "stamp")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perennial.server.knowledge.np.savez", full)
    with pytest.raises(RunError, match="No space left"):
        save(tmp_path, 1, Knowledge(), "stamp")
    assert [path.name for path in tmp_path.iterdir()] == ["0001.npz"]
    assert load(tmp_path, 1, "stamp").counted == KNOWN.counted
