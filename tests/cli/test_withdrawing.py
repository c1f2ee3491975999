"""Withdrawal at a client's folder: noted, and out of its memory at once."""

from dataclasses import replace

import numpy as np
import pytest

from perennial.cli.withdrawing import withdraw
from perennial.client import withdrawn
from perennial.client.store import ClientStore
from perennial.continual import memory, reference
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


def test_a_damaged_memory_is_named_and_the_withdrawal_noted_all_the_same(client):
    path = client / memory.STORE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="delete it"):
        withdraw(client, ["r1"], None, everything=False)
    assert withdrawn.read(client).ids == {"r1"}
    withdraw(client, [], None, everything=True)
    assert not path.exists()
