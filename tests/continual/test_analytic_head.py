"""The head in closed form through its plug-in: exactness, late records, withdrawals, noise."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from perennial.continual import analytic_head, contributions, statistics
from perennial.continual.analytic_answer import Head, Recipe
from perennial.continual.analytic_client import natural
from perennial.continual.heads import Linear
from perennial.continual.random_features import STEPS
from perennial.core.errors import ConfigError, DataError, PrivacyError, RunError
from perennial.core.parts import Lesson, Phase
from perennial.core.values import Domain, Records
from perennial.models import tiny

NAMES = ("sky", "sea", "ice")
WORDS = {
    "sky": (("blue", "cloud", "high"), ("star", "night", "far")),
    "sea": (("wave", "salt", "deep"), ("boat", "sail", "port")),
    "ice": (("cold", "white", "hard"), ("skate", "rink", "fast")),
}
DOMAINS = tuple(Domain(name, (f"{name} a", f"{name} b")) for name in NAMES)
OPTIONS = {"layers": 2, "width": 40}


def records(domain, count=20, seed=0):
    """`count` records of a domain, half of each label, the words of its label and one of none."""
    rng = np.random.default_rng([seed, NAMES.index(domain.name)])
    rows = []
    for i in range(count):
        words = [*rng.permutation(WORDS[domain.name][i % 2]), rng.choice(list("uvwxyz"))]
        rows.append((f"{domain.name}-{seed}-{i}", " ".join(words), domain.labels[i % 2]))
    ids, texts, targets = zip(*rows, strict=True)
    return Records(ids, texts, targets, (domain.name,) * count, ("",) * count)


SHARDS = tuple(records(domain) for domain in DOMAINS)
TEST = sum((records(domain, 10, seed=1) for domain in DOMAINS), Records())


@pytest.fixture
def model():
    return tiny.build(layers=1)


class Client:
    """A client's folder and what it holds, domain by domain."""

    def __init__(self, folder, shards):
        folder.mkdir(exist_ok=True)
        self.folder, self.shards = folder, list(shards)
        self.gone, self.counted = frozenset(), frozenset()

    def phase(self, index, order, **changes):
        seen = [DOMAINS[i] for i in order[: index + 1]]

        def held():
            mine = sum((self.shards[i] for i in order[: index + 1]), Records())
            return mine.where(lambda i: mine.ids[i] not in self.gone)

        here = Phase(
            seen[-1],
            index,
            self.folder,
            5,
            np.zeros(0, np.float32),
            labels=tuple(label for domain in seen for label in domain.labels),
            base="tiny",
            held=held,
            gone=self.gone,
            counted=self.counted,
        )
        return replace(here, **changes)

    def finish(self, method, model, index, order=(0, 1, 2), **changes):
        here = self.phase(index, order, **changes)
        shard = self.shards[order[index]]
        shard = shard.where(lambda i: shard.ids[i] not in self.gone)
        model.fit_labels(here.labels)
        return method.finish(method.start(here), shard, model, here)


def taught(method, model, clients, order=(0, 1, 2), kept=None, until=3, validation=None):
    """What the server keeps after the domains of `order`."""
    kept = {} if kept is None else kept
    for index in range(until):
        vectors = [client.finish(method, model, index, order) for client in clients]
        for client in clients:
            client.counted |= {index}
        kept = method.learn(kept, lesson(model, sum(vectors).astype(float), index, order))
    return kept


def lesson(model, total, index, order=(0, 1, 2), validation=None):
    return Lesson(
        DOMAINS[order[index]],
        index,
        model.labels,
        total,
        1.0,
        model.vector(),
        model.manifest,
        model,
        Records() if validation is None else validation,
    )


def scores(method, model, kept):
    """Scores of the test records by label, whatever the order of the labels."""
    found = method.answer(method.head(kept), model, model.labels).logits(TEST)
    return found[:, np.argsort(model.labels)]


def split(rng, num_clients, folder):
    """Clients that hold all records between them, by chance; some may hold none."""
    owners = [rng.integers(0, num_clients, len(shard)) for shard in SHARDS]
    shards = [
        [SHARDS[i].take(np.flatnonzero(owners[i] == c)) for i in range(3)]
        for c in range(num_clients)
    ]
    return [Client(folder / f"{c}", shards[c]) for c in range(num_clients)]


