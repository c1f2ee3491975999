"""A whole adapter for each domain, kept by the server, and a router that chooses for each record.

Each domain starts from the adapter that the run started with, so that it becomes as good as if it
were learnt alone, and no other domain can change it. Which adapter answers is guessed from the
frozen base, which no domain moves. One small set of parameters per domain, chosen by the nearest
means of a frozen encoder's features, is Wang et al. 2022 (S-Prompts, arXiv:2207.12819); one adapter
per task is Zhou et al. 2024 (EASE, arXiv:2403.12030), without its ensemble.

A record that is withdrawn leaves the router's statistics; an adapter that was trained on it stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.continual import Answer, Continual, Kept, Lesson, Phase
from ..core.errors import RunError
from ..core.values import Manifest, Records, Vector
from . import router as routing
from .router import Arrays, Router

HEAD = ("head.weight", "head.bias")
_ADAPTER, _ROWS, _WEIGHT, _BIAS = "adapter.", "rows.", "weight.", "bias."
_ROUTER = "router."
_LAYERS, _WIDTH = _ROUTER + "layers", _ROUTER + "width"
_TINY = 1e-30
_BATCH = 256  # records per forward pass when answering


def method(router: Router) -> Continual:
    """The method that keeps an adapter and head rows per domain.

    Args:
        router: how the domain of a record is guessed.
    """

    def begin(kept: Kept, params: Vector, manifest: Manifest, index: int) -> tuple[Kept, Vector]:
        _need_head(manifest)
        factors, views = _factors(manifest), manifest.unpack(params)
        start = kept["start"] if "start" in kept else factors.pack(views)
        return {**kept, "start": start}, manifest.pack({**views, **factors.unpack(start)})

    def dataset(memory: Phase, shard: Records, model: Any) -> Records:
        router.features(model, Records())  # that the base has as many layers: before any training
        return shard

    def finish(memory: Phase, shard: Records, model: Any, phase: Phase) -> Vector:
        return router.of_client(phase, shard, model)

    def learn(kept: Kept, lesson: Lesson) -> Kept:
        views = lesson.manifest.unpack(lesson.params)
        rows = np.array([lesson.labels.index(name) for name in lesson.domain.labels], np.int64)
        place = _domains(kept)
        found = routing.learnt(router, _part(kept, _ROUTER), lesson, place)
        return {
            **kept,
            **{_ROUTER + name: array for name, array in found.items()},
            f"{_ADAPTER}{place}": _factors(lesson.manifest).pack(views),
            f"{_ROWS}{place}": rows,
            f"{_WEIGHT}{place}": views["head.weight"][rows],
            f"{_BIAS}{place}": views["head.bias"][rows],
        }

    def head(kept: Kept) -> Vector:
        answering = (_ADAPTER, _ROWS, _WEIGHT, _BIAS, *(_ROUTER + name for name in routing.SOLVED))
        found = {name: array for name, array in kept.items() if name.startswith(answering)}
        options = {_LAYERS: np.array(router.layers), _WIDTH: np.array(router.width)}
        return packed({**found, **options}) if _domains(kept) else np.zeros(0, np.float32)

    def answer(head: Vector, model: Any, labels: tuple[str, ...]) -> Answer:
        if tuple(model.labels) != tuple(labels):
            raise RunError(
                f"the model must hold the {len(labels)} labels that are asked for, in their order; "
                f"it holds {len(model.labels)}. Fit its labels first."
            )
        arrays = unpacked(head)
        made = Router(router.kind, int(arrays[_LAYERS]), int(arrays[_WIDTH]))
        return Routed(made, arrays, model, labels)

    return Continual(
        start=router.begun,
        dataset=dataset,
        size=router.size,
        finish=finish,
        begin=begin,
        learn=learn,
        told=lambda kept: np.zeros(0, np.float32),
        head=head,
        answer=answer,
        facts=_facts,
        sums=1,
        bits=12,
        classifies=True,
        users=False,
        private=True,
    )


@dataclass(frozen=True, slots=True)
class Routed:
    """Answers of one adapter per record; see `core.continual.Answer`.

    Attributes:
        router: how features are made.
        arrays: of the head: adapters, head rows, and the solved router.
        model: holds any parameters; left as it was.
        labels: all labels so far, in the order of the model's head.
    """

    router: Router
    arrays: Arrays
    model: Any
    labels: tuple[str, ...]

    def logits(self, records: Records) -> Vector:
        """Log chances float32 [n, labels]; the records' targets and domains are not looked at.

        The chance of a domain is the router's, and so is that of each label of a domain that was
        not chosen; within the chosen domain the router's chances are multiplied by the adapter's
        (a product of experts: Hinton 2002, doi:10.1162/089976602760128018).
        """
        chances = np.zeros((len(records), len(self.labels)), np.float32)
        if not len(records):
            return chances
        own = _part(self.arrays, _ROUTER)
        classes = routing.class_chances(own, self.router.features(self.model, records))
        domains = routing.domain_chances(classes, own["owner"])
        chosen = domains.argmax(1)
        before = self.model.vector()
        try:
            for domain in np.unique(chosen):
                at, mine = np.flatnonzero(chosen == domain), own["owner"] == domain
                experts = classes[np.ix_(at, mine)] * self._adapter(int(domain), records.take(at))
                total = experts.sum(1, keepdims=True)
                share = domains[at, domain][:, None] / np.maximum(total, _TINY)
                classes[np.ix_(at, mine)] = experts * share
        finally:
            self.model.load(before)
        np.add.at(chances.T, own["label"], classes.T)
        return np.log(np.maximum(chances, _TINY))

    def _adapter(self, domain: int, records: Records) -> Vector:
        """Chances of the domain's labels [n, its labels], by its own adapter."""
        manifest, rows = self.model.manifest, self.arrays[f"{_ROWS}{domain}"]
        views = manifest.unpack(np.zeros(manifest.size, np.float32))
        views |= _factors(manifest).unpack(self.arrays[f"{_ADAPTER}{domain}"])
        views["head.weight"][rows] = self.arrays[f"{_WEIGHT}{domain}"]
        views["head.bias"][rows] = self.arrays[f"{_BIAS}{domain}"]
        self.model.load(manifest.pack(views))
        # Any known label will do: scores do not depend on it, and the true one may not be known.
        asked = replace(records, targets=(self.labels[0],) * len(records))
        return routing.softmax(self.model.logits(self.model.encode(asked), _BATCH)[:, rows])


