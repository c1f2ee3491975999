"""Several continual methods as one: records join, pulls add, masks multiply, sums concatenate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from ..core import plugins
from ..core.errors import ConfigError, Fault, RunError
from ..core.parts import Continual, Kept, Lesson, Model, Phase, Tensors
from ..core.values import Manifest, Records, Vector
from ..core.wire import split

_TABLE = "continual.methods"

# A length is told as two digits of this base: float32 holds integers up to 2**24 exactly.
_BASE = 2**20

_SEPARATOR = ":"

Memories: TypeAlias = tuple[Any, ...]
"""What each method remembers, in the order of the methods."""


def build(*, methods: Annotated[tuple[Mapping[str, Any], ...], Field(min_length=1)]) -> Continual:
    """The methods of `[[continual.methods]]`, each a table with its `name` and its options.

    Every method is given the client's shard, its own part of the summary and of the sum, and its
    own part of what the server keeps, as if it were alone. What a method leaves out of the shard
    stays out, whoever brought it; what any of them adds joins once. In the rounds that one method
    adds at the end of a domain, all of them take part, with `Phase.tuning` set.

    Args:
        methods: at least one, each name once, no `chain` among them, and at most one that
            answers in the place of the model's head.

    Raises:
        ConfigError: every fault of the methods' tables at once.

    Example:
        >>> build(methods=({"name": "none"}, {"name": "ewc", "strength": 10.0})).sums
        1
    """
    parts = _parts(methods)
    each = [part.method for part in parts]
    answering = next((part for part in parts if part.method.answer), None)

    def head(kept: Kept) -> Vector:
        assert answering is not None
        return answering.method.head(_own(kept, answering))

    optional: dict[str, Any] = {}
    if answering is not None:
        optional = {"head": head, "answer": answering.method.answer}
    return Continual(
        start=_bind(_start, parts),
        dataset=_bind(_dataset, parts),
        pull=_bind(_pull, parts),
        mask=_bind(_mask, parts),
        size=lambda manifest: sum(method.size(manifest) for method in each),
        parts=lambda manifest: tuple(
            length for method in each for length in method.lengths(manifest)
        ),
        finish=_bind(_finish, parts),
        begin=_bind(_begin, parts),
        learn=_bind(_learn, parts),
        told=_bind(_told, parts),
        facts=_bind(_facts, parts),
        rounds=max(method.rounds for method in each),
        sums=sum(method.sums for method in each),
        bits=max(method.bits for method in each),
        ranks=max(method.ranks for method in each),
        replays=any(method.replays for method in each),
        untrained=any(method.untrained for method in each),
        users=all(method.users for method in each),
        classifies=any(method.classifies for method in each),
        private=all(method.private for method in each),
        remedy="; ".join(
            f"{part.name}: {part.method.remedy or 'leave it out'}"
            for part in parts
            if not part.method.private
        ),
        unheeded=tuple(f"methods.{p.name}.{o}" for p in parts for o in p.method.unheeded),
        **optional,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    method: Continual


def _bind(function: Callable[..., Any], parts: Sequence[_Part]) -> Callable[..., Any]:
    return lambda *arguments: function(parts, *arguments)


def _parts(tables: Sequence[Mapping[str, Any]]) -> tuple[_Part, ...]:
    faults: list[Fault] = []
    parts: list[_Part] = []
    for i, table in enumerate(tables):
        try:
            parts.append(_part(table, f"{_TABLE}.{i}", [part.name for part in parts]))
        except ConfigError as error:
            faults += error.faults
    answering = [part.name for part in parts if part.method.answer]
    if len(answering) > 1:
        problem = f"at most one method may answer; got {', '.join(answering)}"
        faults.append(Fault(_TABLE, problem, "leave all but one of them out"))
    if faults:
        raise ConfigError(faults)
    return tuple(parts)


def _part(table: Mapping[str, Any], place: str, taken: Sequence[str]) -> _Part:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError([Fault(f"{place}.name", f"must name a method; got {name!r}")])
    if plugins.find("continual", name, Continual, place) is build:
        remedy = "list its methods here instead"
        raise ConfigError([Fault(f"{place}.name", "a chain holds no chain", remedy)])
    if name in taken:
        raise ConfigError([Fault(f"{place}.name", f"{name!r} is there already", "give it once")])
    options = {key: value for key, value in table.items() if key != "name"}
    try:
        return _Part(name, plugins.load("continual", name, options, Continual, place))
    except ConfigError as error:
        raise ConfigError([_moved(fault, place) for fault in error.faults]) from error


def _moved(fault: Fault, place: str) -> Fault:
    """A fault that a method found itself names the table that it has when it stands alone."""
    table, _, key = fault.place.partition(".")
    alone = table == "continual" and not fault.place.startswith(f"{_TABLE}.")
    return replace(fault, place=f"{place}.{key}" if key else place) if alone else fault


def _start(parts: Sequence[_Part], phase: Phase) -> Memories:
    pairs = zip(parts, _phases(parts, phase), strict=True)
    return tuple(part.method.start(own) for part, own in pairs)


def _phases(parts: Sequence[_Part], phase: Phase) -> list[Phase]:
    """The phase of each method: the same, with its own part of the summary."""
    return [replace(phase, summary=own) for own in _split_summary(phase.summary, len(parts))]


def _told(parts: Sequence[_Part], kept: Kept) -> Vector:
    """Two digits of each part's length, then the parts; nothing where no method says anything."""
    told = [part.method.told(_own(kept, part)) for part in parts]
    if not any(own.size for own in told):
        return np.zeros(0, np.float32)
    lengths = [digit for own in told for digit in divmod(own.size, _BASE)]
    return np.concatenate([np.array(lengths, np.float32), *told]).astype(np.float32)


