"""Per-domain adapters: what each domain starts from, what is kept, and who answers."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from perennial.client.train import Forces, Schedule, train
from perennial.continual import adapters, contributions, elastic_mask
from perennial.core.config import Train
from perennial.core.continual import Lesson, Phase
from perennial.core.errors import RunError
from perennial.core.private import one_cohort
from perennial.core.values import Domain, Manifest, Records
from perennial.models import tiny
from perennial.privacy import none

WORDS = {
    "greet": ("hello", "hi"),
    "part": ("bye", "farewell"),
    "eat": ("soup", "bread"),
    "drink": ("tea", "water"),
    "ride": ("bus", "train"),
    "fly": ("plane", "airport"),
}
DOMAINS = (
    Domain("talk", ("greet", "part")),
    Domain("food", ("eat", "drink")),
    Domain("travel", ("ride", "fly")),
)
TABLE = Train(epochs=4, batch_size=8, lr=0.02)


def planted(domain, split, per_label=12):
    """Records of five words each: four of their label's two, and one of two that all share."""
    draws = np.random.default_rng([ord(letter) for letter in domain.name + split])
    rows = []
    for label in domain.labels:
        for i in range(per_label):
            words = [*draws.choice(WORDS[label], 4), draws.choice(["please", "now"])]
            rows.append((f"{split}-{label}-{i}", " ".join(words), label, domain.name, ""))
    return Records(*zip(*rows, strict=True))


TRAIN = tuple(planted(domain, "train") for domain in DOMAINS)
VALIDATION = tuple(planted(domain, "validation", 6) for domain in DOMAINS)
TEST = tuple(planted(domain, "test", 6) for domain in DOMAINS)


def seeded():
    """A tiny model whose factors start the same each time."""
    torch.manual_seed(0)
    return tiny.build()


@dataclass
class Run:
    """The server of a run whose clients hold halves of each domain, and the model they share."""

    method: object
    folder: object
    model: object = field(default_factory=seeded)
    kept: dict = field(default_factory=dict)
    index: int = -1

    def labels(self):
        return tuple(label for domain in DOMAINS[: self.index + 1] for label in domain.labels)

    def begin(self):
        self.index += 1
        self.model.fit_labels(self.labels())
        self.kept, params = self.method.begin(
            self.kept, self.model.vector(), self.model.manifest, self.index
        )
        self.model.load(params)

    def train(self):
        """One client's round on all of the domain."""
        records, labels = TRAIN[self.index], self.labels()
        train(
            self.model,
            self.model.encode(records),
            one_cohort(len(records)),
            TABLE,
            Schedule(0, 1, 0.1, "linear"),
            none.build(),
            Forces(),
            frozenset(self.model.manifest.names),
            [labels.index(name) for name in DOMAINS[self.index].labels],
            np.random.default_rng(self.index),
        )

    def phase(self, client):
        folder = self.folder / client
        folder.mkdir(exist_ok=True)
        return Phase(
            DOMAINS[self.index],
            self.index,
            folder,
            5,
            self.method.told(self.kept),
            manifest=self.model.manifest,
            labels=self.labels(),
            base=self.model.identity(),
            counted=frozenset(range(self.index)),
        )

    def finish(self, records, client="a", **changes):
        here = replace(self.phase(client), **changes)
        return self.method.finish(self.method.start(here), records, self.model, here)

    def learn(self, vector):
        self.kept = self.method.learn(
            self.kept,
            Lesson(
                DOMAINS[self.index],
                self.index,
                self.labels(),
                vector.astype(np.float64),
                1.0,
                self.model.vector(),
                self.model.manifest,
                self.model,
                sum(VALIDATION[: self.index + 1], Records()),
            ),
        )

    def domain(self, shards=None):
        self.begin()
        self.train()
        shards = [TRAIN[self.index]] if shards is None else shards
        self.learn(sum(self.finish(part, str(i)) for i, part in enumerate(shards)))

    def logits(self, records):
        answer = self.method.answer(self.method.head(self.kept), self.model, self.labels())
        return answer.logits(records)

    def accuracy(self, records):
        chosen = self.logits(records).argmax(1)
        right = [
            self.labels()[i] == target for i, target in zip(chosen, records.targets, strict=True)
        ]
        return float(np.mean(right))


