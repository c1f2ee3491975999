"""An adapter read back from its files, and the base with that adapter added into its weights.

Merging as in Hu et al. 2021 (arXiv:2106.09685), section 4.1: W + (alpha / r) B A, in float32.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..core.errors import ModelError
from ..core.parts import Model

FACTORS, HEAD, LABELS = "adapter_model.safetensors", "head.safetensors", "labels.json"


def restore(model: Model, folder: Path, identity: str | None = None) -> None:
    """Write the adapter of `folder` into `model`, whose labels become the adapter's.

    Args:
        model: as its config builds it; of any labels.
        folder: as `Model.save` wrote it.
        identity: of the base that the adapter was trained on; None where nobody says it.

    Raises:
        ModelError: a file is missing or damaged, the base is another, or the tensors do not fit.
    """
    if identity is not None and identity != model.identity():
        raise ModelError(
            f"the adapter in {folder} was trained on the base {identity}; this one is "
            f"{model.identity()}. Use the base that the release's config names, unchanged."
        )
    if model.labels_needed:
        model.fit_labels(_labels(folder / LABELS))
    held = {_short(name): value for name, value in _tensors(folder / FACTORS).items()}
    if model.labels_needed:
        held |= {f"head.{name}": value for name, value in _tensors(folder / HEAD).items()}
    _need_fit(folder, held, model)
    with torch.no_grad():
        for name, parameter in model.parameters().items():
            parameter.copy_(held[name])


def merged(adapted: Any) -> Any:
    """A copy of a PEFT model's base with the adapter in its weights, float32, in eval mode.

    Args:
        adapted: the PEFT model; left as it was.

    Raises:
        ModelError: the base is quantised: what merging adds would be rounded away with it.
    """
    _need_float(adapted)
    return copy.deepcopy(adapted).merge_and_unload(safe_merge=True).eval()


def frozen(adapted: Any) -> Any:
    """A copy of a PEFT model's base without the adapter, in eval mode.

    Args:
        adapted: the PEFT model; left as it was.
    """
    return copy.deepcopy(adapted).unload().eval()


def _need_float(adapted: Any) -> None:
    config = getattr(adapted, "config", None)
    quantised = getattr(config, "quantization_config", None)
    kinds = {str(p.dtype).removeprefix("torch.") for p in adapted.parameters()} - {"float32"}
    if quantised or kinds:
        got = ", ".join(sorted(kinds)) or "a quantised base"
        raise ModelError(
            f"an adapter must be merged into a base of float32; this one is of {got}, whose "
            "rounding would swallow part of it. Merge into the float base and quantise what "
            "comes out."
        )


def _labels(path: Path) -> Sequence[str]:
    try:
        found: list[str] = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} must hold the labels in the order of the head: {error}. Restore the release; "
            "without labels nobody knows what the model answers."
        ) from error
    sound = isinstance(found, list) and found and all(isinstance(x, str) for x in found)
    if not sound or len(set(found)) < len(found):
        raise ModelError(
            f"{path} must be a list of one label or more, each once; restore the release"
        )
    return list(found)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; restore the release") from error


def _short(name: str) -> str:
    name = re.sub(r"^(base_model\.model\.)+", "", name)
    return re.sub(r"\.(lora_[AB])\.weight$", r".\1", name)


def _need_fit(folder: Path, held: dict[str, torch.Tensor], model: Model) -> None:
    wanted = {name: tuple(p.shape) for name, p in model.parameters().items()}
    got = {name: tuple(value.shape) for name, value in held.items()}
    wrong = sorted(n for n in wanted.keys() | got.keys() if wanted.get(n) != got.get(n))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"the adapter in {folder} must fit the model of its config; {name} is "
            f"{got.get(name, 'missing')}, and must be {wanted.get(name, 'absent')}. Use the config "
            "that the adapter was trained with."
        )
