"""Clipped sums of per-example gradients by the hooks of Opacus: for layers of any kind.

Yousefpour et al. 2021 (arXiv:2109.12298). Only its gradients per example are used; sampling,
clipping, noise, guards and accounting are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..core.errors import PrivacyError
from . import guards


class OpacusHooks:
    """The route over Opacus; made by `opened`."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = dict(parameters)

    def ruled(self) -> list[torch.Tensor]:
        """The tensors that have a rule: all of them."""
        return list(self._parameters.values())

    def add(self, losses: torch.Tensor, clip: float, sums: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add the clipped gradients of `losses` [b] to `sums`; the clipped norms [b].

        Args:
            losses: per example, with the graph.
            clip: largest norm over all tensors together.
            sums: per parameter, of its shape; changed in place.

        Raises:
            PrivacyError: a tensor has no gradient per example.
        """
        try:
            with warnings.catch_warnings():
                # The first layer's inputs need no gradient, and Opacus' hooks do not either.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                torch.autograd.backward(losses.sum())
            rows = [self._rows(name, len(losses)) for name in self._parameters]
        finally:
            self.forget()
        each = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows])
        norms: torch.Tensor = torch.linalg.vector_norm(each, dim=0)
        factors = (clip / norms).clamp(max=1.0)
        for row, total in zip(rows, sums, strict=True):
            total += (factors @ row).view_as(total)
        return norms * factors

    def _rows(self, name: str, num_examples: int) -> torch.Tensor:
        """The gradients per example, flat, of one tensor: [b, m]."""
        found: Any = getattr(self._parameters[name], "grad_sample", None)
        if not isinstance(found, torch.Tensor):
            raise PrivacyError(
                f"{name} must get one gradient per example; Opacus gave none: its layer did not "
                "run, or ran for another batch too"
            )
        guards.check_batch(name, found.shape, num_examples)
        flat = found.detach().flatten(1)
        return flat if flat.dtype == torch.float64 else flat.float()

    def forget(self) -> None:
        """Drop all gradients."""
        for tensor in self._parameters.values():
            tensor.grad = None
            tensor.grad_sample = None  # type: ignore[attr-defined]


@contextmanager
def opened(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Iterator[OpacusHooks]:
    """The route while the context is open; the module is then as it was.

    Args:
        module: in train mode; Opacus records nothing in eval mode.
        parameters: name -> tensor that trains.

    Raises:
        PrivacyError: Opacus cannot tell the gradients of this module apart.
    """
    from opacus.grad_sample import GradSampleHooks

    if not module.training:
        raise PrivacyError("Opacus needs a module in train mode; set dropout to 0 instead of eval")
    marks = {layer: layer._is_full_backward_hook for layer in module.modules()}
    try:
        hooks = GradSampleHooks(module, loss_reduction="sum", strict=True)
    except (NotImplementedError, ValueError) as error:
        raise PrivacyError(f"Opacus cannot train this module privately: {error}") from error
    route = OpacusHooks(parameters)
    try:
        yield route
    finally:
        hooks.remove_hooks()
        _clean(module)
        for layer, mark in marks.items():
            layer._is_full_backward_hook = mark


def _clean(module: nn.Module) -> None:
    """Take away what Opacus leaves on modules and tensors."""
    for layer in module.modules():
        for name in ("activations", "max_batch_len"):
            if name in vars(layer):
                delattr(layer, name)
    for tensor in module.parameters():
        for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
            if hasattr(tensor, name):
                delattr(tensor, name)
