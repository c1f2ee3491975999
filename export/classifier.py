"""A whole classifier as one torch module: token ids in, scores of the labels out.

The encoder has its adapter merged in; behind it stands the adapter's own linear head, or the head
in closed form as `continual/analytic_head.py` solved it (McDonnell et al. 2023, arXiv:2307.02251),
with all that lies between: pooled layers, steps, random features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..continual.analytic_answer import Head, HeadAnswer
from ..continual.analytic_pair import Together
from ..continual.heads import NEVER
from ..continual.random_features import LIMIT, STEPS, weights
from ..core.errors import ModelError
from ..core.parts import Answer, Model
from ..core.values import Vector
from ..models.merged import frozen, merged

_SPREAD = 2.0  # of a random weight; as `continual.random_features` has it


@dataclass(frozen=True, slots=True)
class Whole:
    """A classifier that answers by itself.

    Attributes:
        module: (token ids [b, t], mask [b, t]) -> scores [b, labels].
        labels: in the order of the scores.
        tokenizer: of the base.
        max_length: tokens that longer texts are cut to.
        head: `linear`, or `analytic` where a head in closed form answers.
    """

    module: nn.Module
    labels: tuple[str, ...]
    tokenizer: Any
    max_length: int
    head: str


class Classifier(nn.Module):
    """See `Whole.module`.

    Args:
        encoders: `merged`, `frozen` or both; what they share is held once.
        linear: the adapter's own head on the merged encoder; None where it has no say.
        parts: heads in closed form that answer in its place; one or two.
    """

    def __init__(
        self, encoders: dict[str, nn.Module], linear: nn.Linear | None, parts: Sequence[ClosedForm]
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.linear = linear
        self.parts: Any = nn.ModuleList(parts)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores [b, labels] of token ids [b, t]."""
        weight = attention_mask.unsqueeze(-1).float()
        pooled = {}
        for name, encoder in self.encoders.items():
            layers = max([part.layers for part in self.parts if part.reads == name], default=1)
            pooled[name] = _means(encoder, input_ids, attention_mask, weight, layers)
        own: torch.Tensor | None = None if self.linear is None else self.linear(pooled["merged"][0])
        if not len(self.parts):
            assert own is not None
            return own
        found: list[torch.Tensor] = [part(pooled[part.reads], own) for part in self.parts]
        if len(found) == 1:
            return found[0]
        chances = torch.stack([part.softmax(1) for part in found])
        return chances.clamp(min=1e-30).log().mean(0)


class ClosedForm(nn.Module):
    """One head in closed form, from pooled layers to log-probabilities.

    Args:
        head: as it was solved.
        middle: where its features are centred, in steps [layers * h].
        labels: how many there are; those that came after it was solved are never the answer.
    """

    def __init__(self, head: Head, middle: Vector, labels: int) -> None:
        super().__init__()
        recipe, linear = head.recipe, head.linear
        self.reads = "merged" if recipe.adapted else "frozen"
        self.layers, self.blend, self.temperature = recipe.layers, head.blend, head.temperature
        self.middle: torch.Tensor
        self.weight: torch.Tensor
        self.bias: torch.Tensor
        self.random: torch.Tensor | None
        self.register_buffer("middle", torch.from_numpy(np.array(middle, np.float32)))
        late = labels - len(linear.bias)
        bias = np.concatenate([linear.bias, np.full(late, NEVER, np.float32)])
        weight = np.concatenate([linear.weight, np.zeros((late, linear.weight.shape[1]))])
        self.register_buffer("bias", torch.from_numpy(bias))
        self.register_buffer("weight", torch.from_numpy(weight.T.astype(np.float32).copy()))
        self.register_buffer("random", None)
        if recipe.width:
            random = weights(len(middle), recipe.width, recipe.seed)
            self.register_buffer("random", torch.from_numpy(random.copy()))

    def forward(self, pooled: Sequence[torch.Tensor], own: torch.Tensor | None) -> torch.Tensor:
        """Log-probabilities [b, labels] of pooled layers [b, h] each, the last one first."""
        rows = torch.stack(list(pooled[: self.layers]), 1)
        rows = rows - rows.mean(2, keepdim=True)
        spread = rows.square().mean(2, keepdim=True).sqrt()
        steps = (rows * (STEPS / spread.clamp(min=1e-12))).clamp(-LIMIT, LIMIT).flatten(1)
        steps = steps - self.middle
        length = steps.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        steps = (steps * (STEPS * steps.shape[1] ** 0.5 / length)).clamp(-LIMIT, LIMIT)
        if self.random is not None:
            steps = (steps @ self.random / (_SPREAD * steps.shape[1] ** 0.5)).relu()
        scores = (steps @ self.weight + self.bias) * self.temperature
        logs: torch.Tensor = scores.log_softmax(1)
        if not self.blend:
            return logs
        assert own is not None
        return (1.0 - self.blend) * logs + self.blend * own.log_softmax(1)


