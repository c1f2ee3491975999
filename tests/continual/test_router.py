"""The router: chances of domains from sums, for each of its heads."""

from types import SimpleNamespace

import numpy as np
import pytest

from perennial.continual import heads, router, statistics
from perennial.continual.analytic_client import level
from perennial.core.continual import Lesson
from perennial.core.values import Domain, Manifest, Records

WIDTH = 6
TALK, FOOD = Domain("talk", ("a", "b")), Domain("food", ("c", "d", "e"))
CENTRES = np.random.default_rng(0).normal(scale=40.0, size=(5, WIDTH)).round().astype(np.float32)


class Plain:
    """A stand-in for a base of one layer: a record's features are what its text says.

    Sentences of words have the features of opposite numbers, and so no mean.
    """

    manifest = Manifest(("layer.0.lora_A",), ((1, 1),))

    def features(self, records, layers, adapted=False):
        rows = [self.row(i, text) for i, text in enumerate(records.texts)]
        return np.array(rows, np.float32).reshape(len(rows), WIDTH)

    @staticmethod
    def row(place, text):
        try:
            return [float(word) for word in text.split()]
        except ValueError:
            return [(-1.0) ** place * (1 + i) for i in range(WIDTH)]


def drawn(labels, each, seed):
    """Whole-number features around the centre of each label: records and classes."""
    draws = np.random.default_rng(seed)
    classes = np.repeat(labels, each)
    rows = CENTRES[classes] + draws.normal(scale=10.0, size=(len(classes), WIDTH)).round()
    texts = tuple(" ".join(str(value) for value in row) for row in rows)
    names = tuple("abcde"[i] for i in classes)
    ids, empty = tuple(f"{seed}-{i}" for i in range(len(classes))), ("",) * len(classes)
    return Records(ids, texts, names, empty, empty), classes


def lesson(chosen, domain, labels, records, validation=None):
    """What the server is given at the end of a domain, by the layout of `statistics`."""
    manifest = Manifest(("head.weight", "head.bias"), ((len(labels), WIDTH), (len(labels),)))
    classes = np.array([labels.index(name) for name in records.targets], np.intp)
    features = chosen.features(Plain(), records)
    whole = np.rint(features)
    vector = statistics.gather(whole, classes, len(labels), second=chosen.second)
    total = level(vector.astype(np.float64), len(labels), chosen.inputs(manifest))
    tested = Records() if validation is None else validation
    nothing = np.zeros(0, np.float32)
    return Lesson(domain, 0, labels, total, 1.0, nothing, manifest, Plain(), tested)


def learnt(kind, validation=None):
    chosen = router.Router(kind, 1, 0)
    kept = {}
    for i, (domain, labels, own) in enumerate(
        ((TALK, ("a", "b"), [0, 1]), (FOOD, tuple("abcde"), [2, 3, 4]))
    ):
        records, _ = drawn(own, 40, i)
        kept = router.learnt(chosen, kept, lesson(chosen, domain, labels, records, validation), i)
    return chosen, kept


@pytest.mark.parametrize("kind", ["means", "lda", "ridge"])
@pytest.mark.parametrize("with_validation", [True, False])
def test_records_are_sent_to_their_domain(kind, with_validation):
    validation = drawn([0, 1, 2, 3, 4], 5, 8)[0] if with_validation else None
    chosen, kept = learnt(kind, validation)
    records, classes = drawn([0, 1, 2, 3, 4], 20, 9)
    chances = router.class_chances(kept, chosen.features(Plain(), records))
    assert chances.shape == (100, 5)
    np.testing.assert_allclose(chances.sum(1), 1.0, atol=1e-5)
    domains = router.domain_chances(chances, kept["owner"])
    assert (domains.argmax(1) == (classes >= 2)).mean() >= 0.9
    assert ("accuracy" in kept) is with_validation


