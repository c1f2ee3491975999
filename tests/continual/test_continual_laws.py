"""What holds for every continual method in `continual/`, so for a new file at once.

The tests play the server for one client, two domains long: begin, told, start, dataset, finish,
learn.
"""

import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from perennial.core import plugins
from perennial.core.parts import Continual, Lesson, Phase, added
from perennial.core.values import Domain, Records
from perennial.models import causal_lm, tiny

NAMES = plugins.names("continual", Continual)

_HEAD = {"layers": 2, "width": 16}

# Options to test a method with, where its defaults are not all of it or do not fit a tiny model.
OPTIONS = {
    "analytic_head": (
        _HEAD,
        {"form": "lda", "layers": 2},
        {"form": "means", "layers": 1},
        {**_HEAD, "encoder": "refresh"},
        {**_HEAD, "encoder": "both"},
    ),
    "chain": (
        {
            "methods": (
                {"name": "analytic_head", **_HEAD},
                {"name": "replay"},
                {"name": "ewc"},
            )
        },
    ),
    "elastic_mask": (
        {"mode": "slices"},
        {"mode": "last_layers"},
        {"mode": "adapters", "router_layers": 2, "router_width": 16},
    ),
    "replay": ({}, {"policy": "reservoir", "tune_rounds": 0}),
}
BUILT = [(name, options) for name in NAMES for options in OPTIONS.get(name, ({},))]


DOMAINS = (Domain("talk", ("greet", "part", "thank")), Domain("food", ("eat", "drink")))
FOOD = Records(
    ("f0", "f1", "f2", "f3", "f4"),
    ("a sandwich please", "tea", "one more cup of tea", "i am hungry", "a glass of water"),
    ("eat", "drink", "drink", "eat", "drink"),
    ("food",) * 5,
    ("",) * 5,
)
VALIDATION = Records(
    ("v0", "v1", "v2", "v3", "v4"),
    ("hello there", "bye now", "many thanks", "a warm sandwich", "green tea"),
    ("greet", "part", "thank", "eat", "drink"),
    ("talk",) * 3 + ("food",) * 2,
    ("",) * 5,
)


def _named(pair):
    return "-".join([pair[0], *(value for value in pair[1].values() if isinstance(value, str))])


@pytest.fixture(params=BUILT, ids=_named)
def method(request):
    return plugins.load("continual", *request.param, Continual)


def moved(model, seed=0):
    """The model with other parameters than it starts with, as training would leave it."""
    draws = np.random.default_rng(seed)
    model.load(draws.normal(scale=0.1, size=model.manifest.size).astype(np.float32))
    return model


@pytest.fixture
def model():
    return tiny.build(layers=1)


@dataclass
class Run:
    """The server's side of one client's run, and the model that both share."""

    method: Continual
    model: object
    shards: tuple
    folder: object
    kept: dict = field(default_factory=dict)
    index: int = -1

    def begin(self):
        """The next domain; the model trains a little in it."""
        self.index += 1
        self.model.fit_labels(self.labels())
        self.kept, params = self.method.begin(
            self.kept, self.model.vector(), self.model.manifest, self.index
        )
        self.model.load(params)
        return moved(self.model, self.index)

    def labels(self):
        domains = DOMAINS[: self.index + 1]
        return tuple(label for domain in domains for label in domain.labels)

    def held(self):
        return sum(self.shards[: self.index + 1], Records())

    def phase(self, **changes):
        here = Phase(
            DOMAINS[self.index],
            self.index,
            self.folder,
            5,
            self.method.told(self.kept),
            manifest=self.model.manifest,
            labels=self.labels() if self.model.labels_needed else (),
            base=self.model.identity(),
            held=self.held,
            counted=frozenset(range(self.index)),
        )
        return replace(here, **changes)

    def shard(self):
        return self.shards[self.index]

    def dataset(self, **changes):
        memory = self.method.start(self.phase(**changes))
        return self.method.dataset(memory, self.shard(), self.model)

    def finish(self, **changes):
        here = self.phase(**changes)
        return self.method.finish(self.method.start(here), self.shard(), self.model, here)

    def lesson(self, vector):
        known = frozenset(domain.name for domain in DOMAINS[: self.index + 1])
        return Lesson(
            domain=DOMAINS[self.index],
            index=self.index,
            labels=self.labels() if self.model.labels_needed else (),
            total=vector.astype(np.float64),
            clients=float(min(len(self.shard()), 1)),
            params=self.model.vector(),
            manifest=self.model.manifest,
            model=self.model,
            validation=VALIDATION.where(lambda i: VALIDATION.domains[i] in known)
            if self.model.labels_needed
            else Records(),
        )

    def end(self, **changes):
        vector = self.finish(**changes)
        self.kept = self.method.learn(self.kept, self.lesson(vector))
        return vector


