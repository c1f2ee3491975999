"""Elastic weight consolidation: what earlier domains lean on is held, the rest is free to move.

Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3, in the online form of Schwarz et al. 2018
(arXiv:1805.06370), section 3.1: one running Fisher, F <- decay * F + F_domain, and one anchor, the
parameters at the end of the last domain. The penalty is strength / 2 * sum F (theta - anchor)^2.

Departures: its gradient is added after clipping and noise rather than through the loss, because
under DP-SGD a penalty in the loss changes nothing; F_domain is the mean of the clients' Fishers,
one secure sum, each client counting 1; the Fisher is of single examples and of labels drawn among
those that the domain was learnt among, so that the strength means the same at every batch size and
with either loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from ..core.errors import RunError
from ..core.parts import Continual, Kept, Lesson, Model, Phase, Tensors
from ..core.values import Manifest, Records, Vector

_FISHER, _ANCHOR, _LAYOUT = "fisher", "anchor", "layout"

# The sum is rounded on one grid for all tensors, and squared gradients differ by orders of
# magnitude between them: LoRA's part lost 10 % of its norm at 8 bits and 0.7 % at 12.
_BITS = 12

# Squared gradients of a loss that trains are far below; what is above would leave float32 soon.
_MOST_FISHER = 1e12

_Springs: TypeAlias = Callable[[Any], Mapping[str, tuple[Any, Any]]]
"""(device) -> curvature and anchor by tensor name, there."""


def build(
    *,
    strength: Annotated[float, Field(ge=0.0, le=1e12)] = 1e3,
    samples: Annotated[int, Field(ge=1)] = 60,
    decay: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0,
    max_curvature: Annotated[float, Field(ge=0.0)] = 0.0,
    while_tuning: bool = False,
    clip_norm: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0,
) -> Continual:
    """Online EWC on all trainable tensors.

    In a private run each client sums one number per tensor, over all its records, with noise:
    noise on each single value would drown the Fisher. A tensor's values then share its mean.
    What a record left in the Fisher cannot be taken out again when its person withdraws.

    Args:
        strength: lambda, >= 0, for a loss that is a mean over examples.
        samples: how many records of a client the Fisher looks at; a private run uses them all.
        decay: share of the earlier domains' Fisher that is kept at the end of a domain, 0..1.
        max_curvature: largest strength * F of a value; 0 for no limit of one's own. An adaptive
            optimizer needs none. Plain SGD would leap to and fro where lr * strength * F is above
            2, and has 1 / lr as a limit of its own.
        while_tuning: whether it pulls in the rounds that other methods add at the end of a
            domain, too.
        clip_norm: in a private run, the largest root of the sum of a record's squared gradients;
            about 1 for MiniLM after training.

    Example:
        >>> import numpy as np, torch
        >>> from pathlib import Path
        >>> from perennial.core.parts import Phase
        >>> from perennial.core.values import Domain, Manifest
        >>> told = np.array([0.5, 0.0, 1.0, 1.0], np.float32)  # Fisher, then anchor
        >>> here = Phase(Domain("b"), 1, Path(), 0, told, manifest=Manifest(("w",), ((2,),)))
        >>> method = build(strength=10.0)
        >>> method.pull(method.start(here), {"w": torch.tensor([3.0, 3.0])})["w"].tolist()
        [10.0, 0.0]
    """

    def start(phase: Phase) -> _Springs:
        if phase.tuning and not while_tuning:
            return _no_springs
        return _springs(phase, strength, min(max_curvature or math.inf, phase.stiffest))

    def finish(memory: _Springs, shard: Records, model: Model, phase: Phase) -> Vector:
        from . import fisher

        if phase.private:
            return _private(shard, model, phase, clip_norm)
        return fisher.diagonal(model, shard, samples, phase.seed, phase.answers)

    def facts(kept: Kept) -> Mapping[str, float | int | str]:
        if _FISHER not in kept:
            return {}
        curvature = strength * kept[_FISHER].astype(np.float64)
        return {
            "largest_curvature": float(curvature.max(initial=0.0)),
            "mean_curvature": float(curvature.mean()) if curvature.size else 0.0,
        }

    return Continual(
        start=start,
        pull=_pull,
        size=lambda manifest: manifest.size,
        finish=finish,
        begin=_begin,
        learn=lambda kept, lesson: _learn(kept, lesson, decay),
        told=_told,
        facts=facts,
        sums=1,
        bits=_BITS,
        private=True,
    )


def _no_springs(device: Any) -> Mapping[str, tuple[Any, Any]]:
    return {}


def _springs(phase: Phase, strength: float, max_curvature: float) -> _Springs:
    """Curvature strength * F and anchor by tensor, from the summary [2n]; moved once a round."""
    if not phase.summary.size:
        return _no_springs
    n = phase.manifest.size
    if phase.summary.size != 2 * n:
        raise RunError(
            f"the summary of ewc must be the Fisher and the anchor of {n} values, {2 * n} in all; "
            f"got {phase.summary.size}. Use one config and one version at both ends."
        )
    curvature = strength * phase.summary[:n]
    curvature = np.minimum(curvature, np.float32(max_curvature))
    curvatures = phase.manifest.unpack(curvature)
    anchors = phase.manifest.unpack(phase.summary[n:])

    @lru_cache(maxsize=1)
    def on(device: Any) -> Mapping[str, tuple[Any, Any]]:
        import torch

        def there(values: Vector) -> Any:
            return torch.tensor(values, device=device)

        return {name: (there(curvatures[name]), there(anchors[name])) for name in anchors}

    return on


def _pull(memory: _Springs, parameters: Tensors) -> Tensors:
    """The gradient of the penalty, strength * F * (theta - anchor)."""
    pulls = {}
    for name, value in parameters.items():
        found = memory(value.device).get(name)
        if found:
            curvature, anchor = found
            pulls[name] = curvature * (value.detach() - anchor)
    return pulls


def _private(shard: Records, model: Model, phase: Phase, clip_norm: float) -> Vector:
    """The Fisher [n] with one noisy mean for all values of a tensor, none below 0."""
    from . import fisher

    first = {id_: place for place, id_ in reversed(list(enumerate(shard.ids)))}
    records = shard.take(sorted(first.values()))
    rows = fisher.rows(model, records, clip_norm, phase.seed, phase.answers)
    *shares, count = phase.summed(rows, records, math.sqrt(2.0)).astype(np.float64)
    manifest = model.manifest
    means = np.maximum(shares, 0.0) * clip_norm**2 / max(count, 1.0)
    sizes = np.diff(manifest.offsets)
    # A tensor without values, a head without labels, takes none of it.
    return np.repeat(means / np.maximum(sizes, 1), sizes).astype(np.float32)


def _begin(kept: Kept, params: Vector, manifest: Manifest, index: int) -> tuple[Kept, Vector]:
    return (_fitted(kept, params, manifest) if _FISHER in kept else kept), params


def _fitted(kept: Kept, params: Vector, manifest: Manifest) -> Kept:
    """`kept` for `manifest`: what is new has no Fisher, and is anchored where it starts."""
    names, shapes = json.loads(str(kept[_LAYOUT]))
    old = Manifest(tuple(names), tuple(tuple(shape) for shape in shapes))
    if old == manifest:
        return kept
    fisher, anchor = np.zeros(manifest.size, np.float32), np.array(params, np.float32)
    for new, values in ((fisher, kept[_FISHER]), (anchor, kept[_ANCHOR])):
        views, before = manifest.unpack(new), old.unpack(values)
        for name in views.keys() & before.keys():
            if views[name].ndim == before[name].ndim:
                # New labels are new rows at the end of the head.
                ends = zip(views[name].shape, before[name].shape, strict=True)
                corner = tuple(slice(min(pair)) for pair in ends)
                views[name][corner] = before[name][corner]
    return {_FISHER: fisher, _ANCHOR: anchor, _LAYOUT: _layout(manifest)}


def _layout(manifest: Manifest) -> np.ndarray[Any, Any]:
    """Names and shapes as a string array, which a file of arrays holds without pickling."""
    return np.array(json.dumps([manifest.names, manifest.shapes]))


def _learn(kept: Kept, lesson: Lesson, decay: float) -> Kept:
    n = lesson.manifest.size
    if lesson.total.shape != (n,):
        raise RunError(f"the sum of the Fishers must have {n} values; got {lesson.total.shape}")
    # Noise and rounding inside a sum can take it below 0, and such a spring would push away.
    fisher = np.maximum(lesson.total / max(lesson.clients, 1.0), 0.0)
    if _FISHER in kept:
        fisher += decay * _fitted(kept, lesson.params, lesson.manifest)[_FISHER]
    if not np.abs(fisher).max(initial=0.0) < _MOST_FISHER:
        raise RunError(
            f"the Fisher must be below {_MOST_FISHER:g}; it is {np.abs(fisher).max():g}: a client "
            "sent what no gradient gives, or training went astray. Resume the run without it."
        )
    return {
        _FISHER: fisher.astype(np.float32),
        _ANCHOR: np.array(lesson.params, np.float32),
        _LAYOUT: _layout(lesson.manifest),
    }


def _told(kept: Kept) -> Vector:
    if _FISHER not in kept:
        return np.zeros(0, np.float32)
    return np.concatenate([kept[_FISHER], kept[_ANCHOR]]).astype(np.float32)
