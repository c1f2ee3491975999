"""Hub datasets, on one that is built here: nothing is fetched."""

import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.core.errors import ConfigError, DataError
from perennial.data import hub


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    datasets: Any = pytest.importorskip("datasets", reason="pip install 'perennial[hub]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "intent": datasets.ClassLabel(names=["lost", "fee"]),
            "domain": datasets.Value("string"),
        }
    )
    home = tmp_path / "requests"
    for split, classes in (("train", [0, 1, 0]), ("test", [1]), ("bad", [-1])):
        rows = {
            "text": [f"{split} {i}" for i in range(len(classes))],
            "intent": classes,
            "domain": ["bank"] * len(classes),
        }
        (home / "data").mkdir(parents=True, exist_ok=True)
        path = home / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(home)


def test_class_numbers_become_names(folder: str) -> None:
    splits = hub.build(dataset=folder, label="intent").read()
    assert splits.train.targets == ("lost", "fee", "lost")
    assert splits.train.texts == ("train 0", "train 1", "train 2")
    assert len(set(splits.train.ids)) == 3
    assert splits.test.targets == ("fee",)
    assert len(splits.validation) == 0


def test_a_row_without_a_class_is_named(folder: str) -> None:
    source = hub.build(dataset=folder, label="intent", test_split="bad")
    with pytest.raises(DataError, match="split 'bad', line 1: column 'intent' must not be empty"):
        source.read()


def test_what_the_hub_does_not_have_is_named(folder: str) -> None:
    with pytest.raises(DataError, match="split 'dev': cannot be read; got"):
        hub.build(dataset=folder, label="intent", validation_split="dev").read()
    with pytest.raises(DataError, match="there must be a column 'label'; got 'text', 'intent'"):
        hub.build(dataset=folder).read()


def test_without_datasets_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install '\.\[hub\]'"):
        hub.build(dataset="clinc_oos").read()


def test_prompt_and_completion_go_together() -> None:
    with pytest.raises(ConfigError, match="must be given together"):
        hub.build(dataset="x", completion="answer")
