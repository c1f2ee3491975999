"""What a client remembers for drift, what it tells, and how far one record may move that."""

from dataclasses import replace

import numpy as np
import pytest

from perennial.continual import drift, reference
from perennial.continual.drift import window_bits
from perennial.continual.reference import FILE, Reference, load, lowest, packed, part_of, save
from perennial.continual.scope import unit
from perennial.continual.windows import LEAST, Settings
from perennial.core.errors import RunError
from perennial.core.parts import Lesson, Phase, added
from perennial.core.values import Domain, Manifest, Records
from perennial.models import tiny

PARTS = 2
SETTINGS = Settings(window=40)
OPTIONS = {"window": 40, "capacity": 200}
OLD, NEW = Domain("old", ("o0", "o1", "o2")), Domain("new", ("n0", "n1", "n2"))


def records(domain, count, seed, name=""):
    """Records whose words tell their label: three words of the label's own five, in any order."""
    rng = np.random.default_rng(seed)
    labels = [domain.labels[i] for i in rng.integers(0, 3, count)]
    texts = [" ".join(rng.choice([f"{label}{i}" for i in range(5)], 3)) for label in labels]
    ids = tuple(f"{name or domain.name}:{seed}:{i}" for i in range(count))
    return Records(ids, tuple(texts), tuple(labels), (domain.name,) * count, ("",) * count)


BEFORE, AFTER = records(OLD, 150, 0), records(NEW, 80, 1)
SAME = replace(records(OLD, 80, 2), domains=("new",) * 80)


@pytest.fixture(scope="module")
def model():
    return tiny.build(layers=1)


@pytest.fixture(scope="module")
def method():
    return drift.build(**OPTIONS)


class Client:
    """One client over domains, with the engine's words."""

    def __init__(self, method, model, folder):
        self.method, self.model, self.folder = method, model, folder

    def phase(self, index, **changes):
        here = Phase((OLD, NEW)[index > 0], index, self.folder, 7 + index, np.zeros(0, np.float32))
        return replace(here, **{"base": self.model.identity(), **changes})

    def finish(self, index, shard, **changes):
        here = self.phase(index, **changes)
        return self.method.finish(self.method.start(here), shard, self.model, here)

    def kept(self):
        return load(self.folder, self.model.identity(), pytest.fail)


@pytest.fixture
def client(method, model, tmp_path):
    return Client(method, model, tmp_path)


@pytest.fixture
def second(client):
    client.finish(0, BEFORE)
    return client


class Summed:
    """`Phase.summed` without noise that writes down what it was asked."""

    def __init__(self):
        self.records, self.clip, self.rows = None, None, None

    def __call__(self, rows, asked, clip):
        self.rows, self.records, self.clip = np.concatenate(list(rows)), asked, clip
        return added([self.rows], asked, clip)


def test_the_first_domain_has_nothing_to_compare_with(client):
    assert client.finish(0, BEFORE).tolist() == [0.0, 0.0]
    assert client.kept().ids == BEFORE.ids


def test_a_new_domain_alarms_and_more_of_the_old_one_does_not(second):
    assert second.finish(1, AFTER).tolist() == [2.0, 2.0]
    second.folder = second.folder / "again"
    second.folder.mkdir()
    second.finish(0, BEFORE)
    assert second.finish(1, SAME).tolist() == [0.0, 2.0]


def test_too_few_records_make_no_window(second):
    assert second.finish(1, AFTER.take(range(LEAST - 1))).tolist() == [0.0, 0.0]
    assert second.finish(1, Records()).tolist() == [0.0, 0.0]


def test_an_end_that_is_asked_for_again_is_the_same(second):
    first = second.finish(1, AFTER)
    content = (second.folder / FILE).read_bytes()
    assert np.array_equal(second.finish(1, AFTER), first)
    assert (second.folder / FILE).read_bytes() == content