@pytest.fixture
def run(method, model, requests_, tmp_path):
    """A run in its first domain."""
    run = Run(method, model, (requests_, FOOD), tmp_path)
    run.begin()
    return run


@pytest.fixture
def second(run):
    """A run in its second domain."""
    run.end()
    run.begin()
    return run


def unchanged(kept, before):
    assert kept.keys() == before.keys()
    for name, array in kept.items():
        assert array.dtype == before[name].dtype
        assert np.array_equal(array, before[name])


def copied(kept):
    return {name: np.array(array) for name, array in kept.items()}


def stands_still(model):
    """A check, to be called later, that the model is as it is now."""
    vector, labels = model.vector(), model.labels
    needs = {name: p.requires_grad for name, p in model.parameters().items()}
    mode = model.module.training
    for p in model.parameters().values():
        p.grad = torch.full_like(p, 0.5)

    def check():
        assert model.labels == labels
        assert np.array_equal(model.vector(), vector)
        assert {name: p.requires_grad for name, p in model.parameters().items()} == needs
        assert model.module.training == mode
        assert all(bool((p.grad == 0.5).all()) for p in model.parameters().values())

    return check


def test_the_numbers_of_a_method_are_possible(method, run):
    assert method.size(run.model.manifest) >= 0
    assert method.rounds >= 0
    assert method.sums >= 0
    assert method.bits >= 0


def test_in_the_first_domain_nothing_is_remembered(run):
    memory = run.method.start(run.phase())
    assert run.method.dataset(memory, run.shard(), run.model) == run.shard()
    parameters = run.model.parameters()
    assert all(not g.any() for g in run.method.pull(memory, parameters).values())
    assert run.method.head({}).size == 0


def test_what_is_summed_has_the_promised_size(run):
    vector = run.finish()
    assert vector.shape == (run.method.size(run.model.manifest),)
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()


def test_finishing_twice_gives_and_remembers_the_same(second):
    first = second.finish()
    assert np.array_equal(first, second.finish())
    memory = second.method.start(second.phase())
    records = second.method.dataset(memory, second.shard(), second.model)
    assert np.array_equal(first, second.finish())
    memory = second.method.start(second.phase())
    assert second.method.dataset(memory, second.shard(), second.model) == records


def test_an_empty_shard_ends_a_domain_too(method, model, tmp_path):
    run = Run(method, model, (Records(), Records()), tmp_path)
    run.begin()
    vector = run.end()
    assert vector.shape == (method.size(model.manifest),)
    assert not vector.any()
    run.begin()
    assert len(run.dataset()) == 0
    assert np.isfinite(method.told(run.kept)).all()


def test_a_client_leaves_the_model_as_it_was(second):
    check = stands_still(second.model)
    second.dataset()
    second.finish()
    check()


def test_the_shard_is_always_part_of_what_is_trained_on(second, requests_):
    dataset = second.dataset()
    assert set(FOOD.ids) <= set(dataset.ids) <= set(FOOD.ids) | set(requests_.ids)
    rows = [row for shard in second.shards for row in zip(*shard.columns, strict=True)]
    assert set(zip(*dataset.columns, strict=True)) <= set(rows)
    assert second.dataset() == dataset


def test_withdrawn_records_never_come_back(second, requests_):
    gone = frozenset(requests_.ids[::2])
    mine = requests_.where(lambda i: requests_.ids[i] not in gone)
    withdrawn = requests_.where(lambda i: requests_.ids[i] in gone)
    second.shards = (mine, FOOD)
    asked = {"gone": gone, "withdrawn": lambda: withdrawn}
    assert not gone & set(second.dataset(**asked).ids)
    second.end(**asked)
    assert not gone & set(second.dataset().ids)  # forgotten, not only passed over


