"""A causal model as a function of tokens and of what it remembers of those before them.

Keys and values of earlier tokens enter and leave as plain tensors, so that prompt and single tokens
go through one graph (Pope et al. 2022, arXiv:2211.05102, section 2.1).
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from ..core.errors import ModelError


class Cached(nn.Module):
    """`model` with its cache outside.

    Letters: `b` texts, `p` tokens before, `t` tokens now, `h` key heads, `d` width of a head.

    Args:
        model: a transformers causal model that attends to the whole text; in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits [b, t, tokens], then key and value [b, h, p + t, d] of each layer.

        Args:
            input_ids: of the tokens now, [b, t].
            attention_mask: 1 for a token, 0 for padding, which stands on the left; [b, p + t].
            past: key and value of each layer in turn, [b, h, p, d]; p may be 0.
        """
        cache = transformers.DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        total = attention_mask.shape[1]
        start = total - input_ids.shape[1]
        places = torch.arange(total, device=input_ids.device)
        before = places[None, :] <= places[start:, None]
        visible = before[None, None] & attention_mask.bool()[:, None, None, :]
        # Not minus infinity: a row of padding sees nothing, and its softmax must stay a number.
        hidden = torch.finfo(torch.float32).min
        found = self.model(
            input_ids=input_ids,
            attention_mask=torch.where(visible, 0.0, hidden),
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0)[:, start:],
            past_key_values=cache,
            use_cache=True,
        )
        layers = found.past_key_values.layers
        return (found.logits, *(part for layer in layers for part in (layer.keys, layer.values)))


def empty(model: Any, texts: int = 1, length: int = 0) -> list[torch.Tensor]:
    """Zeros [texts, h, length, d] in the place of key and value of each layer.

    Raises:
        ModelError: the model keeps no key and value of each token in each layer.
    """
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    layers = getattr(getattr(cache, "past_key_values", None), "layers", ())
    parts = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    if not parts or any(part is None or part.ndim != 4 or part.shape[2] != 1 for part in parts):
        raise ModelError(
            "a cache of one key and one value for each token and layer was expected; "
            f"{type(model).__name__} keeps another. Models that attend in another way, or not at "
            "all, are not exported."
        )
    return [torch.zeros(texts, p.shape[1], length, p.shape[3]) for p in parts if p is not None]
