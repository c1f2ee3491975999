"""A client's memory on disk: whole, private to its user, and in step with its index."""

import errno
import os
import select
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from perennial.continual import index, memory
from perennial.core.errors import RunError
from perennial.core.values import Records


def store(n=30, seed=0, d=12):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = tuple(f"record-{seed}-{i}" for i in range(n))
    texts = tuple(f"what was said {i} \N{SNOWMAN} \ud800" for i in range(n))
    targets = tuple(f"label {i % 3}" for i in range(n))
    return replace(
        memory.fresh("base", 7),
        records=Records(ids, texts, targets, ("talk",) * n, ("",) * n),
        classes=targets,
        ranks=np.arange(n) // 3,
        kept=1e9 + rng.random(n),
        embeddings=rows.astype(np.float16),
        seen=frozenset(targets),
        forgotten=frozenset({"someone"}),
        alone=False,
    )


def same(one, other):
    return memory.packed(one) == memory.packed(other)


def test_what_is_written_is_read(tmp_path):
    mine = store()
    memory.write(tmp_path, mine)
    found = memory.read(tmp_path, "base")
    assert same(found, mine)
    assert found.records == mine.records
    assert np.array_equal(found.embeddings, mine.embeddings)
    assert np.array_equal(found.kept, mine.kept)
    assert (found.secret, found.seen, found.forgotten) == (mine.secret, mine.seen, mine.forgotten)
    assert memory.read(tmp_path / "nowhere") is None


def test_an_empty_memory_has_no_index(tmp_path):
    memory.write(tmp_path, store())
    empty = memory.fresh("base", 7)
    memory.write(tmp_path, empty)
    assert same(memory.read(tmp_path), empty)
    assert memory.open_index(tmp_path, empty) is None
    assert not (tmp_path / memory.INDEX).exists()


def test_nobody_else_may_read_it(tmp_path):
    memory.write(tmp_path, store())
    with memory.alone_in(tmp_path):
        pass
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_secrets_differ_and_stay_out_of_what_is_shown():
    one, other = memory.fresh("base", 7), memory.fresh("base", 7)
    assert one.secret != other.secret
    assert one.secret.hex() not in repr(one)
    assert str(one.secret) not in repr(one)


@pytest.mark.parametrize("end", [0, 5, 19, 30, 51, 60, 900, -1])
def test_a_store_that_was_cut_off_is_named(tmp_path, end):
    memory.write(tmp_path, store())
    path = tmp_path / memory.STORE
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(RunError, match=r"memory\.bin must be a client's memory.*delete it"):
        memory.read(tmp_path)


def test_no_changed_byte_passes(tmp_path):
    data = memory.packed(store(6))
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 0x20
        with pytest.raises(ValueError, match=r"begin as|checksum"):
            memory.unpacked(bytes(changed))


def test_a_memory_of_another_base_is_refused(tmp_path):
    memory.write(tmp_path, store())
    with pytest.raises(RunError, match=r"must be of the base other.*it is of base"):
        memory.read(tmp_path, "other")


