"""Weights of 8 bits in blocks, by ONNX Runtime's MatMulNBits; activations rounded as they come.

Each block of a column has a scale of its own. Fast for single texts; in batches no faster than
float32 (docs/benchmarks.md), which is why it is not the default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx

from ..core.parts import Bars, Batches, Export
from .rounding import embeddings_in_int8, need_products
from .smoothing import smooth

BARS = Bars(
    size=0.27, loss=0.5, domain_loss=3.0, agreement=0.99, changed=0.005, cpu_1=0.80, cpu_32=1.10
)


def build(*, block: Literal[32, 64, 128] = 128) -> Export:
    """8-bit weights in blocks.

    Args:
        block: values of a column that share a scale.
    """

    def write(source: Path, batches: Batches, target: Path) -> None:
        in_blocks(source, target, bits=8, block=block)

    return Export(write=write, bars=BARS)


def in_blocks(source: Path, target: Path, *, bits: int, block: int, level: int = 4) -> None:
    """Write `source` to `target` with products in blocks and embeddings in int8.

    Args:
        source: a graph in float32.
        target: the file to write.
        bits: of a weight in a product, 4 or 8.
        block: values of a column that share a scale.
        level: how activations are computed with, as MatMulNBits' `accuracy_level`; 4 is int8.

    Raises:
        ModelError: nothing in the graph can be rounded.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    model = onnx.load(source)
    need_products(model)
    smooth(model)
    embeddings_in_int8(model)
    config = DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=True, accuracy_level=level, bits=bits
    )
    with quiet():
        quantiser: Any = MatMulNBitsQuantizer(model, algo_config=config)
        quantiser.process()
    onnx.save(quantiser.model.model, target)


@contextmanager
def quiet() -> Iterator[None]:
    """The runtime's quantisers log each operator; not while this is open."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
