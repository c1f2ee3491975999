"""Private steps: sums of clipped gradients with Gaussian noise, and what guards them.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1, with flat clipping over all trained tensors and
the expected batch size as the divisor. Noise is added in float64, and sum and noise are rounded
together to a grid, so that the last bits of floats say nothing (Mironov 2012, "On significance of
the least significant bits for differential privacy").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..core.errors import PrivacyError
from ..core.parts import Session
from ..core.values import Vector
from .guards import SEEN, Freshness, Guards
from .stream import Stream

Normals: TypeAlias = Callable[[int], npt.NDArray[np.float64]]
"""(count) -> so many standard normals, float64."""

LEAST_CLIP, MOST_CLIP = 1e-6, 1e6
"""Clips outside mean nothing in floats: gradients and their noise would be lost or overflow."""

# The grid is at most 2**-20 of the noise's standard deviation: rounding adds nothing to the noise.
_GRID_BITS = 20

_NOT_FINITE = (
    "a sum with its noise must be finite; this one is not, and is not used. Lower the clip."
)


class Route(Protocol):
    """How gradients per example are found."""

    def ruled(self) -> Sequence[torch.Tensor]:
        """The tensors that have a rule."""
        ...

    def add(self, losses: torch.Tensor, clip: float, sums: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add the clipped gradients of `losses` [b] to `sums`; the clipped norms [b]."""
        ...


def noisy_sum(rows: Iterable[Vector], clip: float, *, noise_multiplier: float) -> Vector:
    """The sum [m] of `rows`, blocks [b, m], each row's L2 norm cut to `clip`, with noise.

    Args:
        rows: finite values.
        clip: the sum's sensitivity, 1e-6..1e6.
        noise_multiplier: standard deviation of the noise over the clip.

    Raises:
        PrivacyError: a value is not finite, or the clip is out of its range.
    """
    _check_clip(clip, "the clip of a private sum")
    total: torch.Tensor | None = None
    for block in rows:
        values = torch.from_numpy(np.asarray(block, np.float64))
        norms = torch.linalg.vector_norm(values, dim=1)
        if not torch.isfinite(norms).all():
            raise PrivacyError("the rows of a private sum must be finite; one is not")
        part = (clip / norms).clamp(max=1.0) @ values
        total = part if total is None else total + part
    if total is None:
        return np.zeros(0, np.float32)
    normals = Stream().normal(len(total))
    SEEN.check(normals)
    with np.errstate(over="ignore"):
        noisy = with_noise(total, normals, noise_multiplier * clip).numpy().astype(np.float32)
    if not np.isfinite(noisy).all():
        raise PrivacyError(_NOT_FINITE)
    return np.asarray(noisy)


def _check_clip(clip: float, what: str) -> None:
    if not LEAST_CLIP <= clip <= MOST_CLIP:
        raise PrivacyError(f"{what} must be {LEAST_CLIP:g}..{MOST_CLIP:g}; got {clip:g}")


def with_noise(total: torch.Tensor, normals: npt.NDArray[np.float64], std: float) -> torch.Tensor:
    """`total` + std * `normals`, rounded to a grid that depends on `std` alone.

    Args:
        total: float64 [n] on the CPU; left as it is.
        normals: standard normals [n].
        std: of the noise, finite and > 0.

    Raises:
        PrivacyError: the deviation or the result is not finite.
    """
    if not 0.0 < std < math.inf:
        raise PrivacyError(f"noise must have a deviation that is finite and above 0; got {std:g}")
    grid = 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)
    noisy = total.add(torch.from_numpy(normals), alpha=std)
    noisy = noisy.div_(grid).round_().mul_(grid)
    if not torch.isfinite(noisy).all():
        raise PrivacyError(_NOT_FINITE)
    return noisy


