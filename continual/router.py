"""Which domain a record is of, guessed from features of the frozen base.

The router is a closed-form head over the classes of all domains so far (nearest class mean, linear
discriminants or ridge); the chance of a domain is the sum over its classes. Its statistics are
sums, so that neither the split over clients nor the order of domains changes it, and no domain
makes it forget another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..core.continual import Kept, Lesson, Phase
from ..core.values import Manifest, Records, Vector
from . import random_features, statistics

if TYPE_CHECKING:
    from .analytic_answer import Recipe

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by name."""

SOLVED = ("owner", "label", "weight", "bias", "middle", "temperature")
"""Names of the arrays that routing needs; the others are the statistics."""

_SEED = 5  # public: all who add to a sum must project in the same way

# What validation chooses from: regularisers, and by what scores are divided before the softmax.
# Without validation the middle regulariser is taken, and the smallest divisor: the best class then
# decides, while one that is too large would let a domain win by classes that are all a little near.
_GRIDS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "means": ((0.0,), (0.02, 0.03, 0.05, 0.07, 0.1)),
    # Layers side by side are correlated, so discriminants are far too sure of themselves.
    "lda": ((1e-3, 1e-2, 3e-2, 1e-1, 5e-1), (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0)),
    "ridge": ((1e-4, 1e-3, 1e-2, 1e-1, 1.0), (0.02, 0.03, 0.05, 0.07, 0.1)),
}


@dataclass(frozen=True, slots=True)
class Router:
    """How domains are told apart.

    Attributes:
        kind: the head over the classes.
        layers: from how many top layers of the frozen base features are pooled.
        width: random features on top of them; 0 for none.
    """

    kind: Literal["means", "lda", "ridge"]
    layers: int
    width: int

    def inputs(self, manifest: Manifest) -> int:
        """Number of features M that the head sees."""
        layers = self.recipe(manifest).layers
        return self.width or layers * _head_shape(manifest)[1]

    def size(self, manifest: Manifest) -> int:
        """How many values the statistics of a domain have."""
        labels = _head_shape(manifest)[0]
        return statistics.size(labels, self.inputs(manifest), second=self.second)

    @property
    def second(self) -> bool:
        """Whether the head needs the Gram matrix."""
        return self.kind != "means"

    def recipe(self, manifest: Manifest) -> Recipe:
        """How records become features: those of the frozen base, which no domain moves."""
        from .analytic_answer import Recipe
        from .analytic_client import depth_of

        return Recipe(min(self.layers, depth_of(manifest)), self.width, _SEED, adapted=False)

    def features(self, model: Any, records: Records) -> Vector:
        """Features of the texts, float32 [n, M]; the targets are not looked at.

        Raises:
            ModelError: the base has fewer layers than the router asks for.
        """
        recipe = self.recipe(model.manifest)
        if not len(records):
            pooled = model.features(records, recipe.layers)
            return np.zeros((0, self.width or pooled.shape[1]), np.float32)
        return random_features.project(recipe.steps(model, records), self.width, _SEED)

    def begun(self, phase: Phase) -> Phase:
        """The phase itself, once what the server no longer needs is off the client's disk."""
        from . import analytic_client

        return analytic_client.start(phase)

    def of_client(self, phase: Phase, shard: Records, model: Any) -> Vector:
        """What a client adds at the end of a domain, float32 [size(manifest)].

        Its records that no earlier end counted, less those that were withdrawn since; in a private
        run its records of the domain, with noise, and nothing is taken away.
        """
        from . import analytic_client

        return analytic_client.sums(
            phase, shard, model, self.recipe(model.manifest), refresh=False, second=self.second
        )

    def sums(self, total: npt.NDArray[np.float64], manifest: Manifest) -> statistics.Sums:
        """The statistics in the sum of the clients' vectors."""
        from .analytic_client import natural

        num_labels, width = _head_shape(manifest)[0], self.inputs(manifest)
        return statistics.view(natural(total, num_labels, width), num_labels, width)


def _head_shape(manifest: Manifest) -> tuple[int, ...]:
    """Number of labels K and width of the head."""
    return dict(zip(manifest.names, manifest.shapes, strict=True))["head.weight"]


def learnt(router: Router, kept: Kept, lesson: Lesson, domain: int) -> Arrays:
    """The router after a domain: statistics of all classes so far and the head solved from them.

    A class is a label of one domain: `owner` [C] says of which, `label` [C] which one.

    Args:
        router: how.
        kept: the router after the domain before; empty in the first one.
        lesson: of the domain; `total` is the sum of the clients' statistics.
        domain: how many domains were learnt before.
    """
    found = router.sums(lesson.total, lesson.manifest)
    fresh = np.array([lesson.labels.index(name) for name in lesson.domain.labels], np.int64)
    before = kept or _empty(found.width, len(found.gram))
    counts, sums = before["counts"].copy(), before["sums"].copy()
    # Late records of earlier domains are in the sum too, and withdrawn ones with a minus.
    last = {int(name): place for place, name in enumerate(before["label"])}
    for name in sorted(last.keys() - set(fresh.tolist())):
        counts[last[name]] += found.counts[name]
        sums[last[name]] += found.sums[name]
    arrays = {
        "owner": np.concatenate([before["owner"], np.full(len(fresh), domain)]),
        "label": np.concatenate([before["label"], fresh]),
        "counts": np.concatenate([counts, found.counts[fresh]]),
        "sums": np.concatenate([sums, found.sums[fresh]]),
        "gram": before["gram"] + found.gram,
    }
    return {**arrays, **_solved(router, arrays, lesson)}


