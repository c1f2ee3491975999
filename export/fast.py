"""The speed profile: dynamic INT8 with a scale a column, one scale for all activations of a batch.

A text's scores depend a little on its neighbours: the batch shares one activation scale, padding
included. Where that must not be, `balanced` is the profile to take.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from ..core.parts import Bars, Batches, Export
from .blocks import quiet
from .rounding import embeddings_in_int8, need_products

BARS = Bars(
    size=0.27, loss=0.5, domain_loss=3.0, agreement=0.97, changed=0.02, cpu_1=0.55, cpu_32=0.45
)


def build() -> Export:
    """Dynamic INT8 per channel; nothing to choose."""
    return Export(write=write, bars=BARS)


def write(source: Path, batches: Batches, target: Path) -> None:
    """Write `source` to `target` with dynamic INT8 products and int8 embeddings.

    Raises:
        ModelError: nothing in the graph can be rounded.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    need_products(model)
    embeddings_in_int8(model)
    with quiet():
        quantize_dynamic(
            model,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
        )
