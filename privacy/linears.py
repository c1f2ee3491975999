"""What one linear layer gives to a clipped sum, from its inputs and output gradients.

A factor of LoRA is so narrow that its gradient per example is smaller than the activations: it is
formed, and kept until all norms are known. A wide layer's norm is taken from Gram matrices instead,
and its sum from one product (Li et al. 2022, arXiv:2110.05679, section 4; Bu et al. 2023,
arXiv:2210.00038).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Term:
    """One layer's share of a part: b examples, t tokens, i inputs, o outputs.

    Args:
        a: inputs [b, t, i].
        g: gradients at the outputs [b, t, o].
        weight: whether the layer's weight trains.
        bias: whether its bias trains.

    Attributes:
        squares: squared norms of the examples' gradients, each [b].
    """

    def __init__(self, a: torch.Tensor, g: torch.Tensor, weight: bool, bias: bool) -> None:
        (_, t, i), o = a.shape, g.shape[2]
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows: torch.Tensor | None = None
        self._flipped = i < o
        self.squares: list[torch.Tensor] = []
        if weight and t > 1 and o * i <= 2 * t * (o + i):
            # The narrow side first: rows are then long.
            first, second = (a, g) if self._flipped else (g, a)
            self._rows = torch.bmm(first.transpose(1, 2), second)
            self.squares.append(_square(self._rows))
        elif weight:
            self._pair = a, g
            self.squares.append(_square(a) * _square(g) if t == 1 else _gram_square(a, g))
        if bias:
            self._shifts = g.sum(1)
            self.squares.append(_square(self._shifts))

    def add_weight(self, factors: torch.Tensor, total: torch.Tensor) -> None:
        """Add the examples' gradients of the weight, each by its factor [b], to `total` [o, i]."""
        o, i = total.shape
        if self._rows is not None:
            row = factors @ self._rows.flatten(1)
            total += row.view(i, o).T if self._flipped else row.view(o, i)
        elif self._pair is not None:
            a, g = self._pair
            scaled = g * factors[:, None, None]
            total.addmm_(scaled.reshape(-1, o).T, a.reshape(-1, i))

    def add_bias(self, factors: torch.Tensor, total: torch.Tensor) -> None:
        """Likewise of the bias, to `total` [o]."""
        total += factors @ self._shifts


def _square(rows: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.square()


def _gram_square(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Squared norm [b] of the sum over tokens of g x^T, as the sum of (x x^T) * (g g^T).

    In float64: tokens whose gradients cancel leave nothing of a float32 sum of products, and a
    norm that is too small would clip too little.
    """
    dtype, a, g = a.dtype, a.double(), g.double()
    products = torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))
    return products.sum((1, 2)).clamp(min=0.0).to(dtype)


def joined(calls: Sequence[torch.Tensor]) -> torch.Tensor:
    """[b, ..., n] of each call as one [b, t, n], in float32 or float64."""
    tokens = [call.detach().reshape(len(call), -1, call.shape[-1]) for call in calls]
    tensor = tokens[0] if len(tokens) == 1 else torch.cat(tokens, 1)
    return tensor if tensor.dtype == torch.float64 else tensor.float()