def method(**options):
    return elastic_mask.build(**{"router_layers": 2, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run after its three domains."""
    run = Run(method(), tmp_path_factory.mktemp("whole"))
    for _ in DOMAINS:
        run.domain()
    return run


def factors_of(model):
    views = model.manifest.unpack(model.vector())
    parts = [v.reshape(-1) for n, v in views.items() if not n.startswith("head")]
    return np.concatenate(parts)


def test_each_domain_starts_from_the_first_adapter_and_keeps_the_head(tmp_path):
    run = Run(method(), tmp_path)
    run.begin()
    start = factors_of(run.model)
    run.train()
    assert not np.array_equal(factors_of(run.model), start)
    rows = run.model.manifest.unpack(run.model.vector())["head.weight"].copy()
    run.learn(run.finish(TRAIN[0]))
    run.begin()
    assert factors_of(run.model).tobytes() == start.tobytes()
    head = run.model.manifest.unpack(run.model.vector())["head.weight"]
    assert np.array_equal(head[:2], rows)
    assert not head[2:].any()


def test_all_domains_are_answered_though_each_was_trained_on_alone(whole, tmp_path):
    assert whole.accuracy(sum(TEST, Records())) >= 0.8  # chance is 0.17
    run = Run(method(), tmp_path)
    run.domain()
    for name in ("start", "adapter.0", "rows.0", "weight.0", "bias.0"):
        assert np.array_equal(run.kept[name], whole.kept[name])


def test_the_adapter_of_the_chosen_domain_decides_within_it(whole):
    """Against the same arithmetic by hand: the router's chances times the adapter's."""
    from perennial.continual import router as routing

    records, labels = TEST[1], whole.labels()
    arrays = {k.removeprefix("router."): v for k, v in whole.kept.items() if "router." in k}
    features = routing.Router("lda", 2, 0).features(whole.model, records)
    classes = routing.class_chances(arrays, features)
    before = whole.model.vector()
    views = whole.model.manifest.unpack(np.zeros_like(before))
    factors = whole.model.manifest.only([n for n in views if not n.startswith("head")])
    views |= factors.unpack(whole.kept["adapter.1"])
    views["head.weight"][2:4], views["head.bias"][2:4] = (
        whole.kept["weight.1"],
        whole.kept["bias.1"],
    )
    whole.model.load(whole.model.manifest.pack(views))
    own = routing.softmax(whole.model.logits(whole.model.encode(records), 64)[:, 2:4])
    whole.model.load(before)
    found = np.exp(whole.logits(records))
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5)
    for i in range(len(records)):
        chosen = routing.domain_chances(classes, arrays["owner"])[i].argmax()
        expected = classes[i].copy()
        if chosen == 1:
            product = classes[i, 2:4] * own[i]
            expected[2:4] = product / product.sum() * classes[i, 2:4].sum()
            np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert labels[2:4] == DOMAINS[1].labels


def test_answers_look_at_texts_only_and_leave_the_model_as_it_was(whole):
    records = sum(TEST, Records())
    before = whole.model.vector()
    scores = whole.logits(records)
    assert whole.model.vector().tobytes() == before.tobytes()
    blind = replace(
        records, targets=("unheard of",) * len(records), domains=("nowhere",) * len(records)
    )
    assert np.array_equal(whole.logits(blind), scores)
    turned = whole.logits(records.take(range(len(records) - 1, -1, -1)))
    np.testing.assert_allclose(turned[::-1], scores, atol=1e-4)


def test_a_failing_model_is_left_as_it_was(whole, monkeypatch):
    before = whole.model.vector()

    def fails(encoded, batch_size):
        raise MemoryError("no room")

    monkeypatch.setattr(whole.model, "logits", fails)
    with pytest.raises(MemoryError):
        whole.logits(TEST[0])
    assert whole.model.vector().tobytes() == before.tobytes()


def test_the_router_is_the_same_for_any_split_over_clients(whole, tmp_path):
    split = Run(method(), tmp_path)
    for records in TRAIN:
        parts = [records.take(range(i, len(records), 3)) for i in range(3)]
        split.domain([*parts, Records()])
    for name in ("counts", "sums", "gram", "owner", "label"):
        assert np.array_equal(split.kept[f"router.{name}"], whole.kept[f"router.{name}"])
    records = sum(TEST, Records())
    assert np.array_equal(split.logits(records), whole.logits(records))


def test_a_withdrawn_record_leaves_the_router(tmp_path):
    gone = TRAIN[0].ids[0]
    (tmp_path / "kept").mkdir()
    (tmp_path / "never").mkdir()
    run, never = Run(method(), tmp_path / "kept"), Run(method(), tmp_path / "never")
    run.domain()
    never.domain([TRAIN[0].take(range(1, len(TRAIN[0])))])
    run.begin()
    never.begin()
    run.learn(run.finish(TRAIN[1], "0", gone=frozenset({gone})))
    never.learn(never.finish(TRAIN[1], "0", gone=frozenset({gone})))
    for name in ("counts", "sums", "gram"):
        assert np.array_equal(run.kept[f"router.{name}"], never.kept[f"router.{name}"])
    assert gone in contributions.held(tmp_path / "kept" / "0")
    run.begin()
    run.method.start(replace(run.phase("0"), gone=frozenset({gone})))  # the next round
    assert gone not in contributions.held(tmp_path / "kept" / "0")


def test_labels_that_came_after_the_last_lesson_are_never_the_answer(whole):
    run = Run(whole.method, whole.folder, seeded(), whole.kept, whole.index)
    labels = (*whole.labels(), "new")
    run.model.fit_labels(labels)
    answer = run.method.answer(run.method.head(run.kept), run.model, labels)
    scores = answer.logits(TEST[2])
    assert scores.shape == (len(TEST[2]), 7)
    assert (scores[:, 6] < -60).all()
    np.testing.assert_allclose(scores[:, :6], whole.logits(TEST[2]), atol=1e-5)


def test_facts_say_what_is_kept(whole):
    facts = whole.method.facts(whole.kept)
    factors = whole.kept["adapter.0"].size
    width = whole.kept["weight.0"].shape[1]
    each = 4 * (factors + 2 * width + 2) + 8 * 2
    assert facts["domains"] == 3
    assert facts["router_accuracy"] >= 0.8
    assert facts["bytes_per_domain"] == each
    assert facts["bytes_of_adapters"] == 3 * each
    assert facts["domains_left"] == "no limit"


def test_a_head_is_packed_and_unpacked_to_the_bit(whole):
    vector = whole.method.head(whole.kept)
    arrays = adapters.unpacked(vector)
    assert arrays["router.owner"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (arrays.pop("router.layers"), arrays.pop("router.width")) == (2, 0)
    for name, array in arrays.items():
        assert array.dtype == whole.kept[name].dtype
        assert np.array_equal(array, whole.kept[name])
    assert not {"start", "router.gram"} & set(arrays)


def test_a_head_says_itself_how_its_features_are_made(whole):
    head, labels = whole.method.head(whole.kept), whole.labels()
    other = method(router_layers=1, router_width=7, router="ridge")
    scores = other.answer(head, whole.model, labels).logits(TEST[0])
    assert np.array_equal(scores, whole.logits(TEST[0]))


@pytest.mark.parametrize(
    "harm",
    [
        lambda v: v[:-1],
        lambda v: np.append(v, np.float32(1)),
        lambda v: v[:0],
        lambda v: np.full_like(v, np.nan),
        lambda v: np.roll(v, 1),
        lambda v: np.concatenate([v[:1], v[2:], v[:1]]),
    ],
)
def test_a_damaged_head_is_refused(harm, whole):
    with pytest.raises(RunError, match="must say what it holds"):
        adapters.unpacked(harm(whole.method.head(whole.kept)))


def test_another_order_of_labels_is_refused(whole):
    labels = whole.labels()[::-1]
    with pytest.raises(RunError, match="labels that are asked for"):
        whole.method.answer(whole.method.head(whole.kept), whole.model, labels)


def test_a_model_without_a_head_is_refused_at_the_start():
    bare = Manifest(("layer.0.k.lora_A",), ((2, 3),))
    with pytest.raises(RunError, match=r"needs a model with a head.*slices"):
        method().begin({}, np.zeros(6, np.float32), bare, 0)


def test_a_base_of_fewer_layers_is_taken_whole(tmp_path):
    run = Run(method(router_layers=3), tmp_path)
    run.begin()
    memory = run.method.start(run.phase("a"))
    assert run.method.dataset(memory, TRAIN[0], run.model) == TRAIN[0]
    whole = method(router_layers=2).size(run.model.manifest)
    assert run.method.size(run.model.manifest) == whole
