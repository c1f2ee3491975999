"""Drift: whether a client's new records look like those it has seen, in one bit per window.

Each client keeps a sample of the frozen base's embeddings of its records on its own disk. At the
end of a domain the new records are cut into windows, each is compared with the sample
(`distances`), and what leaves the client is how many windows alarm, of how many.

In a private run one record may move that count by one and no more, wherever it is. So records are
dealt to a public number of windows by a keyed hash of their ids, old ones as well as new ones, and
a window is compared with the part of the sample that has its own number, whose thresholds come
from that part alone. Whoever is looked at pays, so new records are held against those of the domain
before alone: each record pays twice in its life, however many domains there will be.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from ..core.errors import RunError
from ..core.parts import Continual, Indices, Kept, Lesson, Model, Phase
from ..core.seeds import generator
from ..core.values import Records, Vector
from .windows import LEAST, Settings, cut

if TYPE_CHECKING:
    from .reference import Reference

ALARMS, WINDOWS = "alarms", "windows"
"""What the server keeps: per domain, how many windows alarmed, and of how many."""

_CLIP = 1.0  # of a window's bit
_log = logging.getLogger(__name__)


def build(
    *,
    window: Annotated[int, Field(ge=LEAST, le=10**6)] = 100,
    capacity: Annotated[int, Field(ge=100)] = 2000,
    false_alarms: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05,
    present: Annotated[float, Field(gt=0.0, le=1.0)] = 0.44,
    apart: Annotated[float, Field(ge=0.0, le=0.4)] = 0.1,
    private_windows: Annotated[int, Field(ge=1, le=64)] = 2,
) -> Continual:
    """The method that tells how many windows of new records are unlike what was there before.

    Args:
        window: records of a window.
        capacity: most records of a client's sample.
        false_alarms: share of windows that may alarm though nothing is new.
        present: smallest share of the labels that a window may hold and still be no drift.
        apart: share of a label's records, on either side of one, that it is not compared with
            when thresholds are found: people write several alike in a row.
        private_windows: number of windows of each client in a private run, whatever it holds.
    """
    settings = Settings(window, false_alarms, present, apart, capacity)
    return Continual(
        start=lambda phase: (),  # nothing is read before the end of the domain needs it
        size=lambda manifest: 2,
        finish=partial(_finish, settings, private_windows),
        learn=_learn,
        told=lambda kept: np.zeros(0, np.float32),
        facts=_facts,
        bits=8,
        sums=2,  # once as a new record, and once as one of the domain before
        private=True,
    )


def _finish(
    settings: Settings, parts: int, memory: Any, shard: Records, model: Model, phase: Phase
) -> Vector:
    """How many windows of `shard` alarm, and of how many, float32 [2]; then the sample grows."""
    from . import reference as kept_as

    here = f"{phase.index}:{phase.domain.name}:{phase.seed}"
    shard = _each_once(shard)
    mine = frozenset(shard.ids)

    def rebuilt(problem: str) -> Reference:
        return _rebuilt(settings, parts, shard, model, phase, problem)

    found = kept_as.load(phase.folder, phase.base, rebuilt)
    if found is not None and found.parts != parts and phase.private:
        found = rebuilt(f"it is dealt to {found.parts} windows, and this run has {parts}")
    if found is None:
        found = kept_as.Reference(phase.base, str(phase.seed), parts)
    # As it was before this domain, though this may be the domain's second end.
    old = found.at(here).without(mine.union(filter(phase.withdrew, found.ids)))
    if phase.private:
        # Those of the domain before, before any are drawn: who does not pay must not even decide
        # who else is in the sample.
        last = len(old.ends) - 2
        old = old.take([i for i, turn in enumerate(old.turns) if turn == last])
    old = old.take(kept_as.lowest(old.ids, old.key, settings.capacity, old.parts))
    rows = _embedded(model, shard, old, phase)
    if len(old.ends) == 1:
        vector = _nothing_before(phase)
    else:
        counts = _private_counts if phase.private else _counts
        vector = counts(settings, old, shard, rows, phase)
    sample = kept_as.lowest(shard.ids, old.key, settings.capacity, old.parts)
    kept_as.save(phase.folder, old.joined(shard.take(sample), rows[sample]))
    return vector


def _nothing_before(phase: Phase) -> Vector:
    # Nothing of any record is in it, so that nobody pays; the engine still sees that it was asked.
    phase.summed([np.zeros((0, 1), np.float32)], Records(), _CLIP)
    return np.zeros(2, np.float32)


def _counts(
    settings: Settings, old: Reference, shard: Records, rows: Vector, phase: Phase
) -> Vector:
    windows = cut(len(shard), settings.window)
    if not windows or len(old) < LEAST:
        return np.zeros(2, np.float32)
    from .distances import calibrated

    # Shards come label by label: in their own order a window would hold a label or two.
    order = generator(phase.seed, "windows").permutation(len(shard))
    detector = calibrated(old.rows.astype(np.float32), old.classes, len(windows[0]), settings)
    alarms = [detector.alarms(rows[order[window]]) for window in windows]
    return np.array([sum(alarms), len(alarms)], np.float32)


def _private_counts(
    settings: Settings, old: Reference, shard: Records, rows: Vector, phase: Phase
) -> Vector:
    """As `_counts` against the domain before, noised; the number of windows is public."""
    bits = window_bits(settings, old, shard, rows)
    own, theirs = _parts(shard.ids, old), _parts(old.ids, old)
    # A row for each window that holds anybody: never more rows than records that pay.
    there = [
        bits[part : part + 1] for part in range(old.parts) if own[part].size + theirs[part].size
    ]
    block = np.array(there, np.float32).reshape(-1, 1)
    noisy = phase.summed([block], shard + old.records, _CLIP)
    return np.array([noisy[0], old.parts], np.float32)


def window_bits(settings: Settings, old: Reference, shard: Records, rows: Vector) -> Vector:
    """Whether each window of a private run alarms: 0 or 1, float32 [old.parts].

    Adding or taking away one record, of `old` or of `shard`, changes one of them at most.

    Args:
        settings: rates.
        old: the sample before this domain.
        shard: the new records.
        rows: their embeddings, L2 norm 1, float32 [n, d].
    """
    from .distances import calibrated

    bits = np.zeros(old.parts, np.float32)
    pairs = zip(_parts(shard.ids, old), _parts(old.ids, old), strict=True)
    for part, (new, before) in enumerate(pairs):
        if min(len(new), len(before)) >= LEAST:
            some = old.take(before)
            reference = some.rows.astype(np.float32)
            detector = calibrated(reference, some.classes, len(new), settings)
            bits[part] = detector.alarms(rows[new])
    return bits


def _parts(ids: tuple[str, ...], old: Reference) -> list[Indices]:
    from .reference import part_of

    of = part_of(ids, old.key, old.parts)
    return [np.flatnonzero(of == part) for part in range(old.parts)]


def _rebuilt(
    settings: Settings, parts: int, shard: Records, model: Model, phase: Phase, problem: str
) -> Reference:
    """The reference from the records that the client still holds.

    Raises:
        RunError: it holds none of earlier domains.
    """
    from . import reference as kept_as

    path = phase.folder / kept_as.FILE
    leave = frozenset(shard.ids) | phase.gone
    held = _each_once(phase.held())
    held = held.where(lambda i: held.ids[i] not in leave)
    if not len(held):
        raise RunError(
            f"{path} must be a reference that this client wrote: {problem}. It cannot be made "
            "again, because the client holds no record of an earlier domain; put the file back, "
            "or delete it: drift is then told from the next domain on"
        )
    _log.warning("%s is made again from %d held records: %s", path, len(held), problem)
    empty = kept_as.Reference(phase.base, str(phase.seed), parts, ("made again",))
    before = held.domains[-1]
    if phase.private:
        held = held.where(lambda i: held.domains[i] == before)
    held = held.take(kept_as.lowest(held.ids, empty.key, settings.capacity, parts))
    made = empty.joined(held, _embedded(model, held, empty, phase))
    return replace(made, turns=tuple(0 if name == before else -1 for name in held.domains))


def _embedded(model: Model, records: Records, old: Reference, phase: Phase) -> Vector:
    """Embeddings of the frozen base, L2 norm 1, float32 [n, d]."""
    from .scope import unit

    if not len(records):
        return np.zeros((0, 0), np.float32)
    if not phase.private:
        return unit(model.features(records, 1))
    # Part by part: who else is in a batch can change the last bit of a float, and a record must
    # move nothing in any part but its own.
    parts = [part for part in _parts(records.ids, old) if len(part)]
    rows = np.concatenate([model.features(records.take(part), 1) for part in parts])
    return unit(rows[np.argsort(np.concatenate(parts))])


def _each_once(records: Records) -> Records:
    first: dict[str, int] = {}
    for place, name in enumerate(records.ids):
        first.setdefault(name, place)
    return records if len(first) == len(records) else records.take(list(first.values()))


def _learn(kept: Kept, lesson: Lesson) -> Kept:
    """Alarms and windows of each domain so far, float32 [index + 1] each."""
    alarms, windows = (float(value) for value in lesson.total)
    windows = max(0.0, windows)
    # Noise may carry a count beyond what there is to count.
    counts = {ALARMS: min(max(alarms, 0.0), windows), WINDOWS: windows}
    return {**kept, **{name: _placed(kept, name, lesson.index, n) for name, n in counts.items()}}


def _placed(kept: Kept, name: str, index: int, value: float) -> Vector:
    before = np.asarray(kept.get(name, ()), np.float32)[:index]
    return np.concatenate([before, np.zeros(index - len(before)), [value]]).astype(np.float32)


def _facts(kept: Kept) -> Mapping[str, float | int | str]:
    """Of the last domain, over all clients; no share where there was nothing to compare with."""
    if ALARMS not in kept:
        return {}
    alarms, windows = float(kept[ALARMS][-1]), float(kept[WINDOWS][-1])
    return {"windows": round(windows), **({"alarm_share": alarms / windows} if windows else {})}