@pytest.mark.parametrize("kind", ["lda", "ridge"])
def test_statistics_of_the_domains_are_those_of_all_records_at_once(kind):
    chosen, kept = learnt(kind)
    both = drawn([0, 1], 40, 0)[0] + drawn([2, 3, 4], 40, 1)[0]
    at_once = lesson(chosen, FOOD, tuple("abcde"), both)
    found = chosen.sums(at_once.total, at_once.manifest)
    for name in ("counts", "sums", "gram"):
        assert np.array_equal(kept[name], getattr(found, name))
    head = heads.discriminants(found) if kind == "lda" else heads.ridge(found)
    solved = router._solver(kind, kept)(0.01)
    assert np.array_equal(solved["weight"], head(0.01).weight)


def test_the_nearest_means_by_faiss_are_cosines_around_the_middle():
    chosen, kept = learnt("means")
    features = chosen.features(Plain(), drawn([0, 1, 2, 3, 4], 20, 9)[0])
    scores = router.class_scores(kept, features)
    by_hand = features - kept["middle"]
    by_hand = by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True) @ kept["weight"].T
    np.testing.assert_allclose(scores, by_hand, atol=1e-5)
    assert not kept["gram"].size


def test_late_and_withdrawn_records_change_the_class_that_they_are_of():
    chosen, kept = learnt("lda")
    late = drawn([1], 3, 20)[0]
    gone = lesson(chosen, FOOD, tuple("abcde"), late)
    new = Domain("new", ("f",))
    labels = tuple("abcdef")
    one = Records(("n",), ("1 2 3 4 5 6",), ("f",), ("",), ("",))
    minus = lesson(chosen, new, labels, late)
    end = lesson(chosen, new, labels, one)
    after = router.learnt(
        chosen, kept, Lesson(**{**fields(end), "total": end.total - minus.total}), 2
    )
    before = chosen.sums(gone.total, gone.manifest)
    assert after["counts"].tolist() == [40, 37, 40, 40, 40, 1]
    assert np.array_equal(after["sums"][:5], kept["sums"] - before.sums)
    assert after["owner"].tolist() == [0, 0, 1, 1, 1, 2]


def fields(value):
    return {name: getattr(value, name) for name in Lesson.__dataclass_fields__}


def test_one_label_in_two_domains_is_two_classes():
    chosen = router.Router("lda", 1, 0)
    first, second = drawn([0, 1], 40, 0)[0], drawn([2, 3], 40, 1)[0]
    # The second domain calls its own, other, texts by the same names.
    renamed = Records(
        second.ids, second.texts, tuple("ab"["cd".index(t)] for t in second.targets),
        second.domains, second.groups,
    )  # fmt: skip
    again = Domain("again", ("a", "b"))
    kept = router.learnt(chosen, {}, lesson(chosen, TALK, ("a", "b"), first), 0)
    kept = router.learnt(chosen, kept, lesson(chosen, again, ("a", "b"), renamed), 1)
    assert kept["label"].tolist() == [0, 1, 0, 1]
    assert kept["owner"].tolist() == [0, 0, 1, 1]
    for records, domain in ((drawn([0, 1], 20, 7)[0], 0), (drawn([2, 3], 20, 7)[0], 1)):
        chances = router.class_chances(kept, chosen.features(Plain(), records))
        assert (router.domain_chances(chances, kept["owner"]).argmax(1) == domain).mean() > 0.9


def test_validation_chooses_the_temperature_that_says_the_truth():
    """With labels of validation drawn at random, no sharp router can be right."""
    _, sharp = learnt("lda", drawn([0, 1, 2, 3, 4], 10, 8)[0])
    records = drawn([0, 1, 2, 3, 4], 10, 8)[0]
    mixed = np.random.default_rng(0).permutation(len(records))
    wrong = Records(
        records.ids, records.texts, tuple(records.targets[i] for i in mixed),
        records.domains, records.groups,
    )  # fmt: skip
    _, soft = learnt("lda", wrong)
    assert soft["temperature"] > sharp["temperature"]
    assert soft["accuracy"] < sharp["accuracy"]