@contextmanager
def session(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch_size: int,
    *,
    clip: float,
    noise_multiplier: float,
    route: str = "activations",
    normals: Normals | None = None,
) -> Iterator[Session]:
    """A round of private steps; `module` is as it was when the context closes.

    Args:
        module: that trains.
        parameters: all its tensors that require a gradient, by name.
        batch_size: expected records in a step; the divisor of each sum.
        clip: largest L2 norm of one record's gradient, 1e-6..1e6.
        noise_multiplier: standard deviation of the noise over the clip.
        route: `activations` or `opacus`.
        normals: source of standard normals; for tests alone. Noise that protects people comes
            from a fresh secret stream.

    Raises:
        PrivacyError: a step could not be private.
    """
    if batch_size < 1:
        raise PrivacyError(f"the expected batch must be at least 1 record; got {batch_size}")
    _check_clip(clip, "the clip of private steps")
    std = noise_multiplier * clip
    seen = SEEN if normals is None else Freshness()
    guards = Guards(module, parameters, clip, noise_multiplier, seen)
    with _opened(route, module, parameters) as opened:
        guards.ruled(opened.ruled())
        draw = Stream().normal if normals is None else normals
        yield _Steps(opened, guards, tuple(parameters.values()), batch_size, clip, std, draw)


def _opened(
    route: str, module: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> AbstractContextManager[Route]:
    if route == "opacus":
        from . import opacus_route

        return opacus_route.opened(module, parameters)
    from . import per_example

    return per_example.opened(module, parameters)


class _Steps:
    """See `core.private.Session`."""

    def __init__(
        self,
        route: Route,
        guards: Guards,
        tensors: Sequence[nn.Parameter],
        batch_size: int,
        clip: float,
        std: float,
        normals: Normals,
    ) -> None:
        self._route, self._guards, self._normals = route, guards, normals
        self._tensors, self._batch_size, self._clip, self._std = tensors, batch_size, clip, std
        self._sizes = [tensor.numel() for tensor in tensors]
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        self._total = torch.zeros(
            sum(self._sizes),
            dtype=torch.float64 if wide else torch.float32,
            device=guards.device(),
        )
        self._sums = self._split(self._total)
        self._largest = torch.zeros((), device=self._total.device)
        self._count = self._step_size = 0
        self._released = False

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        parts = torch.split(flat, self._sizes)
        return [part.view(t.shape) for part, t in zip(parts, self._tensors, strict=True)]

    def backward(self, losses: torch.Tensor, step_size: int) -> None:
        """Add the clipped gradients of a part, losses [b], to the step's sum."""
        if self._released:
            raise PrivacyError("a step takes no gradient after its release; step first")
        if losses.dim() != 1 or not len(losses) or not losses.requires_grad:
            raise PrivacyError(
                f"losses must be one per example, [batch], with a graph; got {list(losses.shape)}: "
                "of a mean over the batch no gradient per example is left"
            )
        norms = self._route.add(losses, self._clip, self._sums)
        # A loss that is not finite must be seen even where its gradient is lost.
        seen = torch.maximum(norms.max(), losses.detach().abs().max() * 0.0)
        self._largest = torch.maximum(self._largest, seen.float())
        self._count += len(losses)
        self._step_size = step_size

    def release(self, optimizer: torch.optim.Optimizer) -> None:
        """Set every `grad` to (clipped sum + noise) / expected batch size."""
        if self._released:
            raise PrivacyError("a step is released once; it was already")
        self._guards.before_release(optimizer)
        if self._count and self._count != self._step_size:
            raise PrivacyError(
                f"all {self._step_size} records of a step must give their gradient; "
                f"{self._count} did"
            )
        total = self._total.to("cpu", torch.float64, copy=True)
        self._guards.clipped(float(self._largest), total, self._count)
        normals = self._normals(len(total))
        self._guards.fresh(normals)
        flat = with_noise(total, normals, self._std).div_(self._batch_size).to(self._total)
        for tensor, grad in zip(self._tensors, self._split(flat), strict=True):
            tensor.grad = grad.to(tensor.dtype)
        try:
            self._guards.released(total, self._batch_size)
        except PrivacyError:
            for tensor in self._tensors:
                tensor.grad = None
            raise
        self._total.zero_()
        self._largest.zero_()
        self._count = 0
        self._released = True

    def stepped(self) -> None:
        """After the optimizer's step: the first one must have moved every tensor."""
        if not self._released:
            raise PrivacyError("the optimizer stepped a gradient that was not released")
        self._guards.stepped()
        self._released = False
