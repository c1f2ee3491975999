"""Benchmarks of Avalanche as streams: domains are experiences, labels are classes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial.core import check
from perennial.core.config import Domains
from perennial.core.errors import ConfigError, DataError
from perennial.data import avalanche
from perennial.data.stream import stream

pytest.importorskip("avalanche", reason="pip install 'perennial-fl[avalanche]'")

MODULE = '''
import torch
from avalanche.benchmarks import benchmark_from_datasets, class_incremental_benchmark
from avalanche.benchmarks.utils import DataAttribute
from avalanche.benchmarks.utils.classification_dataset import ClassificationDataset

NAMES = ("lost card", "fee", "table for two", "menu")


def dataset(items):
    targets = DataAttribute([item[1] for item in items], "targets")
    return ClassificationDataset([items], data_attributes=[targets])


def texts(greeting="hello"):
    """Two experiences of two classes each; items are texts; validation is cut in one."""
    train = [
        [(f"{greeting} {kind} {i}", kind) for kind in kinds for i in range(3)]
        for kinds in ((0, 1), (2, 3))
    ]
    test = [[(f"bye {kind}", kind) for kind in kinds] for kinds in ((0, 1), (2, 3))]
    return benchmark_from_datasets(
        train=[dataset(items) for items in train],
        test=[dataset(items) for items in test],
        whole=[dataset(test[0] + test[1])],
    )


def tensors():
    """Avalanche's own class-incremental split, of tensors, classes 2 and 3 first."""
    def part(count):
        items = [(torch.tensor([kind, i]), kind) for kind in range(4) for i in range(count)]
        return dataset(items)

    return class_incremental_benchmark(
        {"train": part(3), "test": part(1)}, class_order=[2, 3, 0, 1], num_experiences=2
    )


def words(row):
    return f"kind {int(row[0])} number {int(row[1])}"


def name(number):
    return NAMES[number]


def nothing():
    return [1, 2]
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"benchmarks_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_experiences_are_domains_and_classes_labels(module: str) -> None:
    source = avalanche.build(
        benchmark=f"{module}:texts",
        arguments={"greeting": "good morning"},
        label=f"{module}:name",
        domains=("bank", "food"),
    )
    splits = source.read()
    assert splits.train.texts[:2] == ("good morning 0 0", "good morning 0 1")
    assert splits.train.targets[::3] == ("lost card", "fee", "table for two", "menu")
    assert splits.train.domains == ("bank",) * 6 + ("food",) * 6
    assert len(set(splits.train.ids)) == 12
    assert splits.test.texts == ("bye 0", "bye 1", "bye 2", "bye 3")
    assert len(splits.validation) == 0
    assert source.read() == splits
    domains = stream(splits, Domains()).domains
    assert [(domain.name, domain.labels) for domain in domains] == [
        ("bank", ("fee", "lost card")),
        ("food", ("menu", "table for two")),
    ]


def test_a_config_can_name_it(module: str) -> None:
    text = f"""
        [data]
        name = "avalanche"
        benchmark = "{module}:texts"
        arguments = {{greeting = "hi"}}
        domains = ["bank", "food"]
        [model]
        name = "tiny"
    """
    splits = check.build(check.read(text), "data").read()
    assert splits.train.texts[0] == "hi 0 0"
    assert splits.train.domains[-1] == "food"


def test_a_benchmark_that_avalanche_split_is_read_in_its_order(module: str) -> None:
    splits = avalanche.build(benchmark=f"{module}:tensors", text=f"{module}:words").read()
    assert splits.train.domains == ("experience 1",) * 6 + ("experience 2",) * 6
    assert set(splits.train.targets[:6]) == {"2", "3"}
    assert set(splits.train.texts[:6]) == {f"kind {k} number {i}" for k in (2, 3) for i in range(3)}
    assert set(zip(splits.test.targets, splits.test.texts, strict=True)) == {
        (str(kind), f"kind {kind} number 0") for kind in range(4)
    }


def test_items_that_are_no_text_are_named(module: str) -> None:
    with pytest.raises(DataError, match="'train', 'experience 1', line 1: column 'text' must hold"):
        avalanche.build(benchmark=f"{module}:tensors").read()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"benchmark": "{}:nothing"}, "must return a benchmark of Avalanche.*; got list"),
        ({"benchmark": "{}:missing"}, "data.benchmark: .* cannot be imported.* 'missing'"),
        ({"benchmark": "{}:NAMES"}, "data.benchmark: .* must be a function"),
        ({"benchmark": "no_such_module:texts"}, "must be installed or on PYTHONPATH"),
        ({"benchmark": "{}:texts", "text": "{}:missing"}, "data.text: .* cannot be imported"),
        (
            {"benchmark": "{}:texts", "validation_stream": "valid"},
            "it has 'train', 'test', 'whole'",
        ),
        ({"benchmark": "{}:texts", "test_stream": "whole"}, "an experience per domain, 2; got 1"),
        ({"benchmark": "{}:texts", "domains": ("bank",)}, "an experience per domain, 1; got 2"),
    ],
)
def test_what_does_not_fit_is_named(module: str, options: dict[str, Any], words: str) -> None:
    filled = {k: v.format(module) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(DataError, match=words):
        avalanche.build(**filled).read()


@pytest.mark.parametrize("place", ["", "texts", "a b:texts", "module:", "module:a.b"])
def test_a_place_must_be_a_module_and_a_function(place: str) -> None:
    with pytest.raises(ConfigError, match=r"data.benchmark.*must be 'module:function'"):
        avalanche.build(benchmark=place)


def test_without_avalanche_the_message_says_what_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "avalanche.benchmarks", None)
    with pytest.raises(DataError, match=r"run pip install '\.\[avalanche\]'"):
        avalanche.build(benchmark=f"{module}:texts").read()