def _facts(kept: Kept) -> Mapping[str, float | int | str]:
    domains = _domains(kept)
    if not domains:
        return {}
    own = [name for name in kept if name.startswith((_ADAPTER, _ROWS, _WEIGHT, _BIAS))]
    last = sum(kept[name].nbytes for name in own if name.endswith(f".{domains - 1}"))
    routed = _ROUTER + "accuracy"
    return {
        **({"router_accuracy": float(kept[routed])} if routed in kept else {}),
        "domains": domains,
        "bytes_per_domain": last,
        "bytes_of_adapters": sum(kept[name].nbytes for name in own),
        "bytes_of_router": sum(array.nbytes for array in _part(kept, _ROUTER).values()),
        "domains_left": "no limit",
    }


def _need_head(manifest: Manifest) -> None:
    if not set(HEAD) <= set(manifest.names):
        raise RunError(
            "mode = 'adapters' needs a model with a head: its router tells domains apart by their "
            "labels. Write [continual] mode = 'slices' for this one."
        )


def _factors(manifest: Manifest) -> Manifest:
    """The manifest of all tensors but the head's."""
    return manifest.only([name for name in manifest.names if name not in HEAD])


def _domains(kept: Kept) -> int:
    return sum(name.startswith(_ADAPTER) for name in kept)


def _part(kept: Arrays, prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {k.removeprefix(prefix): kept[k] for k in kept if k.startswith(prefix)}


def packed(arrays: Arrays) -> Vector:
    """One float32 vector that says itself what it holds; the inverse of `unpacked`.

    First the number of bytes of a JSON list of name, type and shape of each array, then those
    bytes, a value each, then the arrays, one after another.

    Args:
        arrays: of float32, or of whole numbers below 2^24.
    """
    names = sorted(arrays)
    rows = [[name, arrays[name].dtype.name, list(arrays[name].shape)] for name in names]
    words = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    parts = [np.array([len(words)]), words, *(arrays[name].reshape(-1) for name in names)]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def unpacked(vector: Vector) -> dict[str, npt.NDArray[Any]]:
    """The arrays in `vector`, of the types they had.

    Raises:
        RunError: it does not hold what it says.
    """
    try:
        start = 1 + int(vector[0])
        rows = json.loads(vector[1:start].astype(np.uint8).tobytes())
        found = {}
        for name, kind, shape in rows:
            end = start + int(np.prod(shape))
            found[str(name)] = vector[start:end].reshape(shape).astype(kind)
            start = end
    except (IndexError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(str(error)) from error
    if start != len(vector):
        raise _damaged(f"{start} values are told of, and {len(vector)} are there")
    return found


def _damaged(problem: str) -> RunError:
    return RunError(
        f"the head of [continual] mode = 'adapters' must say what it holds: {problem}. Use the "
        "version that it was made with, or learn the last domain anew."
    )