def whole(model: Model, answer: Answer | None) -> Whole:
    """The classifier that `model` is, with its adapter merged, and whoever answers in its place.

    Args:
        model: an encoder classifier that holds its adapter; left as it was.
        answer: of the continual method; None where the model's own head answers.

    Raises:
        ModelError: the model or the answer is of a kind that makes no graph.
    """
    base, labels = model.module.encoder, tuple(model.labels)
    halves = _halves(answer)
    heads = [half.head for half in halves]
    parts = [ClosedForm(head, head.recipe.middle(model), len(labels)) for head in heads]
    linear = None
    if not heads or any(head.blend for head in heads):
        linear = _linear(model.module.head)
    reads = {part.reads for part in parts} | ({"merged"} if linear is not None else set())
    encoders = {}
    if "merged" in reads:
        encoders["merged"] = merged(base)
    if "frozen" in reads:
        encoders["frozen"] = frozen(base)
    if len(encoders) == 2:
        _share(encoders["frozen"], encoders["merged"])
    module = Classifier(encoders, linear, parts).eval().requires_grad_(False)
    kind: Any = model
    return Whole(module, labels, kind.tokenizer, kind.max_length, "analytic" if parts else "linear")


def _halves(answer: Answer | None) -> list[HeadAnswer]:
    if answer is None:
        return []
    if isinstance(answer, HeadAnswer):
        return [answer]
    if isinstance(answer, Together):
        if not (answer.frozen.known == answer.adapted.known).all():
            raise ModelError(
                "both halves of the analytic head must know the same labels to be one graph; some "
                "label's only holder was away. Release again when it has taken part."
            )
        return [answer.frozen, answer.adapted]
    raise ModelError(
        f"a release whose domains have adapters of their own ({type(answer).__name__}) is not one "
        "graph, and cannot be exported; use one adapter for all domains, with the methods that "
        "[continual] takes by default."
    )


def _linear(head: Any) -> nn.Linear:
    weight, bias = head.weight.detach(), head.bias.detach()
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return linear


def _share(one: nn.Module, other: nn.Module) -> None:
    """Let `other` hold the tensors of `one` where they are equal: they are written once."""
    held = dict(one.named_parameters())
    for name, parameter in list(other.named_parameters()):
        if name in held and torch.equal(held[name], parameter):
            owner, _, key = name.rpartition(".")
            setattr(other.get_submodule(owner), key, held[name])


def _means(
    encoder: nn.Module, ids: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, layers: int
) -> list[torch.Tensor]:
    """Means over the tokens [b, h] of the last layer, then of those below it."""
    found = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=layers > 1)
    hidden = [found.last_hidden_state]
    if layers > 1:
        hidden += list(found.hidden_states[-layers:-1])[::-1]
    return [(rows.float() * weight).sum(1) / weight.sum(1) for rows in hidden]