def damaged(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def emptied(path):
    path.write_bytes(b"")


def foreign(path):
    other = store(20, seed=9)
    memory.write(path.parent / "other", other)
    shutil.copy(path.parent / "other" / memory.INDEX, path)


@pytest.mark.parametrize("harm", [os.unlink, damaged, emptied, foreign])
def test_a_lost_damaged_or_foreign_index_is_made_again(tmp_path, harm, caplog):
    (tmp_path / "other").mkdir()
    mine = store()
    memory.write(tmp_path, mine)
    good = (tmp_path / memory.INDEX).read_bytes()
    harm(tmp_path / memory.INDEX)
    found = memory.open_index(tmp_path, mine)
    assert "It is made again" in caplog.text
    rows = mine.embeddings.astype(np.float32)
    assert np.array_equal(found.nearest(rows, 1)[1][:, 0], np.arange(len(mine)))
    assert (tmp_path / memory.INDEX).read_bytes() == good
    caplog.clear()
    memory.open_index(tmp_path, mine)
    assert not caplog.text


def test_a_good_index_is_read_and_not_made(tmp_path, monkeypatch):
    mine = store()
    memory.write(tmp_path, mine)
    monkeypatch.delattr(index, "indexed")
    assert len(memory.open_index(tmp_path, mine)) == len(mine)


@pytest.mark.parametrize("inside", [(), ("a file of somebody",)])
def test_a_folder_in_the_place_of_the_index_blocks_nothing(tmp_path, inside, caplog):
    mine, place = store(), tmp_path / memory.INDEX
    memory.write(tmp_path, mine)
    place.unlink()
    place.mkdir()
    for name in inside:
        (place / name).touch()
    found = memory.open_index(tmp_path, mine)
    assert len(found) == len(mine)
    said = "could not be written: [Errno" if inside else "was an empty folder"
    assert f"{place} {said}" in caplog.text
    assert place.is_file() is not bool(inside)
    # All that goes on does so with somebody's files where they were.
    memory.write(tmp_path, store(seed=1))
    assert memory.forget(tmp_path, ["record-1-4"]) == {"record-1-4"}
    assert memory.describe(tmp_path)["records"] == len(mine) - 1
    assert len(memory.open_index(tmp_path, memory.read(tmp_path))) == len(mine) - 1
    assert len(memory.forget(tmp_path, [], everything=True)) == len(mine) - 1
    assert memory.read(tmp_path) is None
    assert [path.name for path in place.glob("*")] == list(inside)


def test_forgetting_takes_records_out_of_every_file_at_once(tmp_path):
    mine = store()
    memory.write(tmp_path, mine)
    left_over = tmp_path / f".{memory.STORE}.99-abcd"
    left_over.write_bytes(memory.packed(mine))
    row = mine.embeddings[4].tobytes()
    assert row in (tmp_path / memory.STORE).read_bytes()
    assert row in (tmp_path / memory.INDEX).read_bytes()
    gone = {"record-0-4", "record-0-9"}
    assert memory.forget(tmp_path, [*gone, "unknown"]) == gone
    for path in tmp_path.iterdir():
        assert row not in path.read_bytes()
        assert b"what was said 4 " not in path.read_bytes()
    found = memory.read(tmp_path)
    assert not {"record-0-4", "record-0-9"} & set(found.records.ids)
    assert {"record-0-4", "unknown", "someone"} <= found.forgotten
    assert len(memory.open_index(tmp_path, found)) == len(mine) - 2
    before = (tmp_path / memory.STORE).stat().st_mtime_ns
    assert not memory.forget(tmp_path, ["record-0-4"])
    assert (tmp_path / memory.STORE).stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", [None, damaged])
def test_forgetting_everything_needs_no_readable_memory(tmp_path, harm):
    memory.write(tmp_path, store())
    if harm:
        harm(tmp_path / memory.STORE)
    assert len(memory.forget(tmp_path, [], everything=True)) == (0 if harm else 30)
    assert [path.name for path in tmp_path.iterdir()] == [".memory.lock"]
    assert not memory.forget(tmp_path, ["x"])


def test_a_damaged_memory_cannot_forget_by_id_and_says_so(tmp_path):
    memory.write(tmp_path, store())
    damaged(tmp_path / memory.STORE)
    with pytest.raises(RunError, match="delete it"):
        memory.forget(tmp_path, ["record-0-4"])


def test_it_says_what_it_holds(tmp_path):
    assert memory.describe(tmp_path)["records"] == 0
    memory.write(tmp_path, store())
    told = memory.describe(tmp_path)
    sizes = [(tmp_path / name).stat().st_size for name in (memory.STORE, memory.INDEX)]
    assert told == {
        "records": 30,
        "classes": 3,
        "bytes": sum(sizes),
        "bytes_per_class": sum(sizes) / 3,
        "per_class": {"label 0": 10, "label 1": 10, "label 2": 10},
    }


def test_a_full_disk_leaves_the_old_memory_whole(tmp_path, full_disk):
    small, large = store(5), store(4000, seed=1)
    memory.write(tmp_path, small)
    needs = r"memory\.bin must hold \d+ bytes.*Make room"
    with full_disk(60_000), pytest.raises(RunError, match=needs):
        memory.write(tmp_path, large)
    assert same(memory.read(tmp_path), small)
    assert len(memory.open_index(tmp_path, small)) == 5
    assert {path.name for path in tmp_path.iterdir()} == {memory.STORE, memory.INDEX}


def test_an_index_that_does_not_fit_costs_nothing_but_its_making(tmp_path, caplog, full_disk):
    mine = store(40)
    memory.write(tmp_path, mine)
    (tmp_path / memory.INDEX).unlink()
    with full_disk(100):
        found = memory.open_index(tmp_path, mine)
    assert len(found) == 40
    assert "could not be written" in caplog.text
    assert not (tmp_path / memory.INDEX).exists()


FULL = """
import errno, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_memory import same, store
from perennial.continual import memory
from perennial.core.errors import RunError
folder, small = Path(sys.argv[1]), store(150)
memory.write(folder, small)
try:
    memory.write(folder, store(5000, seed=1))
except RunError as error:
    assert error.__cause__.errno == errno.ENOSPC, error.__cause__
    print(error)
assert same(memory.read(folder), small)
assert len(memory.open_index(folder, small)) == 150
(folder / "filler").open("wb", buffering=0).write(bytes(10**6))
try:
    memory.forget(folder, ["record-0-4"])
except RunError as error:
    print(error)
assert same(memory.read(folder), small)
(folder / "filler").unlink()
assert memory.forget(folder, ["record-0-4"]) == {"record-0-4"}
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="a small disk needs unshare(1) of Linux")
def test_on_a_disk_that_is_really_full(tmp_path):
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k disk "$0" && exec "$@"']
    try:
        subprocess.run([*mount, str(tmp_path), "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this system mounts no disk for us: {error.stderr.decode()}")
    here = os.path.dirname(__file__)
    command = [*mount, str(tmp_path), sys.executable, "-c", FULL, str(tmp_path), here]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(os.strerror(errno.ENOSPC)) == 2
    assert done.stdout.count("Make room") == 2


def test_one_process_at_a_time_changes_a_memory(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from perennial.continual import memory\n"
        "with memory.alone_in(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"in\n"
        with subprocess.Popen(command, stdout=subprocess.PIPE) as second:
            ready, *_ = select.select([second.stdout], [], [], 0.5)
            assert not ready
            first.kill()  # however it dies, the next one goes on
            assert second.stdout.readline() == b"in\n"
            second.kill()


def unit(n, d, seed):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num_queries", [3, 64])  # FAISS computes few and many in two ways
def test_the_nearest_are_those_of_all_distances(num_queries):
    reference, queries = unit(200, 24, 0), unit(num_queries, 24, 1)
    exact = np.linalg.norm(reference[None].astype(float) - queries[:, None], axis=2)
    distances, found = index.nearest(reference, queries, 4)
    assert np.array_equal(found, np.argsort(exact, axis=1)[:, :4])
    assert np.allclose(distances, np.sort(exact, axis=1)[:, :4], atol=1e-5)
    assert distances.dtype == np.float32
    rounded = np.linalg.norm(reference.astype("f2").astype(float) - queries[:, None], axis=2)
    distances, found = index.indexed(reference).nearest(queries, 4)
    assert np.array_equal(found, np.argsort(rounded, axis=1)[:, :4])
    assert np.allclose(distances, np.sort(rounded, axis=1)[:, :4], atol=1e-4)


def test_no_more_neighbours_than_there_are():
    assert index.nearest(unit(3, 4, 0), unit(5, 4, 1), 9)[1].shape == (5, 3)
    assert index.nearest(unit(3, 4, 0)[:0], unit(5, 4, 1), 2)[0].shape == (5, 0)
    assert index.nearest(unit(3, 4, 0), unit(5, 4, 1)[:0], 2)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("reference", "queries", "k", "said"),
    [
        (unit(3, 4, 0), unit(3, 5, 0), 1, "must be 4 wide; got 5"),
        (unit(3, 4, 0), unit(3, 4, 0), 0, "k must be 1 or more"),
        (unit(3, 4, 0) * np.nan, unit(3, 4, 0), 1, "finite"),
        (unit(3, 4, 0), unit(3, 4, 0)[0], 1, "shape"),
    ],
)
def test_wrong_embeddings_are_named(reference, queries, k, said):
    with pytest.raises(ValueError, match=said):
        index.nearest(reference, queries, k)


def test_class_means_are_means_and_zero_without_records():
    rows, classes = unit(10, 4, 0), np.array([0, 2, 2, 0, 0, 2, 2, 2, 0, 0])
    means = index.class_means(rows, classes, 4)
    assert means.dtype == np.float32
    assert np.allclose(means[0], rows[classes == 0].mean(0), atol=1e-7)
    assert np.allclose(means[2], rows[classes == 2].mean(0), atol=1e-7)
    assert not means[[1, 3]].any()
