"""What is looked at on every private step, so that no step is private by its name alone.

Each check answers to a failure that is silent otherwise: a stale or foreign optimizer, an adapter
that was copied or replaced, a tensor without a per-example rule, noise that is missing, too small
or used twice, examples that are mixed with each other. All of them raise PrivacyError.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..core.errors import PrivacyError

CLIP_SLACK = 1e-4
"""By which share of the clip rounding may lift an example's clipped norm."""

# Standard errors by which chance never misses: 2.6e-12 on both sides of a normal.
_FAR = 7.0
_ENOUGH = 1000
_REMEMBERED = 1 << 16
_MARK = 8


class Freshness:
    """Remembers noise that was used: the same may not come again."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def check(self, normals: npt.NDArray[np.float64]) -> None:
        """Refuse `normals` [n] that were given before.

        Raises:
            PrivacyError: they were.
        """
        mark = normals[:_MARK].tobytes()
        if mark in self._seen:
            raise PrivacyError(
                "noise must be drawn anew for every step; the same came twice. Let no generator "
                "be restored, seeded or shared."
            )
        self._seen[mark] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)


SEEN = Freshness()
"""All noise of this process."""


class Guards:
    """The checks of one session; it holds no gradient and no noise.

    Args:
        module: that trains.
        parameters: name -> tensor that trains; all that train in `module`.
        clip: largest L2 norm of one example's gradient.
        noise_multiplier: standard deviation of the noise in the sum of a step over the clip.
        seen: noise that was used before.

    Raises:
        PrivacyError: module and parameters do not fit each other or the promise.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, torch.Tensor],
        clip: float,
        noise_multiplier: float,
        seen: Freshness,
    ) -> None:
        self.fresh = seen.check
        self._names = tuple(parameters)
        self._tensors = tuple(parameters.values())
        self._clip, self._std = clip, noise_multiplier * clip
        _check_trainable(module, parameters)
        _check_mixing(module)
        self._edges = _edges(module, set(map(id, self._tensors)))
        self._frozen = tuple(p for p in module.parameters() if not p.requires_grad)
        self._before: list[torch.Tensor] | None = None
        self._noisy_steps = self._noise_count = 0
        self._noise_sum = self._noise_squares = 0.0
        self.device()

    def device(self) -> torch.device:
        """The one device that all parameters are on."""
        devices = {tensor.device for tensor in self._tensors}
        if len(devices) != 1:
            raise PrivacyError(
                "all tensors that train must be on one device; they are on "
                f"{sorted(map(str, devices))}"
            )
        return devices.pop()

    def ruled(self, tensors: Iterable[torch.Tensor]) -> None:
        """The tensors with a per-example rule must be those that train."""
        found = set(map(id, tensors))
        missing = [n for n, t in zip(self._names, self._tensors, strict=True) if id(t) not in found]
        if missing or len(found) != len(self._tensors):
            raise PrivacyError(
                f"every trainable tensor must have a per-example gradient; {missing[:3]} have none"
            )

    def before_release(self, optimizer: Any) -> None:
        """The optimizer steps these tensors, which are still those of the module."""
        held = [id(tensor) for group in optimizer.param_groups for tensor in group["params"]]
        own, known = set(map(id, self._tensors)), set(held)
        missing = [n for n, t in zip(self._names, self._tensors, strict=True) if id(t) not in known]
        if missing:
            raise PrivacyError(
                f"the optimizer must hold every tensor that trains; {missing[:3]} are not in it. "
                "Build it after the adapter is loaded and placed, from the model's own tensors."
            )
        if len(held) != len(own) or known != own:
            raise PrivacyError(
                f"the optimizer must hold nothing but the {len(own)} tensors that train privately; "
                f"it holds {len(held)}: the others would move without noise"
            )
        for parent, key, child in self._edges:
            kept = parent._modules if isinstance(child, nn.Module) else parent._parameters
            if kept.get(key) is not child:
                raise PrivacyError(
                    f"the module must keep its tensors while it trains; {key!r} of a "
                    f"{type(parent).__name__} was replaced. Load adapters in place, beforehand."
                )
        if any(tensor.requires_grad for tensor in self._frozen):
            raise PrivacyError("a tensor that was frozen began to train; freeze it before training")
        self.device()

    def clipped(self, largest: float, total: torch.Tensor, count: int) -> None:
        """No example gave more than the clip.

        Args:
            largest: the largest clipped norm of one example; nan where a gradient is not finite.
            total: the sum of all clipped gradients, float64 [n] on the CPU.
            count: number of examples in the sum.
        """
        norm = float(torch.linalg.vector_norm(total))
        if not math.isfinite(largest) or not math.isfinite(norm):
            raise _not_finite()
        most = self._clip * (1.0 + CLIP_SLACK)
        if largest > most or norm > count * most:
            raise PrivacyError(
                f"clipped gradients must have a norm of at most {self._clip:g}; the largest has "
                f"{largest:.6g}, and the sum of {count} has {norm:.6g}"
            )

    def released(self, total: torch.Tensor, batch_size: int) -> None:
        """What the gradients hold beside the clipped sum is noise as promised, over all steps.

        Args:
            total: the sum of all clipped gradients, float64 [n] on the CPU.
            batch_size: divisor of the sum.
        """
        grads = [tensor.grad.flatten() for tensor in self._tensors if tensor.grad is not None]
        noise = torch.cat(grads).to("cpu", torch.float64, copy=True).mul_(batch_size).sub_(total)
        if not self._noisy_steps:
            self._before = [tensor.detach().clone() for tensor in self._tensors]
        self._noisy_steps += 1
        self._noise_count += len(noise)
        self._noise_sum += float(noise.sum()) / self._std
        self._noise_squares += float(noise.dot(noise)) / self._std**2
        mean = self._noise_sum / self._noise_count
        spread = self._noise_squares / self._noise_count
        if self._noise_count < _ENOUGH and 0.0 < spread < math.inf:
            return
        far = max(abs(mean) * math.sqrt(2.0), abs(spread - 1.0)) * math.sqrt(self._noise_count / 2)
        if not far <= _FAR:
            raise PrivacyError(
                f"the noise must have mean 0 and standard deviation {self._std:.6g}; it has "
                f"{mean * self._std:.3g} and {math.sqrt(spread) * self._std:.6g}"
            )

    def stepped(self) -> None:
        """On the first noisy step every tensor moved, but those whose gradient was put to zero."""
        if self._before is None:
            return
        moved = 0
        for name, tensor, before in zip(self._names, self._tensors, self._before, strict=True):
            if tensor.grad is None:
                raise PrivacyError(f"{name} lost its noisy gradient before the optimizer's step")
            if not torch.equal(tensor, before):
                moved += 1
            elif torch.any(tensor.grad):
                raise PrivacyError(
                    f"{name} must change with its noisy gradient; it did not: the optimizer steps "
                    "something else, or its rate is 0"
                )
        if not moved:
            raise PrivacyError("a noisy step must change the adapter; it changed nothing")
        self._before = None


