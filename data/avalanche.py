"""Any benchmark of Avalanche as a stream: a domain per experience, a label per class.

Avalanche: Carta et al. 2023 (arXiv:2302.01766), the optional package `avalanche-lib`. Only what a
benchmark offers is read here, so nothing is imported but the module that makes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from ..core.errors import ConfigError, DataError, Fault
from ..core.parts import Source
from ..core.values import Records, Splits
from .table import Columns, Origin, Rows, to_records


def build(
    *,
    benchmark: str,
    arguments: dict[str, Any] | None = None,
    text: str = "",
    label: str = "",
    domains: tuple[str, ...] = (),
    train_stream: str = "train",
    validation_stream: str = "",
    test_stream: str = "test",
) -> Source:
    """A source of one benchmark.

    Server and clients each make it anew: it must be the same each time, so give classes a fixed
    order or a seed.

    Args:
        benchmark: `module:function` that returns the benchmark; the module must be installed or
            on PYTHONPATH at every node.
        arguments: keyword arguments of that function.
        text: `module:function` from the input of an item to its text; by default the input must
            be a text itself.
        label: `module:function` from a class to its label; by default the class's number.
        domains: a name per experience, in their order; `experience 1` and so on by default.
        train_stream: stream of the training records.
        validation_stream: stream of the validation records; empty for none.
        test_stream: stream of the test records; empty for none.

    Raises:
        ConfigError: a place that is not of the form `module:function`.
    """
    places = {"benchmark": benchmark, "text": text, "label": label}
    faults = [
        Fault(f"data.{key}", f"must be 'module:function'; got {place!r}", "name a function")
        for key, place in places.items()
        if (place or key == "benchmark") and not _is_place(place)
    ]
    if faults:
        raise ConfigError(faults)

    def read() -> Splits:
        made = _found(benchmark, "benchmark")(**(arguments or {}))
        streams = _streams(made, benchmark)
        names = domains or _numbered(streams, train_stream)
        to_text = _found(text, "text") if text else None
        to_label = _found(label, "label") if label else None
        part = partial(_part, streams, names, (to_text, to_label))
        return Splits(
            part("train", train_stream),
            part("validation", validation_stream),
            part("test", test_stream),
        )

    return Source(read)


def _is_place(place: str) -> bool:
    module, colon, function = place.partition(":")
    return bool(colon) and function.isidentifier() and all(map(str.isidentifier, module.split(".")))


def _found(place: str, key: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        remedy = "the module must be installed or on PYTHONPATH"
        if (getattr(error, "name", None) or "").partition(".")[0] == "avalanche":
            remedy = "in the project's folder, run pip install '.[avalanche]'"
        raise DataError(f"data.{key}: {place!r} cannot be imported: {error}; {remedy}") from error
    if not callable(function):
        raise DataError(f"data.{key}: {place!r} must be a function; got {function!r:.60}")
    return function  # type: ignore[no-any-return]


def _streams(made: Any, place: str) -> Mapping[str, Sequence[Any]]:
    streams = getattr(made, "streams", None)
    if not isinstance(streams, Mapping):
        raise DataError(
            f"data.benchmark: {place!r} must return a benchmark of Avalanche, with its streams by "
            f"name; got {type(made).__name__}"
        )
    # A stream may be a generator: its experiences are needed more than once.
    return {name: list(stream) for name, stream in streams.items()}


def _numbered(streams: Mapping[str, Sequence[Any]], train: str) -> tuple[str, ...]:
    return tuple(f"experience {i}" for i in range(1, len(streams.get(train, ())) + 1))


def _part(
    streams: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    wordings: tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None],
    split: str,
    stream: str,
) -> Records:
    """The records of one stream; ids are `<split>:<domain>:<item from 1>`."""
    if not stream:
        return Records()
    if stream not in streams:
        there = ", ".join(map(repr, streams))
        raise DataError(
            f"data.{split}_stream: no stream {stream!r} in the benchmark; it has {there}"
        )
    experiences = streams[stream]
    if len(experiences) != len(names):
        raise DataError(
            f"data.{split}_stream: stream {stream!r} must have an experience per domain, "
            f"{len(names)}; got {len(experiences)}; split it as the training stream is split, or "
            "give as many names in data.domains"
        )
    parts = []
    for name, experience in zip(names, experiences, strict=True):
        origin = Origin(split, f"stream {stream!r}, {name!r}", name)
        if len(experience.dataset) or split == "train":
            rows = _rows(experience.dataset, *wordings)
            parts.append(to_records(rows, Columns(), origin).columns)
    return Records(*(tuple(chain.from_iterable(column)) for column in zip(*parts, strict=True)))


def _rows(
    dataset: Any, to_text: Callable[[Any], Any] | None, to_label: Callable[[Any], Any] | None
) -> Rows:
    for number in range(len(dataset)):
        given, target, *_ = dataset[number]
        target = target if isinstance(target, str) else int(target)
        yield (
            number + 1,
            {
                "text": to_text(given) if to_text else given,
                "label": to_label(target) if to_label else target,
            },
        )
