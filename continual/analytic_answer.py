"""The head in closed form as one vector, and how it answers, alone or with the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.parts import Model
from ..core.values import Records, Vector
from . import public_sentences
from .heads import NEVER, Linear
from .random_features import around, in_steps, project

_SCHEMA = 1.0
_HEADER = 10
_CHUNK = 1024  # records whose features are expanded at once
_BATCH = 64  # records in a forward pass of the model's own head


@dataclass(frozen=True, slots=True)
class Recipe:
    """How records become features; public, the same for everyone of a run.

    Attributes:
        layers: how many top layers are pooled.
        width: how many random features; 0 for none.
        seed: of the random features.
        adapted: whether the layers are those of the adapter as it is now.
    """

    layers: int
    width: int
    seed: int
    adapted: bool

    def num_features(self, hidden: int) -> int:
        """M, for a base of `hidden` values a layer."""
        return self.width or self.layers * hidden

    def steps(self, model: Model, records: Records) -> Vector:
        """The pooled features of `records` in steps, float32 [n, layers * h].

        Raises:
            RunError: the model's features are not finite.
        """
        pooled = model.features(records, self.layers, adapted=self.adapted)
        if not np.isfinite(pooled).all():
            raise RunError(
                "features must be finite; those of the adapter as it is now are not. Its training "
                "went astray: lower the learning rate and start the run anew."
            )
        steps = in_steps(pooled, self.layers)
        return around(steps, self.middle(model))

    def middle(self, model: Model) -> Vector:
        """Where features are centred, in steps [layers * h]: their mean on public sentences.

        A few features are large for any text, and would set the scale to which sums are rounded.
        """
        public = model.features(public_sentences.RECORDS, self.layers, adapted=self.adapted)
        middle: Vector = in_steps(public, self.layers).mean(0)
        return middle


@dataclass(frozen=True, slots=True)
class Head:
    """All that answering needs beside the model's parameters.

    Attributes:
        recipe: of the features.
        linear: the head on them.
        temperature: what its scores are multiplied by before the softmax, > 0.
        blend: weight of the model's own head in the answer, 0..1.
    """

    recipe: Recipe
    linear: Linear
    temperature: float = 1.0
    blend: float = 0.0

    def vector(self) -> Vector:
        """The head as one float32 vector; the inverse of `read`."""
        recipe, (labels, width) = self.recipe, self.linear.weight.shape
        header = [_SCHEMA, recipe.layers, recipe.width, recipe.seed >> 16, recipe.seed & 0xFFFF]
        header += [recipe.adapted, self.temperature, self.blend, labels, width]
        parts = (np.array(header), self.linear.bias, self.linear.weight.reshape(-1))
        return np.concatenate(parts).astype(np.float32)

    @staticmethod
    def read(vector: Vector) -> Head:
        """The head that `vector` holds.

        Raises:
            RunError: the vector is not one of `Head.vector`.
        """
        whole = vector[:_HEADER].astype(np.float64)
        if (
            len(whole) < _HEADER
            or whole[0] != _SCHEMA
            or len(vector) != _HEADER + whole[8] * (1 + whole[9])
        ):
            raise RunError(
                f"these {len(vector)} values must be a head in closed form of this version; they "
                "are not. Use one version of the package at both ends."
            )
        layers, width, high, low, adapted = (int(value) for value in whole[1:6])
        recipe = Recipe(layers, width, (high << 16) + low, bool(adapted))
        bias = vector[_HEADER : _HEADER + int(whole[8])]
        weight = vector[_HEADER + len(bias) :].reshape(len(bias), int(whole[9]))
        return Head(recipe, Linear(weight, bias), float(whole[6]), float(whole[7]))


@dataclass(frozen=True, slots=True)
class HeadAnswer:
    """See `core.continual.Answer`.

    A label that came after the head was solved is never the answer: nothing is known of it yet.
    """

    head: Head
    model: Model
    labels: tuple[str, ...]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of the labels so far the head was given records of [labels]."""
        bias = self.head.linear.bias
        found = np.zeros(len(self.labels), bool)
        found[: len(bias)] = bias > NEVER / 2
        return found

    def logits(self, records: Records) -> Vector:
        """Log-probabilities of the labels so far, float32 [n, labels]."""
        steps = self.head.recipe.steps(self.model, records)
        known = len(self.head.linear.bias)
        scores = np.full((len(records), len(self.labels)), NEVER, np.float32)
        scores[:, :known] = closed_form(self.head, steps)
        scores = log_softmax(scores * np.float32(self.head.temperature))
        if not self.head.blend:
            return scores
        # Their targets play no part, and may be ones that the model does not know.
        asked = replace(records, targets=(self.labels[0],) * len(records))
        own = log_softmax(self.model.logits(self.model.encode(asked), _BATCH))
        return blended(scores, own, self.head.blend)


def answer(head: Vector, model: Model, labels: tuple[str, ...]) -> HeadAnswer:
    """Who answers by the head in `head`; see `Continual.answer`."""
    return HeadAnswer(Head.read(head), model, labels)


def closed_form(head: Head, steps: Vector) -> Vector:
    """The head's scores float32 [n, K] of pooled features in steps [n, m]."""
    return closed_forms(head.recipe, [head.linear], steps)[0]


def closed_forms(recipe: Recipe, linears: Sequence[Linear], steps: Vector) -> list[Vector]:
    """The scores float32 [n, K] of each of `linears`; the features are computed once for all."""
    found = [np.zeros((len(steps), len(linear.bias)), np.float32) for linear in linears]
    for start in range(0, len(steps), _CHUNK):
        features = project(steps[start : start + _CHUNK], recipe.width, recipe.seed)
        for scores, linear in zip(found, linears, strict=True):
            scores[start : start + _CHUNK] = linear.scores(features)
    return found


def blended(closed: Vector, own: Vector, blend: float) -> Vector:
    """The weighted mean of two sets of log-probabilities [n, K], `blend` the second's weight."""
    mixed: Vector = (1.0 - np.float32(blend)) * closed + np.float32(blend) * own
    return mixed


def log_softmax(scores: Vector) -> Vector:
    """Log-probabilities float32 [n, K] of scores [n, K]."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True, initial=-np.inf)
    logs: Vector = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).astype(np.float32)
    return logs
