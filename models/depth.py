"""An encoder cut in two: frozen layers below, computed once; trained layers above.

With LoRA in the top k layers only, the activations that enter them never change. They are kept
in half precision, without padding, and the layers below are skipped from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import ModelError
from ..core.parts import Indices


class _Skip(nn.Module):
    """Stands for a layer that is not run: returns its input, or what it was given.

    Args:
        layer: the layer that is skipped.
        returns: length of the tuple that the layer returns; 0 when it returns a tensor.
    """

    def __init__(self, layer: nn.Module, returns: int) -> None:
        super().__init__()
        self._returns = returns
        self.given: torch.Tensor | None = None
        self.seen: torch.Tensor | None = None
        # Some encoders choose a mask by this attribute of each layer.
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.seen = hidden
        result = hidden if self.given is None else self.given
        return (result, *[None] * (self._returns - 1)) if self._returns else result


def find_layers(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the encoder's layers.

    Raises:
        ModelError: no list has as many entries as the base's config says.
    """
    count = getattr(encoder.config, "num_hidden_layers", 0)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count > 0:
            return name, module
    raise ModelError(
        f"[model] layers needs a base whose {count} layers stand in one list; this one has none. "
        "Write layers = 0 to adapt all of it."
    )


class CutEncoder:
    """An encoder whose layers below `cut` can be run apart from those above.

    Args:
        encoder: a transformers encoder; left as it was between calls.
        cut: number of layers below, 1 or more.
    """

    def __init__(self, encoder: nn.Module, cut: int) -> None:
        name, self._layers = find_layers(encoder)
        owner, _, self._key = name.rpartition(".")
        self._owner = encoder.get_submodule(owner)
        self._encoder = encoder
        returns = _returns(encoder, self._layers[0])
        skips = [_Skip(layer, returns) for layer in self._layers]
        self._entry = skips[0]
        self._catch = skips[cut]
        self._below = nn.ModuleList([*self._layers[:cut], *skips[cut:]])
        self._above = nn.ModuleList([*skips[:cut], *self._layers[cut:]])

    def below(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Activations [b, t, h] that enter the first layer above, without gradients."""
        with torch.no_grad(), self._as(self._below):
            self._encoder(input_ids=ids, attention_mask=mask)
        seen, self._catch.seen = self._catch.seen, None
        assert seen is not None
        return seen

    def above(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states [b, t, h] from the activations of `below`."""
        ids = torch.zeros_like(mask)  # embedded and then thrown away: far below a layer's cost
        self._entry.given = hidden
        try:
            with self._as(self._above):
                output = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        finally:
            self._entry.given = self._entry.seen = None
        return output  # type: ignore[no-any-return]

    @contextmanager
    def _as(self, layers: nn.ModuleList) -> Iterator[None]:
        self._owner._modules[self._key] = layers
        try:
            yield
        finally:
            self._owner._modules[self._key] = self._layers


def _returns(encoder: nn.Module, layer: nn.Module) -> int:
    found = [0]

    def look(layer: nn.Module, inputs: Any, output: Any) -> None:
        found[0] = len(output) if isinstance(output, tuple) else 0

    ids = torch.zeros((1, 1), dtype=torch.long, device=next(encoder.parameters()).device)
    with torch.no_grad(), layer.register_forward_hook(look):
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    return found[0]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths in one tensor.

    Attributes:
        values: [sum of lengths, ...].
        offsets: where each row starts, and the end: int64 [rows + 1].
    """

    values: torch.Tensor
    offsets: torch.Tensor

    @staticmethod
    def of(rows: Sequence[torch.Tensor]) -> Ragged:
        """The rows, one after another; at least one row."""
        lengths = torch.tensor([0, *(len(row) for row in rows)])
        return Ragged(torch.cat(list(rows)), lengths.cumsum(0))

    def joined(self, other: Ragged) -> Ragged:
        """These rows, then those of `other`."""
        offsets = torch.cat([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return Ragged(torch.cat([self.values, other.values]), offsets)

    def padded(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows at `indices` as [b, t, ...] and their mask [b, t]; padding repeats a value."""
        chosen = torch.from_numpy(np.asarray(indices, np.int64))
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        places = torch.where(mask, starts[:, None] + steps, starts[:, None])
        return self.values[places], mask.long()


def joined(first: Ragged | None, second: Ragged | None) -> Ragged | None:
    """The rows of both, one after another; `None` stands for no row."""
    if first is None or second is None:
        return first if second is None else second
    return first.joined(second)
