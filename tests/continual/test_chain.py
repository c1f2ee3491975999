"""Chains of small methods that are written here, so that every number is known by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perennial.continual import chain, ewc
from perennial.core import plugins
from perennial.core.config import parse
from perennial.core.errors import ConfigError, RunError
from perennial.core.parts import Continual, Lesson, Phase
from perennial.core.values import Domain, Manifest, Records
from perennial.models import tiny

HERE = Domain("talk", ("greet", "part", "thank"))
MANIFEST = Manifest(("w",), ((3,),))

PLUGIN = """
import numpy as np
from perennial.core.parts import Continual
from perennial.core.values import Records

def build(*, size: int = 0, adds: tuple[str, ...] = (), drops: tuple[str, ...] = (),
          pull: float = 0.0, mask: float = 1.0, short: int = 0, answers: bool = False,
          rounds: int = 0, sums: int = 0, bits: int = 0, classifies: bool = False,
          private: bool = True, says: int = 0, repeats: bool = False) -> Continual:
    def dataset(memory, shard, model):
        n = len(adds)
        old = Records(adds, adds, ("greet",) * n, ("old",) * n, ("",) * n)
        kept = shard.where(lambda i: shard.ids[i] not in drops)
        return old + kept + (old if repeats else Records())

    def each(value, parameters):
        return {name: value + 0 * p for name, p in parameters.items()}

    def begin(kept, params, manifest, index):
        return {**kept, "begun": np.array(index)}, params + 1

    def told(kept):
        return np.arange(says if "sum" in kept else 0, dtype=np.float32)

    def head(kept):
        return np.asarray(kept["sum"] if answers and "sum" in kept else [], np.float32)

    class Answer:
        def __init__(self, head, model, labels):
            self.scores = head[: len(labels)]

        def logits(self, records):
            return np.tile(self.scores, (len(records), 1))

    return Continual(
        start=lambda phase: phase,
        dataset=dataset,
        pull=lambda memory, parameters: each(pull, parameters) if pull else {},
        mask=lambda memory, parameters: each(mask, parameters) if mask != 1 else {},
        size=lambda manifest: size,
        finish=lambda memory, shard, model, phase: np.full(
            size - short, 1.0 + len(phase.summary), np.float32
        ),
        begin=begin,
        learn=lambda kept, lesson: {"sum": kept.get("sum", 0) + lesson.total},
        told=told,
        head=head,
        answer=Answer if answers else None,
        facts=lambda kept: {"sum": float(np.sum(kept["sum"]))} if "sum" in kept else {},
        rounds=rounds, sums=sums, bits=bits, classifies=classifies, private=private,
    )
"""


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    """Two methods from outside the package, `outside.one` and `outside.two`."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    for name in ("one", "two"):
        (tmp_path / "outside" / f"{name}.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    import sys

    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "outside"]:
        del sys.modules[name]


def built(*tables):
    return plugins.load("continual", "chain", {"methods": tables}, Continual, "continual")


def pair(one=None, two=None):
    return built({"name": "outside.one", **(one or {})}, {"name": "outside.two", **(two or {})})


def phase(**changes):
    nothing = np.zeros(0, np.float32)
    return replace(Phase(HERE, 0, Path(), 5, nothing, manifest=MANIFEST), **changes)


def ended(total, clients=1.0):
    params = np.zeros(3, np.float32)
    values = (np.asarray(total, np.float64), clients, params, MANIFEST, None, Records())
    return Lesson(HERE, 0, (), *values)


class Sized:
    """As much of a model as a chain asks of it: its manifest."""

    manifest = MANIFEST


def ids(method, shard, **changes):
    return method.dataset(method.start(phase(**changes)), shard, None).ids


def test_a_chain_is_read_from_a_config():
    text = """
        [data]
        name = "sample"
        [continual]
        name = "chain"
        [[continual.methods]]
        name = "ewc"
        strength = 10
        [[continual.methods]]
        name = "none"
    """
    plugin = parse(text).continual
    method = plugins.load("continual", plugin.name, plugin.options, Continual, "continual")
    assert method.size(MANIFEST) == 3
    assert method.bits == ewc.build().bits


def test_a_chain_of_one_does_what_the_method_does_alone(requests_):
    options = {"adds": ("o1",), "drops": ("r3",), "repeats": True}
    alone = plugins.load("continual", "outside.one", options, Continual)
    for method in (built({"name": "outside.one", **options}), pair(options)):
        given = method.dataset(method.start(phase()), requests_, None)
        assert given == alone.dataset(alone.start(phase()), requests_, None)


