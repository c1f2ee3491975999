"""Texts as fixed features: hidden states of the top layers, averaged over each text's tokens."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import ModelError
from ..core.values import Vector
from .depth import find_layers

# Every forward pass is of this many texts, padded to a multiple of so many tokens: a product of
# the same shape adds in the same order, so that a text's bits do not depend on its company, and
# sums over clients equal those over all their records at once.
_BATCH, _STEP = 8, 4


def pooled(
    base: Any,
    tokens: Sequence[Sequence[int]],
    layers: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Vector:
    """Mean over a text's tokens of the last hidden states, float32 [n, layers * width].

    The last layer's is what the base gives out, after its final norm where it has one; those
    below are taken as they leave their layer. They stand side by side, the last layer first.
    Which other texts there are, and in which order, changes no bit of a text's features.

    Args:
        base: a transformers model without a task's head; left as it was.
        tokens: ids of each text, at least one each.
        layers: how many of the top layers.
        device: of the base.
        autocast: () -> the context to compute in.

    Raises:
        ModelError: the base has not so many layers, or they cannot be told apart.
    """
    lower = _lower_layers(base, layers)
    width = base.config.hidden_size
    texts = sorted({tuple(ids) for ids in tokens}, key=lambda ids: (len(ids), ids))
    found: dict[tuple[int, ...], Vector] = {}
    with _evaluating(base), torch.no_grad():
        for length, part in _batches(texts, _most(base)):
            ids, mask = _padded(part, length)
            with autocast():
                means = _means(base, ids.to(device), mask.to(device), lower)
            values = torch.cat(means, 1).cpu().numpy()
            found |= {ids_: values[i] for i, ids_ in enumerate(part)}
    rows = [found[tuple(ids)] for ids in tokens]
    return np.stack(rows) if rows else np.empty((0, layers * width), np.float32)


def _most(base: Any) -> int:
    """Tokens that surely have a position each; some bases count positions from 2."""
    return int(getattr(base.config, "max_position_embeddings", 2**30)) - 2


def _batches(
    texts: Sequence[tuple[int, ...]], most: int
) -> Iterator[tuple[int, Sequence[tuple[int, ...]]]]:
    """Padded lengths, and at most a batch of texts of each; `texts` rise in length."""

    def padded(ids: tuple[int, ...]) -> int:
        length = -(-len(ids) // _STEP) * _STEP
        return length if length <= most else len(ids)

    for length, same in groupby(texts, key=padded):
        group = list(same)
        for start in range(0, len(group), _BATCH):
            yield length, group[start : start + _BATCH]


def _padded(texts: Sequence[tuple[int, ...]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [batch, length]; a short batch is filled up with its first text."""
    filled = [*texts, *[texts[0]] * (_BATCH - len(texts))]
    ids = torch.tensor([[*row, *[row[0]] * (length - len(row))] for row in filled])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in filled])
    return ids, mask


def _lower_layers(base: Any, layers: int) -> list[nn.Module]:
    """The layers under the last one that are asked for, from the top down."""
    count = base.config.num_hidden_layers
    if not 1 <= layers <= count:
        raise ModelError(
            f"features must be of 1 to {count} layers, which is all that this base has; got "
            f"{layers}. Ask for a number in that range."
        )
    if layers == 1:
        return []
    try:
        _, every = find_layers(base)
    except ModelError as error:
        raise ModelError(
            "features of more than the last layer need a base whose layers stand in one list; "
            f"this one has none, and {layers} were asked for. Ask for 1."
        ) from error
    return list(every)[-layers:-1][::-1]


def _means(
    base: Any, ids: torch.Tensor, mask: torch.Tensor, lower: Sequence[nn.Module]
) -> list[torch.Tensor]:
    """Means over the tokens [b, width], float32, of the last layer and then of `lower`."""
    found: dict[int, torch.Tensor] = {}

    def look(place: int, layer: nn.Module, inputs: Any, output: Any) -> None:
        found[place] = _mean(output[0] if isinstance(output, tuple) else output, mask)

    with ExitStack() as hooks:
        for place, layer in enumerate(lower):
            hooks.enter_context(layer.register_forward_hook(partial(look, place)))
        last = base(input_ids=ids, attention_mask=mask).last_hidden_state
    return [_mean(last, mask), *(found[place] for place in range(len(lower)))]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weight = mask.unsqueeze(-1).float()
    mean: torch.Tensor = (hidden.float() * weight).sum(1) / weight.sum(1)
    return mean


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Remembered:
    """Features of a base that never changes, kept while they fit; the oldest use goes first.

    Args:
        size_bytes: how much is kept at most.
    """

    def __init__(self, size_bytes: int = 128 * 2**20) -> None:
        self._size_bytes = size_bytes
        self._held_bytes = 0
        self._kept: OrderedDict[tuple[str, int], Vector] = OrderedDict()

    def get(self, texts: Sequence[str], layers: int, compute: Callable[[], Vector]) -> Vector:
        """What `compute` gives for these texts and layers; the caller's own copy."""
        key = (_digest(texts), layers)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].copy()
        found = compute()
        if found.nbytes <= self._size_bytes:
            self._kept[key] = found.copy()
            self._held_bytes += found.nbytes
        while self._held_bytes > self._size_bytes:
            self._held_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def forget(self) -> None:
        """Keep nothing of what there was."""
        self._kept.clear()
        self._held_bytes = 0


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
