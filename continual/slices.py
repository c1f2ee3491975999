"""Rank slices of one LoRA adapter: each domain trains ranks of its own, earlier ones stand still.

What LoRA adds to a linear, B A, is a sum over ranks r of B[:, r] A[r, :], so a few ranks are a
small adapter of their own, and one whose columns of B are zero adds nothing. Freezing what a task
has used and leaving room for the next is PackNet's (Mallya and Lazebnik 2018, arXiv:1711.05769); a
subspace of LoRA per task is O-LoRA's (Wang et al. 2023, arXiv:2310.14152), here without its penalty
on overlap. Old slices still act on new domains, and new ones on old domains: no router is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..core.continual import Continual, Kept, Lesson, Phase, Tensors
from ..core.errors import RunError
from ..core.values import Manifest, Vector

FACTOR_A, FACTOR_B = ".lora_A", ".lora_B"
"""How the names of LoRA's factors end: A [r, in] and B [out, r]."""

HEAD = ("head.weight", "head.bias")
"""Names of the head: one row per label."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What may move on a client in this domain.

    Attributes:
        first: first rank of the domain's slice.
        end: the rank after its last one.
        rows: rows of the head that may move; None for all of them.
    """

    first: int
    end: int
    rows: tuple[int, ...] | None


def method(rank_per_domain: int, head: Literal["frozen", "shared"]) -> Continual:
    """The method that gives each domain the next `rank_per_domain` ranks of the adapter.

    Args:
        rank_per_domain: ranks that a domain takes, >= 1.
        head: whether rows of labels of other domains stand still outside of tuning rounds.
    """

    def begin(kept: Kept, params: Vector, manifest: Manifest, index: int) -> tuple[Kept, Vector]:
        used, rank = _used(kept), lowest_rank(manifest)
        if (used + 1) * rank_per_domain > rank:
            raise RunError(
                f"each domain needs {rank_per_domain} ranks of LoRA of its own; the adapter has "
                f"{rank}, and {used * rank_per_domain} of them are taken by {used} domains. For "
                f"another domain, start anew with [model] rank = {(used + 1) * rank_per_domain} or "
                "more or a lower [continual] rank_per_domain; or go on with mode = 'adapters', "
                "without rank_per_domain and head, or with the method 'replay'."
            )
        return {**kept, "rank": np.array(rank, np.int64), "used": np.array(used, np.int64)}, params

    def learn(kept: Kept, lesson: Lesson) -> Kept:
        return {**kept, "used": np.array(_used(kept) + 1, np.int64)}

    def start(phase: Phase) -> Slice:
        slot = int(phase.summary[0]) if phase.summary.size else phase.index
        first = slot * rank_per_domain
        rows = None if head == "shared" or phase.tuning else _rows(phase)
        return Slice(first, first + rank_per_domain, rows)

    def facts(kept: Kept) -> Mapping[str, float | int | str]:
        rank, used = int(kept["rank"]), _used(kept)
        left = rank - used * rank_per_domain
        return {
            "ranks": rank,
            "ranks_used": used * rank_per_domain,
            "ranks_left": left,
            "domains_left": left // rank_per_domain,
        }

    return Continual(
        start=start,
        mask=masks,
        begin=begin,
        learn=learn,
        # The slot, not the index of the domain: a later run may go on with the same adapter.
        told=lambda kept: np.array([_used(kept)], np.float32),
        facts=facts,
        ranks=rank_per_domain,
        users=False,
        private=True,
    )


def masks(memory: Slice, parameters: Tensors) -> Tensors:
    """1 where a parameter may move and 0 elsewhere, broadcastable to each tensor's shape."""
    import torch

    def ones_at(places: slice | tuple[int, ...], size: int, like: Any) -> Any:
        mask = torch.zeros(size, device=like.device)
        mask[list(places) if isinstance(places, tuple) else places] = 1.0
        return mask

    found = {}
    for name, tensor in parameters.items():
        own = slice(memory.first, memory.end)
        if name.endswith(FACTOR_A):
            found[name] = ones_at(own, tensor.shape[0], tensor)[:, None]
        elif name.endswith(FACTOR_B):
            found[name] = ones_at(own, tensor.shape[1], tensor)
        elif name in HEAD and memory.rows is not None:
            rows = ones_at(memory.rows, tensor.shape[0], tensor)
            found[name] = rows if tensor.ndim == 1 else rows[:, None]
    return found


def lowest_rank(manifest: Manifest) -> int:
    """The rank that all of LoRA's factors have at least.

    Raises:
        RunError: the model has no LoRA factors.
    """
    shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
    ranks = [shape[0] for name, shape in shapes.items() if name.endswith(FACTOR_A)]
    if not ranks:
        raise RunError(
            "elastic_mask needs a model with LoRA factors, named '….lora_A' and '….lora_B'; this "
            f"one trains {', '.join(manifest.names[:4]) or 'nothing'}. Use another [model]."
        )
    return min(ranks)


def _used(kept: Kept) -> int:
    return int(kept["used"]) if "used" in kept else 0


def _rows(phase: Phase) -> tuple[int, ...] | None:
    """Rows of the head that are of this domain; None where the head has no known labels."""
    own = set(phase.domain.labels)
    return tuple(i for i, name in enumerate(phase.labels) if name in own) if phase.labels else None