def check_batch(name: str, shape: Sequence[int], num_examples: int) -> None:
    """The leading dimension of a layer's tensor must be the examples."""
    if len(shape) < 2 or shape[0] != num_examples:
        raise PrivacyError(
            f"{name} must see [batch, ..., features] with a batch of {num_examples}; it saw "
            f"{list(shape)}: no gradient per example can be told"
        )


def check_apart(
    name: str, signs: torch.Tensor, plain: torch.Tensor, signed: torch.Tensor | None
) -> None:
    """No example's loss may depend on another example.

    Args:
        name: of the layer.
        signs: [b], by which each loss was multiplied in `signed`.
        plain: `projected` gradient of the sum of the losses at an output, [b, t].
        signed: likewise of the sum of signs * losses.
    """
    if not torch.isfinite(plain).all():
        raise _not_finite()
    wanted = plain * signs.to(plain.dtype)[:, None]
    if signed is None or not (wanted - signed).abs().max() <= 1e-3 * plain.abs().max():
        raise PrivacyError(
            f"each example's loss must depend on that example alone; at {name} they are mixed "
            "(batch statistics, or a batch that is not the first dimension)"
        )


def projected(gradient: torch.Tensor) -> torch.Tensor:
    """[b, ..., o] on one fixed random direction, [b, t]: enough to tell gradients apart."""
    width = gradient.shape[-1]
    direction = torch.randn(width, generator=torch.Generator(), dtype=torch.float64)
    flat = gradient.detach().reshape(len(gradient), -1, width)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return flat @ direction.to(flat)


def _not_finite() -> PrivacyError:
    return PrivacyError(
        "every example's loss and gradient must be finite; one is not. Lower the learning rate, or "
        "take the record out."
    )


def _check_trainable(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
    if not parameters:
        raise PrivacyError("private training needs at least one tensor that trains; there is none")
    given = {id(tensor): name for name, tensor in parameters.items()}
    found: dict[int, str] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if id(tensor) in found and (id(tensor) in given or tensor.requires_grad):
            raise PrivacyError(f"{name} and {found[id(tensor)]} must not share one trained tensor")
        found[id(tensor)] = name
        if tensor.requires_grad and id(tensor) not in given:
            raise PrivacyError(
                f"{name} requires a gradient but is not among the tensors that train privately; "
                "freeze it"
            )
    for name, own in parameters.items():
        if id(own) not in found:
            raise PrivacyError(
                f"{name} must be a tensor of the module that trains; it is of a copy or was "
                "replaced. Load adapters in place, before training."
            )
        if not own.requires_grad:
            raise PrivacyError(f"{name} must require a gradient to be trained; it is frozen")


def _check_mixing(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (
            layer.training or layer.running_mean is None
        ):
            raise PrivacyError(
                f"{name or 'the module'} is a {type(layer).__name__} in train mode, which mixes "
                "examples; put it in eval mode, or use a GroupNorm or LayerNorm"
            )


def _edges(module: nn.Module, wanted: set[int]) -> tuple[tuple[nn.Module, str, Any], ...]:
    """(owner, key, child) on the way from `module` to every wanted tensor."""
    found: list[tuple[nn.Module, str, Any]] = []

    def walk(parent: nn.Module) -> bool:
        here: list[tuple[nn.Module, str, Any]] = [
            (parent, key, tensor)
            for key, tensor in parent._parameters.items()
            if id(tensor) in wanted
        ]
        for key, child in parent._modules.items():
            if child is not None and walk(child):
                here.append((parent, key, child))
        found.extend(here)
        return bool(here)

    walk(module)
    return tuple(found)
