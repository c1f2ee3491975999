"""New records held against those that a config has learnt from, window by window, on this machine.

It is what each client does at the end of a domain (`continual.drift`), on all records at once, with
a look at the single requests besides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..continual.distances import Detector, calibrated, unlikely
from ..continual.reference import lowest
from ..continual.scope import Scope, scope_of, unit
from ..continual.windows import LEAST, Settings, cut
from ..core import check, plugins
from ..core.config import Config
from ..core.errors import DataError
from ..core.parts import Model, Source
from ..core.seeds import generator
from ..core.values import Records, Vector
from ..data.stream import Stream, stream
from ..models.place import place

Say = Callable[[str], None]

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""Endings of files of new records, and who reads them."""

_BATCH = 256  # records between two looks at the clock
_EVERY_S = 10.0  # seconds between two lines for who waits
_STRANGEST = 8


@dataclass(frozen=True, slots=True)
class Sides:
    """Who is compared with whom.

    Attributes:
        old: records that the model has learnt from, or will have.
        validation: of the same domains; may be empty.
        new: the others, in the order of the data.
        domains: names of the old records' domains.
        name: of what is new.
    """

    old: Records
    validation: Records
    new: Records
    domains: tuple[str, ...]
    name: str


def run_drift(
    config: Config, new: Path | None, settings: Settings, say: Say, *, in_order: bool = False
) -> dict[str, Any]:
    """What came of comparing, in plain values, as `drift_page.page` shows it.

    Args:
        config: of the run.
        new: a file of new records, held against all domains of the config; without one, the last
            domain is held against those before it.
        settings: how windows are judged.
        say: gets a line now and then for who waits.
        in_order: windows are cut as the new records stand, such as by time; without it they are
            drawn, so that data in which label follows label gives no alarm.

    Raises:
        PerennialError: data or model do not hold what the config says, there is one domain only
            and no file, or too few records on a side.
    """
    started = time.perf_counter()
    fresh = None if new is None else (new.name, read_new(new, config))
    model: Model = check.build(config, "model")
    place(model, config.train)
    sides = _sides(config, fresh, causal=not model.labels_needed)
    windows = cut(len(sides.new), settings.window)
    if not in_order:
        order = _rng(config, "windows").permutation(len(sides.new))
        windows = [order[window] for window in windows]
    _need_enough(sides, windows, settings)
    sample = sides.old.take(_sample(config, sides.old, settings.capacity, "reference"))
    some = sides.validation.take(_sample(config, sides.validation, settings.capacity, "validation"))
    say(f"drift: {len(sample):,} records of the reference, {len(sides.new):,} new ones")
    rows = _embedded(model, sample + some + sides.new, say)
    reference, reach, asked = np.split(rows, [len(sample), len(sample) + len(some)])
    size = min(len(window) for window in windows)
    detector = calibrated(reference, sample.targets, size, settings)
    scope = scope_of(reference, sample.targets, reach) if model.labels_needed else None
    measured = [_window(detector, scope, asked, window) for window in windows]
    alarms = sum(window["alarm"] for window in measured)
    return {
        "run": config.run.name,
        "when": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "seconds": round(time.perf_counter() - started, 1),
        "reference": {"records": len(sample), "of": len(sides.old), "domains": list(sides.domains)},
        "new": {"name": sides.name, "records": len(sides.new), "in_order": in_order},
        "false_alarms": settings.false_alarms,
        "thresholds": _plain(detector.thresholds),
        "windows": measured,
        "alarms": alarms,
        "drift": unlikely(alarms, len(measured), settings.false_alarms),
        "scope": _scope(scope, asked, sides.new),
    }


def _window(detector: Detector, scope: Scope | None, rows: Vector, at: Any) -> dict[str, Any]:
    found = detector.distances(rows[at])
    outside = None if scope is None else float(scope.outside(rows[at]).mean())
    return {
        "records": len(at),
        **_plain(found),
        "alarm": found.over(detector.thresholds),
        "out_of_scope": outside,
    }


