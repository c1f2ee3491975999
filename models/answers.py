"""What is computed from a model's outputs: losses over some labels, and draws from predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

IGNORED = -100
"""Cross entropy leaves such targets out."""

# Rows whose probabilities stand in memory at once, in double precision: a language model has
# a hundred thousand outputs.
_ROWS = 128


def losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    answers: Sequence[int],
    free: Any = None,
    prior: Any = None,
) -> torch.Tensor:
    """Cross entropy per example [b] over the labels in `answers` (all when empty).

    With `free` this is the asymmetric loss of ER-ACE (Caccia et al. 2022, arXiv:2104.05025):
    new records compare the new domain's labels only, replayed ones all labels. An example that
    is not free and whose label is not in `answers` has loss 0.

    Args:
        logits: [b, labels].
        targets: indices of labels [b].
        answers: indices of labels.
        free: bool [b], the examples whose loss looks at all labels all the same.
        prior: [labels], added to the logits first; None for nothing.
    """
    if prior is not None:
        logits = logits + prior.to(logits)
    if not answers or len(answers) >= logits.shape[1]:
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    free = None if free is None else torch.as_tensor(free, dtype=torch.bool)
    if free is not None and free.any():
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[list(answers)] = False
        others = others.to(logits.device)
        bound = ~free.to(logits.device)
        logits = logits.masked_fill(bound[:, None] & others, -torch.inf)
        targets = targets.masked_fill(bound & others[targets], IGNORED)
    else:
        chosen = torch.tensor(answers, device=logits.device)
        place = torch.full((logits.shape[1],), IGNORED, device=logits.device)
        place[chosen] = torch.arange(len(answers), device=logits.device)
        logits, targets = logits[:, chosen], place[targets]
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def drawn(logits: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """One output per row, drawn from its softmax: int64 [b], on the device of the logits.

    By inversion, one uniform number a row, so torch's own generators stay as they are.

    Args:
        logits: [b, outputs].
        rng: draws the uniform numbers.
    """
    uniform = torch.from_numpy(rng.random(len(logits))).to(logits.device)
    found = []
    parts = zip(torch.split(logits.detach(), _ROWS), torch.split(uniform, _ROWS), strict=True)
    for rows, places in parts:
        cumulative = rows.double().softmax(1).cumsum(1)
        # The last sum misses 1 by rounding: the place is taken as a share of it.
        places = places[:, None] * cumulative[:, -1:]
        found.append((cumulative <= places).sum(1).clamp(max=logits.shape[1] - 1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=logits.device)
