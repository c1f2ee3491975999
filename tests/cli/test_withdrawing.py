"""Withdrawal at a client's folder: noted, and out of its memory at once."""

from dataclasses import replace

import numpy as np
import pytest

from perennial.cli.withdrawing import withdraw
from perennial.client import withdrawn
from perennial.client.store import ClientStore
from perennial.continual import contributions, memory, reference
from perennial.core.errors import DataError, RunError
from perennial.core.values import Records

IDS = ("r1", "r2", "r3", "r 4")


@pytest.fixture
def client(tmp_path):
    folder = tmp_path / "client"
    ClientStore(folder, "00000", "base")
    store = replace(
        memory.fresh("base", 1),
        records=Records(IDS, *(("text",) * 4 for _ in range(4))),
        classes=("text",) * 4,
        ranks=np.arange(4),
        kept=np.zeros(4),
        embeddings=np.eye(4, dtype=np.float16),
    )
    memory.write(folder, store)
    return folder


def test_by_id_and_by_file(client, tmp_path, capsys):
    listed = tmp_path / "ids.txt"
    listed.write_text("r3\n\n  r 4 \nelsewhere\n")
    withdraw(client, ["r1"], listed, everything=False)
    assert withdrawn.read(client).ids == {"r1", "r3", "r 4", "elsewhere"}
    assert memory.read(client).records.ids == ("r2",)
    said = capsys.readouterr().out
    assert "withdrawn: 4 ids, 4 in all" in said
    assert "3 records taken out" in said
    withdraw(client, ["r1"], None, everything=False)
    assert "withdrawn: 0 ids, 4 in all" in capsys.readouterr().out


def test_what_new_records_are_held_against_forgets_them_too(client, capsys):
    rows = np.eye(4, dtype=np.float32)
    records = Records(IDS, *(("text",) * 4 for _ in range(4)))
    whole = reference.Reference("base", "key", ends=("first",))
    reference.save(client, whole.joined(records, rows))

    def kept():
        return reference.load(client, "base", pytest.fail).ids

    withdraw(client, ["r1", "r 4"], None, everything=False)
    assert kept() == ("r2", "r3")
    assert "drift: 2 records" in capsys.readouterr().out
    withdraw(client, [], None, everything=True)
    assert kept() == ()
    (client / reference.FILE).write_bytes(b"damaged")
    withdraw(client, ["r2"], None, everything=False)
    assert not (client / reference.FILE).exists()


def summed(folder, ids, removed):
    count = len(ids)
    contributions.write(
        folder,
        contributions.Contributions(
            "a run",
            frozenset({0, 1}),
            tuple(ids),
            ("text",) * count,
            np.zeros(count, np.int32),
            np.array(removed, np.int32),
            np.zeros((count, 3), np.int8),
        ),
    )


def test_it_says_of_each_id_what_this_client_held_and_when_the_statistics_lose_it(client, capsys):
    summed(client, ["r1", "s1", "s2", "s3"], [contributions.NEVER] * 2 + [1, contributions.NEVER])
    before = (client / contributions.FILE).read_bytes()
    withdraw(client, ["r1", "r2", "s1", "s2", "nobody"], None, everything=False)
    *_, head, nobody, r1, r2, s1, s2 = capsys.readouterr().out.splitlines()
    assert head.startswith(
        "statistics: 3 records to subtract at the end of the next domain that this client takes "
        "part in; the features stay on this disk, to subtract by, until the next round that it "
        "takes part in after the server has counted that (1 given already). "
    )
    assert nobody == "  nobody: nothing of it on this disk"
    later = "in the statistics until the next domain's end"
    assert r1 == f"  r1: was in the memory, gone now; {later}"
    assert r2 == "  r2: was in the memory, gone now"
    assert s1 == f"  s1: {later}"
    given = "given to subtract, off this disk in the next round after the server counted it"
    assert s2 == f"  s2: {given}"
    # Subtracting needs them: they are there as they were.
    assert (client / contributions.FILE).read_bytes() == before
    withdraw(client, [], None, everything=True)
    assert "statistics: 4 records" in capsys.readouterr().out


def test_without_statistics_nothing_is_said_to_be_subtracted(client, capsys):
    withdraw(client, ["r1"], None, everything=False)
    said = capsys.readouterr().out
    assert (
        "statistics: nothing of these records is on this disk to subtract by; sums that are" in said
    )
    assert said.endswith("  r1: was in the memory, gone now\n")


def test_damaged_statistics_are_named_after_the_memory_was_purged(client, capsys):
    (client / contributions.FILE).write_bytes(b"damaged")
    with pytest.raises(RunError, match="must say which records"):
        withdraw(client, ["r1"], None, everything=False)
    assert withdrawn.read(client).ids == {"r1"}
    assert "r1" not in memory.read(client).records.ids
    assert "memory: 1 records" in capsys.readouterr().out


def test_a_client_as_a_whole(client, capsys):
    withdraw(client, [], None, everything=True)
    assert withdrawn.read(client).everything
    assert memory.read(client) is None
    assert not (client / memory.INDEX).exists()
    assert "all records of this client" in capsys.readouterr().out


def test_a_folder_that_is_no_client_s_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"must be a client's own folder; it has no client\.json"):
        withdraw(tmp_path, ["r1"], None, everything=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"\n \n", b"\xff\xfe"])
def test_a_list_without_ids_is_refused(client, tmp_path, content):
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(DataError, match="must list record ids, one a line"):
        withdraw(client, [], tmp_path / "ids.txt", everything=False)
    with pytest.raises(DataError, match="must list record ids, one a line"):
        withdraw(client, [], tmp_path / "nowhere.txt", everything=False)
    assert len(memory.read(client)) == 4


def test_an_editor_s_mark_before_the_first_id_is_not_part_of_it(client, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbfr1\r\nr2\r\n")
    withdraw(client, [], tmp_path / "ids.txt", everything=False)
    assert withdrawn.read(client).ids == {"r1", "r2"}


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_id_that_is_empty_is_refused(client, empty):
    with pytest.raises(DataError, match="must not be empty"):
        withdraw(client, ["r1", empty], None, everything=False)
    assert not withdrawn.read(client).ids


def test_one_damaged_file_keeps_none_of_the_others(client, capsys):
    records = Records(IDS, *(("text",) * 4 for _ in range(4)))
    whole = reference.Reference("base", "key", ends=("first",))
    reference.save(client, whole.joined(records, np.eye(4, dtype=np.float32)))
    path = client / memory.STORE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"(?s)delete it.*then withdraw the same records again"):
        withdraw(client, ["r1"], None, everything=False)
    said = capsys.readouterr().out
    assert "drift: 1 records" in said
    assert "statistics: nothing" in said
    assert "memory:" not in said
    assert reference.load(client, "base", pytest.fail).ids == IDS[1:]


def test_a_damaged_reference_is_left_empty_to_be_drawn_anew(client):
    (client / reference.FILE).write_bytes(b"damaged r1")
    withdraw(client, ["r1"], None, everything=False)
    assert (client / reference.FILE).read_bytes() == b""
    asked = []
    reference.load(client, "base", asked.append)
    assert len(asked) == 1
    withdraw(client, [], None, everything=True)
    assert not (client / reference.FILE).exists()


def test_a_damaged_memory_is_named_and_the_withdrawal_noted_all_the_same(client):
    path = client / memory.STORE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="delete it"):
        withdraw(client, ["r1"], None, everything=False)
    assert withdrawn.read(client).ids == {"r1"}
    withdraw(client, [], None, everything=True)
    assert not path.exists()