def test_the_sample_is_bounded_and_of_all_domains(second):
    second.finish(1, AFTER)
    second.finish(2, records(NEW, 300, 3))
    second.finish(3, Records())
    kept = second.kept()
    assert 190 <= len(kept) <= OPTIONS["capacity"]
    assert {name.rpartition(":")[0] for name in kept.ids} == {"old:0", "new:1", "new:3"}
    assert np.allclose(np.linalg.norm(kept.rows.astype(np.float32), axis=1), 1.0, atol=1e-3)


def test_the_withdrawn_are_gone_from_the_file(second):
    gone = frozenset(BEFORE.ids[::2])
    second.finish(1, AFTER, gone=gone)
    assert not gone & set(second.kept().ids)
    assert gone.isdisjoint(AFTER.ids)
    assert set(BEFORE.ids) - gone <= set(second.kept().ids)
    content = (second.folder / FILE).read_bytes()
    assert all(name.encode() + b'"' not in content for name in gone)


def test_of_a_whole_client_nobody_stays_in_the_file(second):
    second.finish(1, Records(), everything=True)
    assert not second.kept().ids


def planted(count, seed, shift):
    """A reference's or a shard's records with embeddings around two centres, moved by `shift`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    rows = rng.normal(scale=0.3, size=(count, 16))
    rows[np.arange(count), labels] += 2.0
    rows[:, 5] += shift
    names = tuple(f"{seed}:{i}" for i in range(count))
    own = Records(names, ("",) * count, tuple(map(str, labels)), ("d",) * count, ("",) * count)
    return own, unit(rows)


def sample(own, rows):
    return Reference("b", "k", PARTS).joined(own, rows)


@pytest.mark.parametrize("shift", [0.8, 3.0])
def test_one_record_changes_one_private_window_at_most(shift):
    old, old_rows = planted(80, 1, 0.0)
    new, new_rows = planted(80, 2, shift)
    whole = window_bits(SETTINGS, sample(old, old_rows), new, new_rows)
    assert whole.shape == (PARTS,)
    assert whole.all() if shift > 1 else whole.any()
    for i in range(0, len(old), 20):
        rest = [j for j in range(len(old)) if j != i]
        bits = window_bits(SETTINGS, sample(old.take(rest), old_rows[rest]), new, new_rows)
        changed = np.flatnonzero(bits != whole)
        assert set(changed) <= {part_of([old.ids[i]], "k", PARTS)[0]}
    for i in range(0, len(new), 20):
        rest = [j for j in range(len(new)) if j != i]
        bits = window_bits(SETTINGS, sample(old, old_rows), new.take(rest), new_rows[rest])
        changed = np.flatnonzero(bits != whole)
        assert set(changed) <= {part_of([new.ids[i]], "k", PARTS)[0]}


def test_one_record_can_change_a_private_window():
    old, old_rows = planted(80, 1, 0.0)
    new, new_rows = planted(80, 2, 3.0)
    of = part_of(new.ids, "k", PARTS)
    few = [*np.flatnonzero(of == 0)[:LEAST], *np.flatnonzero(of != 0)]
    bits = window_bits(SETTINGS, sample(old, old_rows), new.take(few), new_rows[few])
    fewer = window_bits(SETTINGS, sample(old, old_rows), new.take(few[1:]), new_rows[few[1:]])
    assert (bits - fewer).tolist() == [1.0, 0.0]


def test_one_record_more_changes_the_sample_of_its_own_part_alone():
    names = [f"r{i}" for i in range(300)]
    of = part_of(names, "k", PARTS)
    chosen = {names[i] for i in lowest(names, "k", 60, PARTS)}
    assert len(chosen) == 60
    moved = 0
    for i in range(0, 300, 7):
        rest = [name for name in names if name != names[i]]
        without = {rest[j] for j in lowest(rest, "k", 60, PARTS)}
        changed = chosen ^ without
        assert {of[names.index(name)] for name in changed} <= {of[i]}
        moved += len(changed) == 2
    assert moved


def test_a_private_end_sums_bits_that_new_and_old_records_pay_for(second):
    asked = Summed()
    vector = second.finish(1, AFTER, private=True, summed=asked)
    assert vector.tolist() == [asked.rows.sum(), 2.0]
    assert asked.clip == 1.0
    assert asked.rows.shape == (2, 1)
    assert set(asked.rows.ravel().tolist()) <= {0.0, 1.0}
    assert sorted(asked.records.ids) == sorted(BEFORE.ids + AFTER.ids)
    domains = dict(zip(asked.records.ids, asked.records.domains, strict=True))
    assert domains[BEFORE.ids[0]] == "old"
    assert domains[AFTER.ids[0]] == "new"


def test_in_a_private_run_each_record_pays_twice_at_most(second):
    paid = {}
    shards = {index: records(NEW, 60, 10 + index) for index in range(1, 5)}
    for index, shard in shards.items():
        asked = Summed()
        second.finish(index, shard, private=True, summed=asked)
        for name in asked.records.ids:
            paid[name] = paid.get(name, 0) + 1
    assert set(paid) == set(BEFORE.ids).union(*(shard.ids for shard in shards.values()))
    assert max(paid.values()) == 2
    assert second.method.sums == 2
    assert {paid[name] for name in BEFORE.ids} == {1}


def test_in_a_private_run_nobody_else_decides_who_is_in_the_sample(model, tmp_path):
    asked = []
    for name, first in (("few", Records()), ("many", records(OLD, 300, 8))):
        client = Client(drift.build(window=40, capacity=100), model, tmp_path / name)
        client.folder.mkdir()
        client.finish(0, first, private=True, summed=Summed())
        client.finish(1, BEFORE, private=True, summed=Summed())
        asked.append(Summed())
        client.finish(2, AFTER, private=True, summed=asked[-1])
    assert asked[0].records == asked[1].records
    assert 90 <= len(asked[0].records) - len(AFTER) <= 100
    assert np.array_equal(asked[0].rows, asked[1].rows)


def test_a_private_end_that_is_asked_for_again_looks_at_the_same(second):
    asked = [Summed(), Summed()]
    second.finish(1, AFTER, private=True, summed=asked[0])
    second.finish(1, AFTER, private=True, summed=asked[1])
    assert asked[0].records == asked[1].records
    assert np.array_equal(asked[0].rows, asked[1].rows)


def test_a_private_new_domain_alarms(model, tmp_path):
    client = Client(drift.build(window=40, private_windows=1), model, tmp_path)
    client.finish(0, BEFORE)
    assert client.finish(1, AFTER, private=True, summed=Summed()).tolist() == [1.0, 1.0]


def test_in_a_private_run_embeddings_depend_on_their_own_part_alone(second, model, monkeypatch):
    asked = []
    features = type(model).features

    def seen(self, own, *rest, **more):
        asked.append(own.ids)
        return features(self, own, *rest, **more)

    monkeypatch.setattr(type(model), "features", seen)
    second.finish(1, AFTER, private=True, summed=Summed())
    key = second.kept().key
    assert [len(set(part_of(ids, key, 2))) for ids in asked] == [1, 1]
    rows = dict(zip(second.kept().ids, second.kept().rows, strict=True))
    wanted = unit(features(model, AFTER))
    found = np.array([rows[name] for name in AFTER.ids], np.float32)
    assert np.allclose(found, wanted, atol=1e-3)


def test_the_number_of_private_windows_says_nothing_of_the_records(second):
    for shard in (AFTER, AFTER.take(range(3)), Records()):
        asked = Summed()
        assert second.finish(1, shard, private=True, summed=asked)[1] == 2.0
        assert len(asked.rows) <= len(set(asked.records.ids))


def test_in_a_first_private_domain_nobody_pays(client):
    asked = Summed()
    assert client.finish(0, BEFORE, private=True, summed=asked).tolist() == [0.0, 0.0]
    assert len(asked.records) == 0
    assert not asked.rows.size
    again = Summed()
    assert client.finish(0, BEFORE, private=True, summed=again).tolist() == [0.0, 0.0]
    assert len(again.records) == 0


def test_a_private_run_with_other_parts_draws_its_sample_anew(second, model):
    other = Client(drift.build(**OPTIONS, private_windows=3), model, second.folder)
    asked = Summed()
    held = {"held": lambda: BEFORE + AFTER}
    assert other.finish(1, AFTER, private=True, summed=asked, **held)[1] == 3.0
    assert other.kept().parts == 3


def test_a_file_survives_as_it_was(tmp_path):
    own, rows = planted(30, 4, 0.0)
    kept = replace(sample(own, rows), ends=("0:d:1", "1:e:2"), turns=(0, 1, -1) * 10)
    save(tmp_path, kept)
    found = load(tmp_path, "b", pytest.fail)
    assert packed(found) == packed(kept)
    assert found == replace(kept, rows=found.rows)
    assert np.array_equal(found.rows, rows.astype("<f2"))
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    empty = Reference("b", "k")
    save(tmp_path, empty)
    assert packed(load(tmp_path, "b", pytest.fail)) == packed(empty)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_file_is_made_again_from_held_records(second, damage, caplog):
    whole = second.finish(1, AFTER)
    path = second.folder / FILE
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    path.write_bytes(
        {"cut": content[:-40], "flipped": flipped, "other": b"x" * 300, "empty": b""}[damage]
    )
    held = {"held": lambda: BEFORE + AFTER}
    assert np.array_equal(second.finish(1, AFTER, **held), whole)
    assert set(second.kept().ids) == set(BEFORE.ids + AFTER.ids)
    assert FILE in caplog.text
    assert "made again from 150 held records" in caplog.text


def test_a_damaged_file_without_held_records_is_named(second):
    path = second.folder / FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="checksum is wrong") as error:
        second.finish(1, AFTER, held=lambda: AFTER)
    assert str(path) in str(error.value)
    assert path.exists()


def test_a_file_of_another_base_is_named(second):
    before = (second.folder / FILE).read_bytes()
    with pytest.raises(RunError, match="base 'elsewhere'; it holds those of"):
        second.finish(1, AFTER, base="elsewhere")
    assert (second.folder / FILE).read_bytes() == before


def test_a_full_disk_keeps_the_old_file(second, monkeypatch):
    before = (second.folder / FILE).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference, "write_atomically", full)
    with pytest.raises(RunError, match="No space left"):
        second.finish(1, AFTER)
    assert (second.folder / FILE).read_bytes() == before


def lesson(index, alarms, windows):
    empty = Manifest((), ())
    total = np.array([alarms, windows], np.float64)
    params = np.zeros(0, np.float32)
    return Lesson(NEW, index, (), total, 3.0, params, empty, None, Records())


def test_the_server_keeps_the_counts_of_each_domain(method):
    kept = method.learn({}, lesson(0, 0.0, 0.0))
    assert method.facts(kept) == {"windows": 0}
    kept = method.learn(kept, lesson(1, 3.0, 12.0))
    assert method.facts(kept) == {"windows": 12, "alarm_share": 0.25}
    again = method.learn(kept, lesson(1, 6.0, 12.0))
    assert method.facts(again) == {"windows": 12, "alarm_share": 0.5}
    assert again[drift.ALARMS].tolist() == [0.0, 6.0]
    assert again[drift.WINDOWS].tolist() == [0.0, 12.0]
    assert method.told(kept).size == 0


@pytest.mark.parametrize(("noisy", "share"), [(-2.5, 0.0), (15.0, 1.0), (3.3, 0.33)])
def test_noise_carries_no_share_out_of_its_range(method, noisy, share):
    found = method.facts(method.learn({}, lesson(0, noisy, 10.0)))
    assert found["alarm_share"] == pytest.approx(share)
