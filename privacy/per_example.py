"""Clipped sums of per-example gradients from activations and output gradients of linear layers.

For y = W x + b the gradient of one example is the sum over its tokens of g x^T, where g is the
gradient at y (Goodfellow 2015, arXiv:1510.01799). Hooks keep what each layer sees and meet the
gradients at its output during one backward pass, in which the weights themselves are frozen; the
clipped sum is formed from these, never by a second pass (book-keeping: Bu et al. 2023,
arXiv:2210.00038). What one layer does with them is in `linears`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.errors import PrivacyError
from . import guards, linears

# Modules whose examples were seen to be apart.
_APART: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(slots=True)
class _Layer:
    """One hooked linear, and what one part of a step left there.

    Attributes:
        name: in the module.
        weight: index of its weight among the parameters; None when it is frozen.
        bias: likewise.
        inputs: of each call since the last backward pass, with its version.
        gradients: at the output of each call; None until it came.
        signed: likewise projected, under random signs of the losses; empty where none is taken.
        term: the layer's share of the part; None until the last gradient came.
    """

    name: str
    weight: int | None = None
    bias: int | None = None
    inputs: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    gradients: list[torch.Tensor | None] = field(default_factory=list)
    signed: list[torch.Tensor | None] = field(default_factory=list)
    term: linears.Term | None = None

    def forget(self) -> None:
        """Drop what a part left."""
        self.inputs, self.gradients, self.signed, self.term = [], [], [], None


class Activations:
    """The route over activations; made by `opened`."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
        self._module = module
        self._parameters = tuple(parameters.values())
        self._by_module = _find_layers(module, parameters)
        self._layers = tuple(self._by_module.values())
        self._in_backward = False
        self._signs: torch.Tensor | None = None
        self._trying = False

    def ruled(self) -> list[torch.Tensor]:
        """The tensors that have a rule."""
        places = [place for layer in self._layers for place in (layer.weight, layer.bias)]
        return [self._parameters[place] for place in places if place is not None]

    def add(self, losses: torch.Tensor, clip: float, sums: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add the clipped gradients of `losses` [b] to `sums`; the clipped norms [b].

        Args:
            losses: per example, with the graph.
            clip: largest norm over all tensors together.
            sums: per parameter, of its shape; changed in place.

        Raises:
            PrivacyError: a layer did not run, or what it saw has no rule.
        """
        try:
            terms = self._terms(losses)
        finally:
            self.forget()
        norms = torch.stack([square for _, term in terms for square in term.squares])
        norms = norms.sum(0).sqrt()
        factors = (clip / norms).clamp(max=1.0)
        for layer, term in terms:
            if layer.weight is not None:
                term.add_weight(factors, sums[layer.weight])
            if layer.bias is not None:
                term.add_bias(factors, sums[layer.bias])
        return norms * factors

    def _terms(self, losses: torch.Tensor) -> list[tuple[_Layer, linears.Term]]:
        """The share of every layer, by one backward pass."""
        for layer in self._layers:
            _check_calls(layer, len(losses))
        self._in_backward = True
        try:
            if self._module not in _APART and len(losses) > 1:
                self._try_signs(losses)
            torch.autograd.backward(losses.sum())
        finally:
            self._in_backward = False
        terms = [(layer, layer.term) for layer in self._layers if layer.term is not None]
        if len(terms) < len(self._layers):
            lost = next(layer.name for layer in self._layers if layer.term is None)
            raise PrivacyError(
                f"{lost} ran without a share in the losses: run nothing but the step's own forward "
                "pass, or score without gradients"
            )
        if self._signs is not None:
            _APART.add(self._module)
        return terms

    def _try_signs(self, losses: torch.Tensor) -> None:
        """Once a module: a pass under random signs, to see whether examples mix."""
        self._signs, self._trying = _random_signs(losses.detach()), True
        for layer in self._layers:
            layer.signed = [None] * len(layer.inputs)
        try:
            torch.autograd.backward((losses * self._signs).sum(), retain_graph=True)
        finally:
            self._trying = False

    def forward_hook(
        self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor
    ) -> None:
        """Keep what a layer saw, make its output part of the graph, wait for its gradient."""
        if not torch.is_grad_enabled():
            return
        if not inputs:
            name = self._by_module[module].name
            raise PrivacyError(f"{name} must get its input by position; it got it by name")
        if not output.requires_grad:
            output.requires_grad_()
        # While gradients are computed, a checkpoint may run the layer again.
        if not self._in_backward:
            layer = self._by_module[module]
            output.register_hook(  # type: ignore[no-untyped-call]
                partial(self._arrived, layer, len(layer.inputs))
            )
            layer.inputs.append((inputs[0], inputs[0]._version))
            layer.gradients.append(None)

    def _arrived(self, layer: _Layer, call: int, gradient: torch.Tensor) -> None:
        """The gradient at the output of one call of a layer came."""
        if not self._in_backward or call >= len(layer.gradients):
            raise PrivacyError(
                "gradients of a private step must come from the session's own backward pass; do "
                "not call backward() on its losses"
            )
        guards.check_batch(layer.name, gradient.shape, len(layer.inputs[call][0]))
        if self._trying:
            layer.signed[call] = guards.projected(gradient)
            return
        if self._signs is not None:
            plain = guards.projected(gradient)
            guards.check_apart(layer.name, self._signs, plain, layer.signed[call])
        layer.gradients[call] = gradient
        came = [found for found in layer.gradients if found is not None]
        if len(came) < len(layer.gradients):
            return
        # A layer that ran more than once saw so many more tokens.
        a = linears.joined([tensor for tensor, _ in layer.inputs])
        layer.term = linears.Term(
            a, linears.joined(came), layer.weight is not None, layer.bias is not None
        )
        layer.inputs, layer.gradients = [], []

    def modules(self) -> Sequence[nn.Module]:
        """The layers that must call `forward_hook`."""
        return tuple(self._by_module)

    def forget(self) -> None:
        """Drop what was recorded."""
        self._signs = None
        for layer in self._layers:
            layer.forget()


@contextmanager
def opened(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Iterator[Activations]:
    """The route while the context is open; the module is then as it was.

    Args:
        module: whose linears own the parameters.
        parameters: name -> tensor that trains; frozen while this is open.

    Raises:
        PrivacyError: a parameter has no rule.
    """
    route = Activations(module, parameters)
    handles = []
    try:
        for layer in route.modules():
            handles.append(layer.register_forward_hook(route.forward_hook))
        for tensor in parameters.values():
            tensor.requires_grad_(False)
        yield route
    finally:
        for handle in handles:
            handle.remove()
        for tensor in parameters.values():
            tensor.requires_grad_(True)
        route.forget()


def _check_calls(layer: _Layer, num_examples: int) -> None:
    if not layer.inputs:
        raise PrivacyError(
            f"{layer.name} trains but did not run in this step: its gradient is unknown"
        )
    for tensor, version in layer.inputs:
        guards.check_batch(layer.name, tensor.shape, num_examples)
        if tensor._version != version:
            raise PrivacyError(
                f"what {layer.name} saw must stay as it is until the backward pass; an operation "
                "changed it in place"
            )


def _random_signs(losses: torch.Tensor) -> torch.Tensor:
    """Half of them -1; which half is chance."""
    signs = torch.ones(len(losses), dtype=losses.dtype)
    signs[torch.randperm(len(losses), generator=torch.Generator())[::2]] = -1.0
    return signs.to(losses.device)


def _find_layers(
    module: nn.Module, parameters: Mapping[str, torch.Tensor]
) -> dict[nn.Module, _Layer]:
    places = {id(tensor): place for place, tensor in enumerate(parameters.values())}
    names = list(parameters)
    found: dict[nn.Module, _Layer] = {}
    for name, layer in module.named_modules():
        for key, tensor in layer.named_parameters(recurse=False):
            place = places.get(id(tensor))
            if place is not None:
                _check_rule(names[place], layer)
                setattr(found.setdefault(layer, _Layer(name)), key, place)
    return found


def _check_rule(name: str, layer: nn.Module) -> None:
    if type(layer) is not nn.Linear:
        raise PrivacyError(
            f"{name} is of a {type(layer).__name__}, and only nn.Linear has a rule here; write "
            'route = "opacus"'
        )
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, kind) for kind in hooks) or "forward" in vars(layer):
        raise PrivacyError(f"the layer of {name} must have no hooks of others; take them off")