def _empty(width: int, triangle: int) -> dict[str, npt.NDArray[Any]]:
    none = np.zeros(0, np.int64)
    sums, gram = np.zeros((0, width)), np.zeros(triangle)
    return {"owner": none, "label": none, "counts": np.zeros(0), "sums": sums, "gram": gram}


def _solved(router: Router, arrays: Arrays, lesson: Lesson) -> Arrays:
    """The head and the temperature under which validation is routed best."""
    strengths, temperatures = _GRIDS[router.kind]
    solve = _solver(router.kind, arrays)
    sharpest = np.array(temperatures[0], np.float32)
    tested = lesson.validation.where(lambda i: lesson.validation.targets[i] in lesson.labels)
    if not len(tested):
        return {**solve(strengths[len(strengths) // 2]), "temperature": sharpest}
    seen = router.features(lesson.model, tested)
    labels = np.array([lesson.labels.index(target) for target in tested.targets])
    right = arrays["label"] == labels[:, None]
    best, routed = -np.inf, np.zeros(len(labels), np.intp)
    found: Arrays = {}
    for strength in strengths:
        head = solve(strength)
        scores = class_scores(head, seen)
        for temperature in temperatures:
            chances = softmax(scores / np.float32(temperature))
            quality = float(np.log(np.maximum((chances * right).sum(1), 1e-9)).mean())
            if not found or quality > best:
                best, found = quality, {**head, "temperature": np.array(temperature, np.float32)}
                routed = domain_chances(chances, arrays["owner"]).argmax(1)
    # A record that was sent to any domain with its label was sent right.
    sent = (right & (arrays["owner"] == routed[:, None])).any(1)
    return {**found, "accuracy": np.array(sent.mean())}


def _solver(kind: str, arrays: Arrays) -> Callable[[float], Arrays]:
    from . import heads

    sums = statistics.Sums(arrays["counts"], arrays["sums"], arrays["gram"])
    if kind == "means":
        return lambda strength: _centres(sums)
    solve = heads.discriminants(sums) if kind == "lda" else heads.ridge(sums)

    def solved(strength: float) -> Arrays:
        head = solve(strength)
        return {"weight": head.weight, "bias": head.bias}

    return solved


def _centres(sums: statistics.Sums) -> Arrays:
    """Class means of unit length around the mean of them all, `middle` [M]."""
    from . import heads

    means = heads.class_means(sums)
    held = np.asarray(sums.counts) > 0
    middle = means[held].mean(0) if held.any() else np.zeros(sums.width)
    bias = np.where(held, 0.0, heads.NEVER).astype(np.float32)
    centres = _unit((means - middle).astype(np.float32))
    return {"weight": centres, "bias": bias, "middle": middle.astype(np.float32)}


def _unit(rows: Vector) -> Vector:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1.0)).astype(np.float32)


def class_scores(head: Arrays, features: Vector) -> Vector:
    """Scores of all classes, float32 [n, C]: linear ones, or the cosine to each class mean.

    Args:
        head: `weight` [C, M] and `bias` [C]; `middle` [M] where `weight` holds class means.
        features: float32 [n, M].
    """
    if "middle" not in head:
        linear: Vector = features @ head["weight"].T + head["bias"]
        return linear
    from . import index

    distances, found = index.nearest(
        head["weight"], _unit(features - head["middle"]), len(head["weight"])
    )
    cosines = np.empty_like(distances)
    np.put_along_axis(cosines, found, 1.0 - distances**2 / 2.0, axis=1)
    scores: Vector = cosines + head["bias"]
    return scores


def class_chances(arrays: Arrays, features: Vector) -> Vector:
    """Chance of each class, float32 [n, C], rows of sum 1.

    Args:
        arrays: of `learnt`, those of `SOLVED`.
        features: float32 [n, M].
    """
    return softmax(class_scores(arrays, features) / np.float32(arrays["temperature"]))


def softmax(scores: Vector) -> Vector:
    """Chances of rows of sum 1."""
    chances = np.exp(scores - scores.max(1, keepdims=True))
    total: Vector = chances / chances.sum(1, keepdims=True)
    return total


def domain_chances(chances: Vector, owner: npt.NDArray[np.int64]) -> Vector:
    """Chance of each domain, float32 [n, domains]: the sum over its classes.

    Args:
        chances: of the classes [n, C].
        owner: domain of each class [C].
    """
    total = np.zeros((len(chances), int(owner.max()) + 1), np.float32)
    np.add.at(total.T, owner, chances.T)
    return total
