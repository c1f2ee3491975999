"""Which device and precision a run computes in."""

from __future__ import annotations

import torch

from ..core.config import Train
from ..core.errors import ModelError
from ..core.parts import Model


def place(model: Model, table: Train) -> None:
    """Move `model` to the device of `[train]`: CUDA with bf16 where there is one, else the CPU.

    Raises:
        ModelError: `device = "cuda"` and this machine has none.
    """
    if table.threads:
        torch.set_num_threads(table.threads)
    there = torch.cuda.is_available()
    if table.device == "cuda" and not there:
        raise ModelError(
            '[train] device = "cuda" needs a CUDA device; this machine has none. '
            'Write device = "auto" or "cpu".'
        )
    device = "cuda" if there and table.device != "cpu" else "cpu"
    wants_bf16 = table.precision == "bf16" or (table.precision == "auto" and device == "cuda")
    model.place(device, "bf16" if wants_bf16 and device == "cuda" else "fp32")


def seed_adapter(seed: int) -> None:
    """Make the adapter that is built next start from `seed`, on every device."""
    torch.manual_seed(seed)