def test_pulls_and_masks_fit_the_parameters(second):
    memory = second.method.start(second.phase())
    everything = second.model.parameters()
    for chosen in (everything, {"head.bias": everything["head.bias"]}):
        pulls = second.method.pull(memory, chosen)
        masks = second.method.mask(memory, chosen)
        assert pulls.keys() <= chosen.keys()
        for name, gradient in pulls.items():
            assert gradient.shape == chosen[name].shape
            assert torch.isfinite(gradient).all()
        for name in masks.keys() & chosen.keys():
            part = torch.as_tensor(masks[name]).expand(chosen[name].shape)
            assert part.min() >= 0
            assert part.max() <= 1


def test_something_may_move_in_each_domain(run):
    for index in range(2):
        if index:
            run.end()
            run.begin()
        parameters = run.model.parameters()
        masks = run.method.mask(run.method.start(run.phase()), parameters)
        assert any(torch.as_tensor(masks.get(name, 1)).any() for name in parameters)


def test_what_is_remembered_survives_the_process(second):
    memory, again = (second.method.start(second.phase()) for _ in range(2))
    parameters = second.model.parameters()
    shard, model = second.shard(), second.model
    first, other = (second.method.dataset(m, shard, model) for m in (memory, again))
    assert first == other
    for act in (second.method.pull, second.method.mask):
        first, other = act(memory, parameters), act(again, parameters)
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_clients_do_not_share_what_they_remember(run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run.end(folder=tmp_path / "a")
    run.begin()
    assert run.dataset(folder=tmp_path / "b", held=lambda: FOOD, counted=frozenset()) == FOOD


def test_rounds_of_its_own_have_records_and_steps(second):
    if not second.method.rounds:
        pytest.skip("adds no rounds")
    memory = second.method.start(second.phase(tuning=True))
    dataset = second.method.dataset(memory, second.shard(), second.model)
    assert len(dataset)
    assert set(dataset.ids) <= set(second.held().ids)
    parameters = second.model.parameters()
    masks = second.method.mask(memory, parameters)
    assert any(torch.as_tensor(masks.get(name, 1)).any() for name in parameters)


def test_beginning_again_changes_nothing(second):
    params, manifest = second.model.vector(), second.model.manifest
    first, start = second.method.begin(second.kept, params, manifest, 1)
    again, same = second.method.begin(first, start, manifest, 1)
    unchanged(again, first)
    assert np.array_equal(start, same)
    assert start.shape == (manifest.size,)
    assert start.dtype == np.float32
    assert np.isfinite(start).all()


def test_what_is_kept_is_never_changed_in_place(second):
    kept, before, params = second.kept, copied(second.kept), second.model.vector()
    for array in kept.values():
        array.flags.writeable = False
    told = np.array(second.method.told(kept))
    start = np.array(params)
    second.method.begin(kept, start, second.model.manifest, 1)
    lesson = second.lesson(second.finish())
    second.method.learn(kept, lesson)
    second.method.head(kept)
    second.method.facts(kept)
    unchanged(kept, before)
    assert np.array_equal(start, params)
    assert np.array_equal(lesson.params, params)
    assert np.array_equal(second.method.told(kept), told)


def test_the_server_leaves_the_model_as_it_was(second):
    vector = second.finish()
    check = stands_still(second.model)
    kept = second.method.learn(second.kept, second.lesson(vector))
    head = second.method.head(kept)
    if head.size:
        second.method.answer(head, second.model, second.labels()).logits(VALIDATION)
    check()


def test_what_clients_are_told_is_finite(run):
    for index in range(2):
        told = run.method.told(run.kept)
        assert told.ndim == 1
        assert told.dtype == np.float32
        assert np.isfinite(told).all()
        run.end()
        if not index:
            run.begin()
    assert np.isfinite(run.method.told(run.kept)).all()


def test_what_is_kept_fits_a_file_of_arrays(second):
    second.end()
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **second.kept)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    unchanged(kept, copied(second.kept))
    assert np.array_equal(second.method.told(kept), second.method.told(second.kept))
    assert np.array_equal(second.method.head(kept), second.method.head(second.kept))
    assert second.method.facts(kept) == second.method.facts(second.kept)


def test_a_head_scores_every_label(second):
    second.end()
    head = second.method.head(second.kept)
    assert head.dtype == np.float32
    assert head.ndim == 1
    assert np.isfinite(head).all()
    if second.method.answer is None:
        assert not head.size
        return
    assert head.size
    answer = second.method.answer(head, second.model, second.labels())
    scores = answer.logits(VALIDATION)
    assert scores.shape == (len(VALIDATION), len(second.labels()))
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert answer.logits(Records()).shape == (0, len(second.labels()))
    assert np.allclose(answer.logits(VALIDATION.take([3])), scores[3], atol=1e-3)


