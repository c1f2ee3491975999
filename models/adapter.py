"""LoRA factors on a frozen base, seen as named tensors and one flat vector.

Hu et al. 2021 (arXiv:2106.09685). The one place of this folder that speaks to PEFT.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from ..core.errors import ModelError
from ..core.values import Manifest, Vector

_ALL = "all"

# GPT-2 keeps its linears as Conv1D, the weight transposed.
_LINEAR = (torch.nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class Lora:
    """What to adapt: the rank r, alpha (the scale is alpha / r) and the linears.

    Attributes:
        rank: r, >= 1.
        alpha: > 0.
        targets: last parts of the names of the linears, or `("all",)`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


def attach(model: Any, lora: Lora, within: Iterable[str], task: str | None) -> Any:
    """The PEFT model of `model` with fresh factors: A random (from torch's seed), B zero.

    Args:
        model: the frozen base.
        lora: rank, alpha and targets.
        within: prefixes of module names that may be adapted, such as `encoder.layer.5.`.
        task: PEFT's task type, such as `CAUSAL_LM`.

    Raises:
        ModelError: no linear matches; the names that there are stand in the message.
    """
    prefixes = tuple(within)
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _LINEAR) and name.startswith(prefixes)
    ]
    kinds = sorted({name.rpartition(".")[2] for name in linears})
    chosen = [n for n in linears if lora.targets == (_ALL,) or _last(n) in lora.targets]
    unknown = [target for target in lora.targets if target != _ALL and target not in kinds]
    if unknown or not chosen:
        raise ModelError(
            f"[model] targets must be 'all' or names of linears of the base; got "
            f"{list(lora.targets)}. This base has: {', '.join(kinds) or 'none'}"
        )
    import peft  # takes seconds to load: reading a config must not

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=chosen,
        lora_dropout=0.0,
        task_type=task,
        fan_in_fan_out=isinstance(model.get_submodule(chosen[0]), Conv1D),
    )
    with warnings.catch_warnings():
        # PEFT asks for a property by its old name; nobody who reads the warning can help it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapted = peft.get_peft_model(model, config)
    # PEFT shortens a long list to endings that fit this model, and so a pooler in another's copy.
    adapted.peft_config["default"].target_modules = set(chosen)
    return adapted


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def factors(module: Any) -> dict[str, torch.nn.Parameter]:
    """The LoRA parameters of a PEFT model by short names such as `layer.5.query.lora_A`."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    return {_short(name): parameter for name, parameter in named}


def _short(name: str) -> str:
    name = re.sub(r"^(base_model\.model\.)+", "", name)
    return re.sub(r"\.(lora_[AB])\.\w+\.weight$", r".\1", name)


def manifest(parameters: Mapping[str, torch.Tensor]) -> Manifest:
    """The manifest of `parameters`, in their order."""
    shapes = tuple(tuple(parameter.shape) for parameter in parameters.values())
    return Manifest(tuple(parameters), shapes)


def flatten(parameters: Mapping[str, torch.Tensor]) -> Vector:
    """One float32 vector [n] on the CPU, in the order of `parameters` (a copy)."""
    if not parameters:
        return np.zeros(0, np.float32)
    flat = torch.cat([p.detach().reshape(-1).float() for p in parameters.values()])
    return np.array(flat.cpu().numpy())


def fill(parameters: Mapping[str, torch.Tensor], vector: Vector) -> None:
    """Write `vector` [n] into `parameters` in place.

    Raises:
        ValueError: the vector has another length.
    """
    views = manifest(parameters).unpack(np.array(vector, np.float32))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(views[name]))


@contextmanager
def frozen_base(module: Any) -> Iterator[None]:
    """The PEFT model `module` computes without its factors inside; it is then as it was."""
    # PEFT makes factors train again that were frozen before.
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        with module.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def save(module: Any, folder: Path, base_name: str) -> None:
    """Write the factors to `folder` in PEFT's own format.

    Args:
        module: the PEFT model.
        folder: made if missing.
        base_name: what the adapter's config calls its base; a name, not a path of one machine.
    """
    config = module.peft_config["default"]
    config.base_model_name_or_path = base_name
    # With "auto", PEFT would ask the hub about the base: a run opens no connection of its own.
    module.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    # PEFT's empty model card names the base by its path on this machine.
    (folder / "README.md").unlink(missing_ok=True)