def test_what_a_method_adds_joins_once_and_what_it_drops_stays_out(requests_):
    method = pair({"adds": ("a", "b"), "drops": ("r1",)}, {"adds": ("b", "c"), "drops": ("r5",)})
    found = ids(method, requests_)
    assert sorted(found) == ["a", "b", "c", "r0", "r2", "r3", "r4", "r6"]
    method = pair({"drops": ("r1",)}, {"adds": ("r1",)})
    assert "r1" not in ids(method, requests_)
    method = pair({"drops": requests_.ids}, {"drops": ("r0",)})
    assert ids(method, requests_) == ()
    assert pair().dataset(pair().start(phase()), requests_, None) == requests_


def test_pulls_add_and_masks_multiply():
    parameters = {"w": torch.zeros(3), "v": torch.zeros(2)}
    method = pair({"pull": 2.0, "mask": 0.5}, {"pull": 3.0, "mask": 0.25})
    memory = method.start(phase())
    assert method.pull(memory, parameters)["w"].tolist() == [5.0] * 3
    assert method.mask(memory, parameters)["v"].tolist() == [0.125] * 2
    method = pair({"pull": 2.0}, {"mask": 0.25})
    memory = method.start(phase())
    assert method.pull(memory, parameters)["w"].tolist() == [2.0] * 3
    assert method.mask(memory, parameters)["v"].tolist() == [0.25] * 2
    assert pair().pull(memory, parameters) == {}
    assert pair().mask(memory, parameters) == {}


def test_sizes_add_and_vectors_stand_side_by_side():
    method = pair({"size": 2}, {"size": 3})
    assert method.size(MANIFEST) == 5
    here = phase()
    assert method.finish(method.start(here), Records(), Sized(), here).tolist() == [1.0] * 5
    kept, _ = method.begin({}, np.zeros(3, np.float32), MANIFEST, 0)
    kept = method.learn(kept, ended([1, 2, 10, 20, 30]))
    assert kept["outside.one:sum"].tolist() == [1, 2]
    assert kept["outside.two:sum"].tolist() == [10, 20, 30]
    assert method.facts(kept) == {"outside.one.sum": 3.0, "outside.two.sum": 60.0}


def test_each_method_gets_its_own_part_of_the_summary():
    method = pair({"size": 1, "says": 2}, {"size": 1, "says": 5})
    kept = method.learn({}, ended([1, 2]))
    told = method.told(kept)
    assert told.dtype == np.float32
    first, second = method.start(phase(summary=told))
    assert first.summary.tolist() == [0, 1]
    assert second.summary.tolist() == [0, 1, 2, 3, 4]
    here = phase(summary=told)
    assert method.finish(method.start(here), Records(), Sized(), here).tolist() == [3.0, 6.0]
    assert [memory.summary.size for memory in method.start(phase())] == [0, 0]


def test_lengths_survive_single_precision():
    size = 2**24 + 1  # the first integer that float32 does not hold
    method = pair({"size": 1, "says": size}, {"size": 1, "says": 3})
    told = method.told(method.learn({}, ended([1, 2])))
    first, second = method.start(phase(summary=told))
    assert first.summary.size == size
    assert second.summary.tolist() == [0, 1, 2]


def test_methods_begin_one_after_another():
    method = pair()
    kept, params = method.begin({}, np.zeros(3, np.float32), MANIFEST, 4)
    assert params.tolist() == [2.0] * 3
    assert kept == {"outside.one:begun": 4, "outside.two:begun": 4}


def test_a_method_that_joins_later_moves_nobodys_arrays():
    alone = built({"name": "outside.two", "size": 1})
    kept = alone.learn({}, ended([7]))
    later = pair({"size": 2}, {"size": 1})
    kept, _ = later.begin(kept, np.zeros(3, np.float32), MANIFEST, 1)
    kept = later.learn(kept, ended([1, 2, 3]))
    assert kept["outside.two:sum"].tolist() == [10]
    assert kept["outside.one:sum"].tolist() == [1, 2]
    gone = alone.learn(kept, ended([1]))
    assert gone["outside.one:sum"].tolist() == [1, 2]


def test_what_a_method_lets_go_is_let_go():
    method = pair({"size": 1}, {"size": 1})
    kept, _ = method.begin({}, np.zeros(3, np.float32), MANIFEST, 0)
    assert set(method.learn(kept, ended([1, 2]))) == {"outside.one:sum", "outside.two:sum"}


def test_one_method_answers():
    method = pair({"size": 2}, {"size": 3, "answers": True})
    assert method.head({}).size == 0
    head = method.head(method.learn({}, ended([1, 2, 7, 8, 9])))
    assert head.tolist() == [7, 8, 9]
    scores = method.answer(head, None, ("a", "b")).logits(Records(*(("x",),) * 5))
    assert scores.tolist() == [[7, 8]]
    assert pair().answer is None
    assert pair().head({}).size == 0