def test_facts_are_plain(second):
    second.end()
    facts = second.method.facts(second.kept)
    assert json.loads(json.dumps(facts)) == facts
    for value in facts.values():
        assert type(value) in (float, int, str)
        assert not isinstance(value, float) or math.isfinite(value)


class Summed:
    """The sum of a private run, with noise, and what it was asked for."""

    def __init__(self, noise):
        self.noise, self.asked = noise, []
        self.draws = np.random.default_rng(3)

    def __call__(self, rows, records, clip):
        blocks = [np.asarray(block, np.float64) for block in rows]
        assert all(block.ndim == 2 for block in blocks)
        assert sum(map(len, blocks)) <= len(records)
        assert len(set(records.ids)) == len(records)
        assert 1e-6 <= clip <= 1e6
        cut = [
            b * np.minimum(1, clip / np.maximum(np.linalg.norm(b, axis=1), 1e-30))[:, None]
            for b in blocks
        ]
        self.asked.append((records, clip, cut))
        total = added(cut, records, clip)
        return (total + self.draws.normal(scale=self.noise * clip, size=total.shape)).astype(
            np.float32
        )


@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_a_private_run_sums_as_often_as_it_says(run, noise):
    if not run.method.private:
        pytest.skip("refused in a private run")
    for _ in range(2):
        summed = Summed(noise)
        vector = run.end(private=True, summed=summed)
        assert vector.shape == (run.method.size(run.model.manifest),)
        assert np.isfinite(vector).all()
        assert len(summed.asked) <= run.method.sums
        assert bool(summed.asked) == bool(vector.size)
        assert np.isfinite(run.method.told(run.kept)).all()
        if not run.index:
            run.begin()


def test_a_private_run_of_an_empty_shard_still_sums(method, model, tmp_path):
    if not method.private:
        pytest.skip("refused in a private run")
    run = Run(method, model, (Records(),), tmp_path)
    run.begin()
    summed = Summed(1.0)
    vector = run.end(private=True, summed=summed)
    assert np.isfinite(vector).all()
    assert bool(summed.asked) == bool(vector.size)


def test_in_a_private_run_one_record_moves_a_sum_by_its_clip_at_most(run):
    if not run.method.private or not run.method.size(run.model.manifest):
        pytest.skip("sums nothing in a private run")

    def totals():
        summed = Summed(0.0)
        run.finish(private=True, summed=summed)
        return [(sum(b.sum(0) for b in blocks), clip) for _, clip, blocks in summed.asked]

    whole = run.shards
    for index in range(2):
        for left_out in (0, 3):
            run.shards = whole
            with_it = totals()
            places = [i for i in range(len(whole[index])) if i != left_out]
            fewer = whole[index].take(places)
            run.shards = (*whole[:index], fewer, *whole[index + 1 :])
            without = totals()
            assert len(with_it) == len(without)
            for (total, clip), (other, same) in zip(with_it, without, strict=True):
                assert clip == same
                assert np.linalg.norm(total - other) <= clip * (1 + 1e-3)
        run.shards = whole
        run.end(private=True, summed=Summed(0.0))
        if not index:
            run.begin()


@pytest.fixture(scope="module")
def text(llama_folder):
    return causal_lm.build(base=str(llama_folder), rank=2)


def test_without_labels_a_method_works_on_a_causal_model(method, text, pairs, tmp_path):
    if method.classifies:
        pytest.skip("needs labels")
    run = Run(method, text, (pairs, pairs), tmp_path)
    for index in range(2):
        # No labels to fit: the server's half of `begin` is the rest of it.
        run.index = index
        run.kept, params = method.begin(run.kept, text.vector(), text.manifest, index)
        text.load(params)
        moved(text, index)
        assert set(run.dataset().ids) >= set(pairs.ids)
        vector = run.end()
        assert vector.shape == (method.size(text.manifest),)
        assert np.isfinite(vector).all()
    assert np.isfinite(method.told(run.kept)).all()


def test_checking_a_config_loads_no_heavy_library():
    modules = "\n".join(f"import perennial.continual.{name}" for name in NAMES)
    heavy = "{'torch', 'faiss', 'transformers'}"
    ask = f"import sys\n{modules}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