def _split_summary(summary: Vector, number: int) -> list[Vector]:
    if not summary.size:
        return [summary] * number
    digits = summary[: 2 * number].astype(np.float64)
    # A server may send anything: infinities, and lengths that only their sum makes right.
    sound = bool(np.isfinite(digits).all() and (digits >= 0.0).all())
    lengths = [
        int(high * _BASE + low)
        for high, low in zip(digits[::2], digits[1::2], strict=False)
        if sound
    ]
    if not sound or len(lengths) != number or 2 * number + sum(lengths) != summary.size:
        raise RunError(
            f"the summary of a chain of {number} methods must say the length of each part; its "
            f"{summary.size} values do not. Use one config and one version at both ends."
        )
    return split(summary[2 * number :], lengths)


def _dataset(parts: Sequence[_Part], memories: Memories, shard: Records, model: Model) -> Records:
    """The union of the methods' records, without what any of them left out of the shard.

    A method that gives the shard as it is says nothing. One that says something alone is followed
    to the letter: order and repeated records are its own.
    """
    pairs = zip(parts, memories, strict=True)
    given = [part.method.dataset(memory, shard, model) for part, memory in pairs]
    said = [records for records in given if records.ids != shard.ids] or [shard]
    out: set[str] = set()
    for records in said:
        out |= set(shard.ids).difference(records.ids)
    result = Records()
    for records in said:
        result += records.take([i for i, id_ in enumerate(records.ids) if id_ not in out])
        out |= set(records.ids)
    return result


def _pull(parts: Sequence[_Part], memories: Memories, parameters: Tensors) -> Tensors:
    total: dict[str, Any] = {}
    for part, memory in zip(parts, memories, strict=True):
        for name, gradient in part.method.pull(memory, parameters).items():
            total[name] = total[name] + gradient if name in total else gradient
    return total


def _mask(parts: Sequence[_Part], memories: Memories, parameters: Tensors) -> Tensors:
    product: dict[str, Any] = {}
    for part, memory in zip(parts, memories, strict=True):
        for name, factor in part.method.mask(memory, parameters).items():
            product[name] = product[name] * factor if name in product else factor
    return product


def _finish(
    parts: Sequence[_Part], memories: Memories, shard: Records, model: Model, phase: Phase
) -> Vector:
    vectors = []
    for part, memory, own in zip(parts, memories, _phases(parts, phase), strict=True):
        vector = part.method.finish(memory, shard, model, own)
        size = part.method.size(model.manifest)
        if vector.shape != (size,):
            raise RunError(
                f"the continual method {part.name!r} must end a domain with {size} values; it gave "
                f"{vector.shape}. Its `size` and its `finish` disagree."
            )
        vectors.append(vector)
    return np.concatenate(vectors, dtype=np.float32)


def _begin(
    parts: Sequence[_Part], kept: Kept, params: Vector, manifest: Manifest, index: int
) -> tuple[Kept, Vector]:
    for part in parts:
        own, params = part.method.begin(_own(kept, part), params, manifest, index)
        kept = _with(kept, part, own)
    return kept, params


def _learn(parts: Sequence[_Part], kept: Kept, lesson: Lesson) -> Kept:
    sizes = [part.method.size(lesson.manifest) for part in parts]
    if lesson.total.shape != (sum(sizes),):
        raise RunError(
            f"the sum over the clients must have {sum(sizes)} values, "
            f"{' + '.join(map(str, sizes))}; got {lesson.total.shape}"
        )
    for part, total in zip(parts, split(lesson.total, sizes), strict=True):
        own = part.method.learn(_own(kept, part), replace(lesson, total=total))
        kept = _with(kept, part, own)
    return kept


def _facts(parts: Sequence[_Part], kept: Kept) -> Mapping[str, float | int | str]:
    return {
        f"{part.name}.{key}": value
        for part in parts
        for key, value in part.method.facts(_own(kept, part)).items()
    }


def _own(kept: Kept, part: _Part) -> Kept:
    """What is kept for one method, by the names that it gave."""
    prefix = part.name + _SEPARATOR
    return {key.removeprefix(prefix): kept[key] for key in kept if key.startswith(prefix)}


def _with(kept: Kept, part: _Part, own: Kept) -> Kept:
    """`kept` with `own` in the place of what was kept for that method.

    By name, not by place: a method that joins the list later moves nobody else's arrays.
    """
    prefix = part.name + _SEPARATOR
    others = {key: value for key, value in kept.items() if not key.startswith(prefix)}
    return others | {prefix + key: value for key, value in own.items()}