def test_numbers_of_the_whole():
    method = pair(
        {"rounds": 2, "sums": 1, "bits": 8, "classifies": True},
        {"rounds": 1, "sums": 2, "bits": 16, "private": False},
    )
    assert (method.rounds, method.sums, method.bits) == (2, 3, 16)
    assert method.classifies
    assert not method.private
    assert pair().private
    assert not pair().classifies


def faults(*tables):
    with pytest.raises(ConfigError) as caught:
        built(*tables)
    return [str(fault) for fault in caught.value.faults]


def test_every_fault_names_its_place():
    found = faults(
        {"name": "ewc", "strengh": 1.0},
        {"strength": 1.0},
        {"name": "chain", "methods": ({"name": "none"},)},
        {"name": "perennial.continual.chain", "methods": ({"name": "none"},)},
        {"name": "nonesuch"},
        {"name": "ewc", "decay": 2.0},
        {"name": "none"},
        {"name": "none"},
        {"name": 3},
        {"name": "elastic_mask", "mode": "slices", "layers": 2},
        {"name": "analytic_head", "form": "means", "regulariser": 3.0},
    )
    assert [fault.split("]")[0] for fault in found] == [
        "[continual.methods.0.strengh",
        "[continual.methods.1.name",
        "[continual.methods.2.name",
        "[continual.methods.3.name",
        "[continual.methods.4.name",
        "[continual.methods.5.decay",
        "[continual.methods.7.name",
        "[continual.methods.8.name",
        "[continual.methods.9.layers",
        "[continual.methods.10.regulariser",
    ]
    assert "strength" in found[0]
    assert "holds no chain" in found[2]
    assert "there already" in found[6]


def test_two_methods_cannot_answer():
    answering = {"answers": True}
    (fault,) = faults(
        {"name": "outside.one", **answering}, {"name": "none"}, {"name": "outside.two", **answering}
    )
    assert "outside.one, outside.two" in fault


def test_a_chain_needs_methods():
    for methods in ((), "ewc", ({"name": "ewc"}, "none")):
        with pytest.raises(ConfigError, match=r"continual\.methods"):
            plugins.load("continual", "chain", {"methods": methods}, Continual, "continual")
    with pytest.raises(ConfigError, match="must be given"):
        plugins.load("continual", "chain", {}, Continual, "continual")


def test_what_does_not_fit_is_named():
    method = pair({"size": 2, "short": 1}, {"size": 3})
    here = phase()
    with pytest.raises(RunError, match=r"'outside.one' must end a domain with 2 values"):
        method.finish(method.start(here), Records(), Sized(), here)
    with pytest.raises(RunError, match=r"must have 5 values, 2 \+ 3; got \(4,\)"):
        method.learn({}, ended([1, 2, 3, 4]))
    for summary in (np.ones(1), np.ones(3), np.array([0, 1, 0, 1, 5, 5, 5])):
        with pytest.raises(RunError, match="chain of 2 methods"):
            method.start(phase(summary=summary.astype(np.float32)))


def test_ewc_in_a_chain_pulls_as_it_does_alone(requests_, tmp_path):
    model = tiny.build(rank=2)
    model.fit_labels(HERE.labels)
    draws = np.random.default_rng(0)
    model.load(draws.normal(scale=0.3, size=model.manifest.size).astype(np.float32))
    here = phase(folder=tmp_path, manifest=model.manifest, labels=model.labels)

    def pulled(method):
        vector = method.finish(method.start(here), requests_, model, here)
        params = np.zeros(model.manifest.size, np.float32)
        lesson = replace(
            ended(vector), params=params, manifest=model.manifest, model=model, labels=model.labels
        )
        kept = method.learn({}, lesson)
        again = replace(here, index=1, summary=method.told(kept))
        return method.pull(method.start(again), model.parameters())

    alone = pulled(ewc.build(strength=5.0))
    chained = pulled(built({"name": "outside.one", "size": 4}, {"name": "ewc", "strength": 5.0}))
    assert alone.keys() == chained.keys()
    assert all(torch.equal(alone[name], chained[name]) for name in alone)
    assert any(pull.any() for pull in alone.values())


@pytest.mark.parametrize("digit", [np.inf, -np.inf, np.nan, -1.0, 1e30])
def test_a_summary_with_impossible_lengths_is_refused(digit):
    summary = np.zeros(8, np.float32)
    summary[1] = digit
    with pytest.raises(RunError, match="must say the length of each part"):
        chain._split_summary(summary, 2)