def _plain(distances: Any) -> dict[str, float]:
    return {name: float(getattr(distances, name)) for name in ("nearest", "kl", "mmd")}


def _scope(scope: Scope | None, rows: Vector, records: Records) -> dict[str, Any] | None:
    """Requests that fit no class, the strangest first; None where nothing tells."""
    if scope is None or scope.threshold == float("inf"):
        return None
    scores = scope.scores(rows)
    order = np.argsort(-scores, kind="stable")
    strange = [int(i) for i in order[:_STRANGEST] if scores[i] > scope.threshold]
    return {
        "threshold": scope.threshold,
        "outside": int((scores > scope.threshold).sum()),
        "strangest": [{"text": records.texts[i], "score": float(scores[i])} for i in strange],
    }


def _sides(config: Config, new: tuple[str, Records] | None, *, causal: bool) -> Sides:
    partial = config.shards.split == "local"
    source: Source = check.build(config, "data")
    found = stream(source.read(), config.domains, causal=causal, partial=partial)
    names = tuple(domain.name for domain in found.domains)
    if new is not None:
        name, records = new
        return Sides(found.splits.train, found.splits.validation, records, names, name)
    if len(names) < 2:
        raise DataError(
            f"drift needs two domains or more, of which the last is held against the others; the "
            f"config has {', '.join(map(repr, names)) or 'none'}. Give the new records as a file: "
            "--new DATA.csv"
        )
    *before, last = names
    return Sides(
        _of(found, "train", before), _of(found, "validation", before), _of(found, "train", [last]),
        tuple(before), last,
    )  # fmt: skip


def _of(found: Stream, split: str, names: list[str]) -> Records:
    records: Records = getattr(found.splits, split)
    wanted = frozenset(names)
    return records.where(lambda i: records.domains[i] in wanted)


def read_new(path: Path, config: Config) -> Records:
    """The records of a file whose texts are in the column that `[data]` names; labels may lack.

    Raises:
        DataError: the file is not there, of no known format, or lacks the column.
    """
    options = config.data.options
    column = str(options.get("prompt") or options.get("text") or "text")
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path} must end in one of {', '.join(FORMATS)}, to tell its format")
    if not path.is_file():
        raise DataError(f"{path} must be a file of new records; there is none")
    # Only texts are looked at: the column stands for the others too, which may be missing.
    given = {"text": column, "label": column, "domain": column}
    rates = {"test_rate": 0.0, "validation_rate": 0.0}
    name = FORMATS[path.suffix.lower()]
    source: Source = plugins.load("data", name, {"train": str(path), **given, **rates}, Source)
    return source.read().train


def _need_enough(sides: Sides, windows: list[Any], settings: Settings) -> None:
    if len(sides.old) < LEAST:
        raise DataError(
            f"the reference must have {LEAST} records or more; the domains "
            f"{', '.join(sides.domains)} have {len(sides.old)}"
        )
    if not windows:
        raise DataError(
            f"{sides.name!r} must have half a window of {settings.window} records or more, and "
            f"{LEAST} at least; it has {len(sides.new)}. Wait for more, or choose smaller windows"
        )


def _sample(config: Config, records: Records, capacity: int, what: str) -> Any:
    if not len(records):
        return np.zeros(0, np.intp)
    return lowest(records.ids, str(_rng(config, what).integers(2**63)), capacity)


def _rng(config: Config, what: str) -> np.random.Generator:
    return generator(config.run.seed, "drift", what)


def _embedded(model: Model, records: Records, say: Say) -> Vector:
    """Embeddings of the frozen base, L2 norm 1, float32 [n, d]."""
    parts, began = [], time.perf_counter()
    last = began
    for start in range(0, len(records), _BATCH):
        at = np.arange(start, min(start + _BATCH, len(records)))
        parts.append(model.features(records.take(at), 1))
        now, done = time.perf_counter(), int(at[-1]) + 1
        if now - last >= _EVERY_S and done < len(records):
            left = (now - began) * (len(records) - done) / done
            say(f"drift: {done:,} of {len(records):,} texts read, about {left:.0f} s left")
            last = now
    return unit(np.concatenate(parts))