@pytest.mark.parametrize("form", ["means", "lda", "ridge"])
def test_any_order_and_any_split_give_the_same_bits(form, model, tmp_path):
    method = analytic_head.build(form=form, **OPTIONS)
    one = Client(tmp_path / "one", SHARDS)
    kept = taught(method, model, [one])
    expected = scores(method, model, kept)
    rng = np.random.default_rng(0)
    for trial in range(20 if form == "ridge" else 3):
        order = tuple(rng.permutation(3))
        (tmp_path / str(trial)).mkdir()
        clients = split(rng, int(rng.integers(1, 6)), tmp_path / str(trial))
        model = tiny.build(layers=1)
        other = taught(method, model, clients, order)
        assert np.array_equal(other["gram"], kept["gram"])
        assert int(other["counts"].sum()) == 60
        assert np.abs(scores(method, model, other) - expected).max() <= 1e-6


def test_a_late_record_counts_when_it_comes(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    whole = taught(method, model, [Client(tmp_path / "whole", SHARDS)])
    late = Client(tmp_path / "late", (SHARDS[0].take(range(7)), *SHARDS[1:]))
    kept = taught(method, model, [late], until=2)
    late.shards[0] = SHARDS[0]
    vector = late.finish(method, model, 2)
    kept = method.learn(kept, lesson(model, vector.astype(float), 2))
    same(kept, whole)


def same(kept, other):
    for name in ("counts", "sums", "gram"):
        assert np.array_equal(kept[name], other[name]), name


def remaining(shard, gone):
    return shard.where(lambda i: shard.ids[i] not in gone)


@pytest.mark.parametrize("everything", [False, True])
def test_who_withdraws_was_never_there(everything, model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    rest = Client(tmp_path / "rest", [shard.take(range(10)) for shard in SHARDS])
    client = Client(tmp_path / "client", [shard.take(range(10, 20)) for shard in SHARDS])
    gone = frozenset(id_ for shard in client.shards for id_ in shard.ids[:: 1 if everything else 3])
    kept = taught(method, model, [rest, client], until=2)
    client.gone = gone  # its texts are not held any more: only what it wrote down can say
    total = rest.finish(method, model, 2).astype(float) + client.finish(method, model, 2)
    kept = method.learn(kept, lesson(model, total, 2))

    without = [remaining(shard, gone) for shard in client.shards]
    clients = [Client(tmp_path / "a", rest.shards), Client(tmp_path / "b", without)]
    other = taught(method, model, clients)
    same(kept, other)
    assert np.array_equal(scores(method, model, kept), scores(method, model, other))


def test_a_whole_client_leaves_with_records_that_its_data_lost_before(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    kept = taught(method, model, [client], until=2)
    client.shards[:2] = Records(), SHARDS[1].take(range(5))  # ids that nothing but its file names
    client.gone = frozenset(id_ for shard in client.shards for id_ in shard.ids)
    vector = client.finish(method, model, 2, everything=True)
    assert np.array_equal(vector, client.finish(method, model, 2, everything=True))
    kept = method.learn(kept, lesson(model, vector.astype(float), 2))
    for name in ("counts", "sums", "gram"):
        assert not kept[name].any(), name


@pytest.mark.parametrize("encoder", ["base", "first", "both"])
def test_a_withdrawn_record_leaves_the_disk_once_its_subtraction_counted(encoder, model, tmp_path):
    method = analytic_head.build(encoder=encoder, **OPTIONS)
    client = Client(tmp_path, SHARDS)
    taught(method, model, [client], until=1)
    client.gone = frozenset({"sky-0-3"})
    first = client.finish(method, model, 1)
    assert np.array_equal(first, client.finish(method, model, 1))  # asked again: the same
    assert "sky-0-3" in on_disk(tmp_path)  # the server may never get it: needed once more
    method.start(client.phase(1, (0, 1, 2)))
    assert "sky-0-3" in on_disk(tmp_path)
    client.counted |= {1}
    method.start(client.phase(2, (0, 1, 2), run="another"))  # whose ends are others
    assert "sky-0-3" in on_disk(tmp_path)
    method.start(client.phase(2, (0, 1, 2)))  # the next round
    assert set(on_disk(tmp_path)) == set(SHARDS[0].ids + SHARDS[1].ids) - client.gone
    left = (tmp_path / contributions.FILE).stat()
    method.start(client.phase(2, (0, 1, 2)))
    assert (tmp_path / contributions.FILE).stat().st_ino == left.st_ino  # nothing to write
    client.finish(method, model, 2)
    assert "sky-0-3" not in on_disk(tmp_path)


def test_an_end_gives_the_same_after_the_disk_was_purged(model, tmp_path):
    method, vectors = analytic_head.build(**OPTIONS), []
    for name in ("purged", "not"):
        client = Client(tmp_path / name, SHARDS)
        taught(method, model, [client], until=1)
        client.gone = frozenset(SHARDS[0].ids[::3])
        client.finish(method, model, 1)
        client.counted |= {1}
        # Without this list `start` looks at nothing.
        gone, client.gone = client.gone, client.gone if name == "purged" else frozenset()
        method.start(client.phase(2, (0, 1, 2)))
        assert bool(gone & set(on_disk(client.folder))) == (name == "not")
        client.gone = gone | frozenset(SHARDS[1].ids[:2])
        model.fit_labels(client.phase(2, (0, 1, 2)).labels)
        here = client.phase(2, (0, 1, 2))
        vectors.append(method.finish(here, remaining(SHARDS[2], gone), model, here))
    assert np.array_equal(*vectors)


def test_damaged_contributions_are_named_before_a_withdrawn_record_is_purged(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    taught(method, model, [client], until=1)
    (tmp_path / contributions.FILE).write_bytes(b"damaged")
    client.gone = frozenset({"sky-0-3"})
    with pytest.raises(RunError, match="must say which records this client added"):
        method.start(client.phase(1, (0, 1, 2)))


def on_disk(folder):
    with np.load(folder / contributions.FILE) as file:
        return [str(name) for name in file["ids"]]


def test_an_end_that_was_not_counted_is_made_up_for(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    whole = taught(method, model, [Client(tmp_path / "whole", SHARDS)])
    client, kept = Client(tmp_path / "lost", SHARDS), {}
    for index in range(3):
        vector = client.finish(method, model, index).astype(float)
        if index == 1:  # the answer never arrived
            vector[:] = 0
        else:
            client.counted |= {index}
        kept = method.learn(kept, lesson(model, vector, index))
    same(kept, whole)


def test_another_run_starts_from_nothing(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    whole = taught(method, model, [client])
    client.counted = frozenset()
    same(taught(method, tiny.build(layers=1), [client]), whole)


def test_a_late_client_of_another_run_starts_from_nothing_too(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    whole = taught(method, model, [client])
    client.counted = frozenset()
    vector = client.finish(method, model, 2)  # its first end in the new run
    same(method.learn({}, lesson(model, vector.astype(float), 2)), whole)


def test_what_was_added_must_be_known(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    taught(method, model, [client], until=2)
    path = tmp_path / contributions.FILE
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(RunError, match="must say which records this client added"):
        client.finish(method, model, 2)
    path.unlink()
    with pytest.raises(RunError, match="must say which records this client added"):
        client.finish(method, model, 2)
    path.write_bytes(good)
    with pytest.raises(RunError, match=r"must hold features of .*base other"):
        client.finish(method, model, 2, base="other")
    client.counted |= {2}
    with pytest.raises(RunError, match="at the end of domain 2, which the server counted"):
        client.finish(method, model, 2)


@pytest.mark.parametrize("checked", [True, False])
def test_a_flipped_bit_is_named_wherever_it_is(model, tmp_path, checked):
    client = Client(tmp_path, SHARDS)
    taught(analytic_head.build(**OPTIONS), model, [client], until=2)
    path = tmp_path / contributions.FILE
    good = path.read_bytes()
    if checked:
        places = range(0, len(good), max(1, len(good) // 400))
    else:  # as an earlier version wrote it
        with np.load(path) as file:
            np.savez(path, **{**file, "schema": np.array(1)})
        good = path.read_bytes()
        assert contributions.held(tmp_path)
        places = range(100, 700)  # names, heads and the first values of arrays
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :])
        named = pytest.raises(RunError, match="must say which records this client added")
        with named if checked else suppress(RunError):  # without a checksum some pass unseen
            contributions.held(tmp_path)


def test_nothing_leaves_where_it_cannot_be_written_down(model, tmp_path, monkeypatch):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    taught(method, model, [client], until=1)
    before = (tmp_path / contributions.FILE).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"No space left on device.*Nothing was sent"):
            client.finish(method, model, 1)
    assert (tmp_path / contributions.FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [contributions.FILE]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_analytic_head as t
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
client = t.Client(Path(sys.argv[1]), t.SHARDS)
client.counted = frozenset({0})
client.finish(t.analytic_head.build(**t.OPTIONS), t.tiny.build(layers=1), 1)
"""


@pytest.mark.integration
def test_a_kill_at_the_end_of_a_domain_changes_nothing(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    whole = taught(method, model, [Client(tmp_path / "whole", SHARDS)], until=2)
    client = Client(tmp_path / "killed", SHARDS)
    kept = taught(method, model, [client], until=1)
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", KILLED, str(client.folder), here], check=False)
    assert done.returncode == -signal.SIGKILL
    vector = client.finish(method, model, 1)
    same(method.learn(kept, lesson(model, vector.astype(float), 1)), whole)


def test_labels_grow_and_may_stand_in_another_order(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    kept = taught(method, model, [client], until=1)
    answer = method.answer(method.head(kept), model, (*model.labels, "new"))
    found = answer.logits(TEST)
    assert found.shape == (len(TEST), 3)
    assert (found.argmax(1) < 2).all()
    vector = client.finish(method, model, 1)
    kept = method.learn(kept, lesson(model, vector.astype(float), 1))
    assert kept["labels"].tolist() == ["sky a", "sky b", "sea a", "sea b"]
    assert kept["counts"].tolist() == [10, 10, 10, 10]


def test_a_label_that_nobody_named_is_refused(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    with pytest.raises(DataError, match=r"'sky a'.*domain list must name every label"):
        client.finish(method, model, 0, labels=("else",))


def test_refresh_replaces_what_was_kept(model, tmp_path):
    method = analytic_head.build(encoder="refresh", **OPTIONS)
    client = Client(tmp_path, SHARDS)
    kept = taught(method, model, [client], until=2)
    moved = model.vector() + np.random.default_rng(0).normal(0, 0.2, model.manifest.size)
    model.load(moved.astype(np.float32))
    vector = client.finish(method, model, 1)
    again = method.learn(kept, lesson(model, vector.astype(float), 1))
    assert again["counts"].tolist() == [10, 10, 10, 10]
    assert not np.array_equal(again["gram"], kept["gram"])
    assert list(tmp_path.iterdir()) == []
    assert not method.private
    with pytest.raises(PrivacyError, match="may be summed once"):
        client.finish(method, model, 1, private=True)


def test_after_the_first_domain_the_adapter_stands_still(model, tmp_path):
    method = analytic_head.build(encoder="first", **OPTIONS)
    client = Client(tmp_path, SHARDS)
    parameters = model.parameters()
    assert method.mask(method.start(client.phase(0, (0, 1, 2))), parameters) == {}
    masks = method.mask(method.start(client.phase(1, (0, 1, 2))), parameters)
    assert masks.keys() == {name for name in parameters if not name.startswith("head.")}
    assert not any(part.any() for part in masks.values())


def teach(model, data):
    """Give the model's own head the regression on its features."""
    features = model.features(data, 1, adapted=True).astype(np.float64)
    targets = np.eye(2)[[model.labels.index(target) for target in data.targets]]
    ones = np.concatenate([features, np.ones((len(features), 1))], 1)
    weight = np.linalg.lstsq(ones, 20 * targets, rcond=1e-6)[0]
    values = model.manifest.unpack(model.vector())
    arrays = {**values, "head.weight": weight[:-1].T, "head.bias": weight[-1]}
    model.load(model.manifest.pack({n: np.asarray(a, np.float32) for n, a in arrays.items()}))


def test_the_regulariser_and_the_blend_are_chosen_on_validation(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, SHARDS)
    vector = client.finish(method, model, 0).astype(float)
    validation = records(DOMAINS[0], 40, seed=2)
    plain = Head.read(method.learn({}, lesson(model, vector, 0))["head"])
    assert (plain.blend, plain.temperature) == (0.0, 10.0)
    # The model's own head knows nothing yet: it is left out.
    kept = method.learn({}, lesson(model, vector, 0, validation=validation))
    assert Head.read(kept["head"]).blend == 0.0
    assert float(kept["regulariser"]) > 0
    # The clients' labels were exchanged: now only the model's own head is right.
    teach(model, validation)
    classes = statistics.size(2, 40) - statistics.triangle(40)
    wrong = vector.copy()
    wrong[2:classes] = vector[2:classes].reshape(2, 40)[::-1].reshape(-1)
    kept = method.learn({}, lesson(model, wrong, 0, validation=validation))
    assert Head.read(kept["head"]).blend > 0.0
    found = method.answer(method.head(kept), model, model.labels).logits(validation)
    assert np.allclose(np.exp(found).sum(1).max(), 1.0, atol=0.5)
    fixed = analytic_head.build(blend=0.5, regulariser=0.2, **OPTIONS)
    kept = fixed.learn({}, lesson(model, vector, 0, validation=validation))
    assert Head.read(kept["head"]).blend == 0.5
    assert float(kept["regulariser"]) == 0.2


def test_a_share_is_at_most_one():
    with pytest.raises(ConfigError, match=r"continual.regulariser\] must be a share"):
        analytic_head.build(form="lda", regulariser=1.5)
    analytic_head.build(form="ridge", regulariser=1.5)


def test_a_head_survives_the_way_to_whoever_answers():
    rng = np.random.default_rng(0)
    recipe = Recipe(4, 70, 2**31 - 1, True)
    linear = Linear(*(rng.normal(size=s).astype(np.float32) for s in ((3, 70), 3)))
    head = Head.read(Head(recipe, linear, 20.0, 0.25).vector())
    assert (head.recipe, head.temperature, head.blend) == (recipe, 20.0, 0.25)
    assert np.array_equal(head.linear.weight, linear.weight)
    assert np.array_equal(head.linear.bias, linear.bias)
    with pytest.raises(RunError, match="must be a head in closed form of this version"):
        Head.read(head.vector()[:-1])


def noted(rows_seen, noise=0.0):
    """`Phase.summed` that notes each row and gives the plain sum, or one with noise."""

    def summed(rows, records, clip):
        total = 0.0
        for block in rows:
            assert block.dtype == np.float32
            rows_seen.extend(np.linalg.norm(block, axis=1) / clip)
            total = total + block.sum(0, dtype=np.float64)
        rng = np.random.default_rng(0)
        return (total + noise * clip * rng.normal(size=np.shape(total))).astype(np.float32)

    return summed


@pytest.mark.parametrize("form", ["means", "ridge"])
def test_a_private_sum_is_one_row_of_norm_1_for_each_record(form, model, tmp_path):
    method = analytic_head.build(form=form, **OPTIONS)
    client, rows = Client(tmp_path, SHARDS), []
    client.finish(method, model, 0)  # so that an earlier domain was there
    private = {"private": True, "summed": noted(rows), "gone": frozenset({"sea-0-1"})}
    vector = client.finish(method, model, 1, **private)
    assert len(rows) == 19
    assert np.allclose(rows, 1.0, atol=1e-5)
    vector = natural(vector, 4, 40)
    sums = statistics.view(vector, 4, 40)
    assert not sums.counts[:2].any()
    assert not sums.sums[:2].any()
    assert sums.counts[2:] == pytest.approx([9.5, 9.5] if form == "means" else [10, 9], rel=1e-5)
    if form == "ridge":  # nothing but the rows' length tells it from the plain sums
        expected = client.finish(method, model, 1, gone=private["gone"])
        plain = statistics.view(natural(expected, 4, 40), 4, 40)
        cosine = np.sum(sums.sums[2:] * plain.sums[2:], 1)
        cosine /= np.linalg.norm(sums.sums[2:], axis=1) * np.linalg.norm(plain.sums[2:], axis=1)
        assert (cosine > 0.99).all()
        trace = np.trace(statistics.full(sums.gram, 40))
        assert trace == pytest.approx(19 * STEPS**2 * 40 / 2, rel=1e-4)


def test_noise_falls_on_the_labels_of_the_domain_alone(model, tmp_path):
    method = analytic_head.build(**OPTIONS)
    client = Client(tmp_path, (SHARDS[0], Records(), SHARDS[2]))
    summed = noted([], noise=1.0)
    vector = natural(client.finish(method, model, 1, private=True, summed=summed), 4, 40)
    sums = statistics.view(vector, 4, 40)
    assert not sums.counts[:2].any()
    assert not sums.sums[:2].any()
    assert sums.counts[2:].all()
    assert sums.sums[2:].all()
    assert sums.gram.all()
    assert not (tmp_path / contributions.FILE).exists()
    vector = client.finish(method, model, 1, private=True, summed=summed)
    kept = method.learn({}, lesson(model, vector.astype(float), 1))
    assert np.isfinite(scores(method, model, kept)).all()


def test_both_sums_the_frozen_encoder_once_and_the_adapter_anew(model, tmp_path):
    both = analytic_head.build(encoder="both", **OPTIONS)
    alone = {
        name: analytic_head.build(encoder=name, seed=seed, **OPTIONS)
        for name, seed in (("base", 0), ("refresh", 1))
    }
    client, others = Client(tmp_path / "a", SHARDS), {}
    kept = taught(both, model, [client], until=2)
    for name, method in alone.items():
        other = Client(tmp_path / name, SHARDS)
        others[name] = taught(method, model, [other], until=2)
    for name, half in (("base", "frozen"), ("refresh", "adapted")):
        for key, value in others[name].items():
            assert np.array_equal(kept[f"{half}.{key}"], value)
    assert both.size(model.manifest) == sum(m.size(model.manifest) for m in alone.values())
    assert sum(both.lengths(model.manifest)) == both.size(model.manifest)
    halves = [Head.read(method.head(others[name])).recipe.seed for name, method in alone.items()]
    assert halves == [0, 1]  # or the two would be wrong about the same records
    found = both.answer(both.head(kept), model, model.labels).logits(TEST)
    means = [
        method.answer(method.head(others[name]), model, model.labels).logits(TEST)
        for name, method in alone.items()
    ]
    np.testing.assert_allclose(found, np.mean(means, 0), rtol=1e-6)
    assert {"features (frozen)", "features (adapted)"} <= set(both.facts(kept))
    assert not both.private


def test_both_refuses_a_head_that_is_not_two(model):
    both = analytic_head.build(encoder="both", **OPTIONS)
    for bad in ([], [0.0], [0.0, 0.0, 1.0], [0.0, 5.0, 1.0], [np.nan, 1.0, 1.0, 1.0], [-1.0, 1.0]):
        with pytest.raises(RunError, match="must be two heads"):
            both.answer(np.array(bad, np.float32), model, model.labels)


@pytest.mark.parametrize("form", ["ridge", "lda", "means"])
def test_both_still_know_a_label_whose_only_holder_is_away(form, model, tmp_path):
    both = analytic_head.build(encoder="both", form=form, layers=2)
    base = analytic_head.build(encoder="base", form=form, layers=2)
    answers = {}
    for name, method in (("both", both), ("base", base)):
        shards = [Client(tmp_path / f"{name}{i}", [SHARDS[0], SHARDS[1]]) for i in range(2)]
        shards[0].shards = [SHARDS[0], Records()]  # the other one alone holds the second domain
        shards[1].shards = [Records(), SHARDS[1]]
        kept = taught(method, model, shards, until=2)
        # The next end without the second client: what is summed anew knows nothing of its labels.
        vector = shards[0].finish(method, model, 1)
        kept = method.learn(kept, lesson(model, vector.astype(float), 1))
        answers[name] = method.answer(method.head(kept), model, model.labels).logits(TEST)
    sea = [i for i, target in enumerate(TEST.targets) if target.startswith("sea")]
    assert sea
    labels = [model.labels.index(TEST.targets[i]) for i in sea]
    right = {name: (found[sea].argmax(1) == labels).mean() for name, found in answers.items()}
    assert right["both"] >= right["base"] - 0.2
    assert right["base"] > 0.3
    np.testing.assert_allclose(np.exp(answers["both"]).sum(1).max(), 1.0, atol=0.2)
