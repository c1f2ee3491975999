"""A dataset of the Hugging Face Hub by name, through the optional package `datasets`."""

from __future__ import annotations

from typing import Any

from ..core.errors import DataError
from ..core.parts import Source
from ..core.values import Records, Splits
from .table import Columns, Origin, Rows, to_records


def build(
    *,
    dataset: str,
    config: str = "",
    train_split: str = "train",
    validation_split: str = "",
    test_split: str = "test",
    text: str = "text",
    label: str = "label",
    domain: str = "domain",
    group: str = "",
    prompt: str = "",
    completion: str = "",
    id: str = "",
) -> Source:
    """A source of one hub dataset; integer class labels become their names.

    Args:
        dataset: name on the hub, or a folder that `datasets.load_dataset` understands.
        config: name of the dataset's configuration; empty for its only one.
        train_split: split of the training records.
        validation_split: split of the validation records; empty for none.
        test_split: split of the test records.
        text: column of the text.
        label: column of the label.
        domain: column of the domain; the dataset may lack the column `domain` when the config
            has `[domains.groups]`; the domain is then "".
        group: column that shards go by; empty for none.
        prompt: for a causal model, column of the prompt, instead of `text`.
        completion: for a causal model, column of the completion, instead of `label`.
        id: column of what names a record, for withdrawals; by default a hash of what it says.

    Raises:
        ConfigError: `prompt` without `completion` or the reverse.
    """
    columns = Columns(text, label, domain, group, prompt, completion, id)

    def read() -> Splits:
        def part(name: str, split: str) -> Records:
            if not split:
                return Records()
            origin = Origin(name, f"hub dataset {dataset!r}, split {split!r}")
            return to_records(_rows(_load(dataset, config, split)), columns, origin)

        return Splits(
            part("train", train_split),
            part("validation", validation_split),
            part("test", test_split),
        )

    return Source(read)


def _load(dataset: str, config: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"hub dataset {dataset!r}: reading it needs the package datasets, which is not "
            "installed; in the project's folder, run pip install '.[hub]'"
        ) from error
    try:
        return load_dataset(dataset, config or None, split=split)
    except (OSError, ValueError) as error:
        # Unknown dataset, configuration or split, or no network: `datasets` says which.
        place = f"hub dataset {dataset!r}, split {split!r}"
        raise DataError(f"{place}: cannot be read; got: {error}; see [data]") from error


def _rows(table: Any) -> Rows:
    from datasets import ClassLabel

    classes = {
        name: feature.names
        for name, feature in table.features.items()
        if isinstance(feature, ClassLabel)
    }
    for number, row in enumerate(table, start=1):
        for name, labels in classes.items():
            # -1 stands for "no label" on the hub: left empty, so that the check names the row.
            row[name] = labels[row[name]] if row[name] is not None and row[name] >= 0 else ""
        yield number, row