@pytest.mark.parametrize("kind", ["means", "lda", "ridge"])
def test_without_validation_the_best_class_decides(kind):
    """Divided by too much, classes that are all a little near would outvote the right one."""
    chosen, kept = learnt(kind)
    records, _ = drawn([0, 1, 2, 3, 4], 20, 9)
    features = chosen.features(Plain(), records)
    best = router.class_scores(kept, features).argmax(1)
    chances = router.domain_chances(router.class_chances(kept, features), kept["owner"])
    assert (chances.argmax(1) == kept["owner"][best]).mean() > 0.95


def test_no_other_label_than_those_so_far_takes_part_in_validation():
    unknown = Records(("v",), ("1 2 3 4 5 6",), ("unheard of",), ("",), ("",))
    _, kept = learnt("lda", unknown)
    _, without = learnt("lda")
    assert kept["temperature"] == without["temperature"]
    assert np.array_equal(kept["weight"], without["weight"])


@pytest.mark.parametrize(("kind", "width"), [("means", 0), ("lda", 0), ("ridge", 9)])
def test_the_size_is_that_of_the_sums(kind, width):
    chosen = router.Router(kind, 2, width)
    manifest = Manifest(("head.weight", "head.bias"), ((3, WIDTH), (3,)))
    inputs = width or 2 * WIDTH
    pairs = 0 if kind == "means" else inputs * (inputs + 1) // 2
    assert chosen.size(manifest) == 3 * (1 + inputs) + pairs
    total = np.arange(chosen.size(manifest), dtype=np.float64)
    found = chosen.sums(level(total.copy(), 3, inputs), manifest)
    assert np.array_equal(np.concatenate([found.counts, found.sums.ravel(), found.gram]), total)


@pytest.mark.parametrize(("kind", "width"), [("means", 0), ("lda", 0), ("ridge", 9)])
def test_what_a_client_sends_is_what_the_server_reads(kind, width, tmp_path, requests_):
    """Counts, sums and products come back in the records' own scale, whatever they travel in."""
    from perennial.continual import random_features
    from perennial.core.parts import Phase
    from perennial.models import tiny

    model, chosen = tiny.build(layers=1), router.Router(kind, 2, width)
    labels = tuple(sorted(set(requests_.targets)))
    model.fit_labels(labels)
    domain = Domain("talk", labels)
    here = Phase(domain, 0, tmp_path, 0, np.zeros(0, np.float32), labels=labels)
    vector = chosen.of_client(here, requests_, model)
    found = chosen.sums(vector.astype(np.float64), model.manifest)
    grid = np.rint(chosen.recipe(model.manifest).steps(model, requests_)).astype(np.int8)
    rows = random_features.expand(grid, width, router._SEED).astype(np.float64)
    of = [labels.index(target) for target in requests_.targets]
    assert found.counts.tolist() == np.bincount(of, minlength=len(labels)).tolist()
    assert np.array_equal(found.sums, np.eye(len(labels))[of].T @ rows)
    if chosen.second:
        assert np.array_equal(statistics.full(found.gram, rows.shape[1]), rows.T @ rows)


def test_features_do_not_depend_on_the_adapter():
    from perennial.models import tiny

    model = tiny.build(layers=1)
    model.fit_labels(("a", "b"))
    records = Records(("1", "2"), ("one two", "three"), ("a", "b"), ("", ""), ("", ""))
    chosen = router.Router("lda", 2, 0)
    before = chosen.features(model, records)
    draws = np.random.default_rng(0)
    model.load(draws.normal(size=model.manifest.size).astype(np.float32))
    assert np.array_equal(chosen.features(model, records), before)
    assert chosen.features(model, Records()).shape == (0, chosen.inputs(model.manifest))
    named = SimpleNamespace(
        features=model.features, manifest=model.manifest
    )  # labels are not looked at
    assert np.array_equal(chosen.features(named, records), before)
