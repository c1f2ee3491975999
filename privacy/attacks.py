"""What an update tells of the words behind it.

The gradient of LoRA's first A is a sum of rows, each a multiple of one token's input vector, so
that its row space holds the tokens' vectors (Petrov et al. 2024, arXiv:2405.15586; the idea that
gradients give records back is of Zhu et al. 2019, arXiv:1906.08935).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.parts import Model
from ..core.values import Vector
from .canaries import linears

Rows = npt.NDArray[np.float64]

_RANK = 1e-4  # singular values below this part of the largest are rounding
_CHUNK = 1024  # tokens tried at once


class _Reached(Exception):
    """The layer that was asked for has its input: the rest need not run."""


def first_factors(model: Model, trainable: frozenset[str], batch: Any) -> tuple[str, ...]:
    """Names of LoRA's A factors that read the first adapted layer's input; none without any.

    Args:
        model: whose forward pass is followed.
        trainable: names of the tensors that travel.
        batch: of the model, any.
    """
    found: list[tuple[str, torch.Tensor]] = []

    def follow(name: str) -> Callable[..., None]:
        return lambda module, args: found.append((name, args[0]))

    chosen = {n: m for n, m in linears(model, trainable).items() if n.endswith("lora_A")}
    handles = [m.register_forward_pre_hook(follow(n)) for n, m in chosen.items()]
    try:
        with torch.no_grad():
            model.losses(batch, [])
    finally:
        for handle in handles:
            handle.remove()
    return tuple(name for name, inputs in found if inputs is found[0][1])


def inputs_of(model: Model, name: str, batch: Any) -> npt.NDArray[np.float32]:
    """What the linear whose weight is `name` reads, [b, t, h]; nothing behind it runs."""
    seen: list[torch.Tensor] = []

    def stop(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    handle = linears(model, frozenset([name]))[name].register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            model.losses(batch, [])
    except _Reached:
        pass
    finally:
        handle.remove()
    inputs: npt.NDArray[np.float32] = seen[0].float().cpu().numpy()
    return inputs


def row_space(factors: Sequence[Vector]) -> npt.NDArray[np.float32]:
    """An orthonormal basis [h, k] of all rows of `factors`, each [r, h]."""
    rows = np.concatenate([factor.reshape(-1, factor.shape[-1]) for factor in factors])
    rows = rows.astype(np.float64) / max(float(np.abs(rows).max()), 1e-30)
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    found: npt.NDArray[np.float32] = basis[values > _RANK * values[0]].T.astype(np.float32)
    return found


def inside(vectors: npt.NDArray[np.float32], basis: npt.NDArray[np.float32]) -> Rows:
    """Share of each vector [..., h] that lies in the space of `basis` [h, k], 0..1."""
    whole = np.einsum("...h,...h->...", vectors, vectors)
    part = vectors @ basis
    return np.asarray(
        np.einsum("...k,...k->...", part, part) / np.maximum(whole, 1e-30), np.float64
    )


def most_alike(
    model: Model,
    name: str,
    batch: Any,
    length: int,
    bases: Mapping[Any, npt.NDArray[np.float32]],
) -> dict[Any, list[int]]:
    """For each space the tokens, of the whole vocabulary, that lie in it best.

    One for each position, where positions are part of what the layer reads; else the best ones of
    all, whose order is then unknown. Only for a layer that reads embeddings: what it reads of a
    token depends on no other.

    Args:
        model: whose vocabulary is tried.
        name: weight of the first adapted linear.
        batch: of the model, one record; a pattern for the tokens that are tried.
        length: number of tokens wanted.
        bases: the spaces [h, k] by any key.
    """
    stacked = torch.from_numpy(np.concatenate(list(bases.values()), axis=1))
    owner = torch.cat([torch.full((b.shape[1],), i) for i, b in enumerate(bases.values())])
    owned = torch.nn.functional.one_hot(owner, len(bases)).float()
    width = length if _placed(model, name, batch) else 1
    keep = -(-length // width)
    best, found = torch.zeros((0, width, len(bases))), torch.zeros(0, width, len(bases)).long()
    for start in range(0, vocabulary(model), _CHUNK):
        tokens = torch.arange(start, min(start + _CHUNK, vocabulary(model)))
        vectors = torch.from_numpy(
            inputs_of(model, name, _of_tokens(batch, tokens[:, None].expand(-1, width)))
        ).flatten(0, 1)
        vectors /= torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(min=1e-30)
        shares = ((vectors @ stacked).square_() @ owned).view(len(tokens), width, -1)
        values, top = shares.topk(min(keep, len(tokens)), dim=0)
        best, found = torch.cat([best, values]), torch.cat([found, start + top])
        best, chosen = best.topk(min(keep, len(best)), dim=0)
        found = found.gather(0, chosen)
    return {key: found[:, :, i].flatten().tolist()[:length] for i, key in enumerate(bases)}


def _placed(model: Model, name: str, batch: Any) -> bool:
    """Whether what a layer reads of a token depends on the token's position."""
    vectors = inputs_of(model, name, _of_tokens(batch, torch.full((1, 2), 1)))[0]
    return not np.allclose(vectors[0], vectors[1], atol=1e-6)


def reads_embeddings(model: Model, name: str, batch: Any) -> bool:
    """Whether what a layer reads of the first token depends on no other token."""
    ids = tokens_of(batch)
    if ids is None or ids.shape[1] < 2:
        return False
    other = ids.clone()
    other[:, 1:] = (other[:, 1:] + 1) % vocabulary(model)
    one, two = (inputs_of(model, name, _of_tokens(batch, each)) for each in (ids, other))
    return bool(np.allclose(one[:, 0], two[:, 0], atol=1e-6))


def tokens_of(batch: Any) -> torch.Tensor | None:
    """The token ids [b, t] of a model's batch; None where it holds cached activations."""
    tokens: torch.Tensor = getattr(batch, fields(batch)[0].name)
    return None if tokens.is_floating_point() else tokens


def vocabulary(model: Model) -> int:
    """Number of tokens that the model knows."""
    modules = model.module.modules()
    return max((m.num_embeddings for m in modules if isinstance(m, torch.nn.Embedding)), default=0)


def read_back(tokens: Sequence[int], words: Mapping[tuple[int, ...], str]) -> str:
    """`tokens` as text by the longest known words; a dot for a token that no word begins with."""
    said, at = [], 0
    longest = max((len(key) for key in words), default=1)
    while at < len(tokens):
        for size in range(min(longest, len(tokens) - at), 0, -1):
            word = words.get(tuple(tokens[at : at + size]))
            if word is not None:
                said.append(word)
                at += size
                break
        else:
            said.append("\N{MIDDLE DOT}")
            at += 1
    return " ".join(said)


def share_found(truth: Sequence[int], guess: Collection[int], common: Collection[int]) -> float:
    """Share of the tokens that were guessed, those of every record (`common`) left out; 0..1."""
    asked = [token for token in truth if token not in common]
    return sum(token in guess for token in asked) / len(asked) if asked else 0.0


def _of_tokens(batch: Any, tokens: torch.Tensor) -> Any:
    device = getattr(batch, fields(batch)[0].name).device
    tokens = tokens.contiguous().to(device)
    return replace(batch, **{fields(batch)[0].name: tokens, "mask": torch.ones_like(tokens)})
