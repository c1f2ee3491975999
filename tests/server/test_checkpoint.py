import numpy as np
import pytest

from perennial.core.errors import RunError
from perennial.core.values import ServerState
from perennial.server import checkpoint


def state(round_, domain=0):
    return ServerState(
        round=round_,
        domain=domain,
        params=np.arange(4, dtype=np.float32) / 3,
        slots={"velocity": np.ones(4, np.float32)},
        summary=np.zeros(2, np.float32),
    )


def test_a_state_comes_back_as_it_went(tmp_path):
    checkpoint.save(tmp_path / "c", state(2, 1), "abc")
    saved = checkpoint.newest(tmp_path / "c")
    back, manifest = saved.state, saved.stamp
    assert manifest == "abc"
    assert (back.round, back.domain) == (2, 1)
    assert back.params.tobytes() == state(2).params.tobytes()
    assert back.slots["velocity"].tolist() == [1, 1, 1, 1]
    assert back.summary.shape == (2,)


def test_the_newest_two_are_kept(tmp_path):
    for domain, round_ in [(0, 1), (0, 2), (1, 0), (1, 1)]:
        checkpoint.save(tmp_path, state(round_, domain), "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0001-00000.npz",
        "0001-00001.npz",
    ]


def test_a_damaged_newest_file_gives_way_to_the_one_before(tmp_path):
    checkpoint.save(tmp_path, state(1), "m")
    newest = checkpoint.save(tmp_path, state(2), "m")
    newest.write_bytes(newest.read_bytes()[:100])
    assert checkpoint.newest(tmp_path).state.round == 1


def test_a_flipped_byte_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, state(1), "m")
    content = bytearray(path.read_bytes())
    place = content.index(np.float32(1 / 3).tobytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RunError, match="must hold a readable checkpoint; none of 1"):
        checkpoint.newest(tmp_path)


def test_no_file_is_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1), "m")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, state(2), "m")
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path).state.round == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_cut_or_flipped_anywhere_is_noticed(tmp_path):
    """By an error, or by giving the state unharmed: never another state, never a traceback."""
    whole = state(1)
    path = checkpoint.save(tmp_path, whole, "m")
    good = path.read_bytes()
    cut = [good[:n] for n in range(0, len(good), 40)]
    flipped = [good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :] for i in range(len(good))]
    for content in cut + flipped:
        path.write_bytes(content)
        try:
            found = checkpoint.newest(tmp_path).state
        except RunError:
            continue
        assert found.params.tobytes() == whole.params.tobytes()
        assert found.slots.keys() == whole.slots.keys()
        assert (found.round, found.domain) == (1, 0)
