"""The smallest profile: weights of 4 bits in blocks, activations of 8, embeddings in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..core.parts import Bars, Batches, Export
from .blocks import in_blocks

BARS = Bars(
    size=0.22, loss=1.0, domain_loss=4.0, agreement=0.97, changed=0.001, cpu_1=0.90, cpu_32=1.40
)


def build(*, block: Literal[16, 32, 64, 128] = 32) -> Export:
    """4-bit weights in blocks.

    Args:
        block: values of a column that share a scale; smaller is more exact and a little larger.
    """

    def write(source: Path, batches: Batches, target: Path) -> None:
        in_blocks(source, target, bits=4, block=block)

    return Export(write=write, bars=BARS)
