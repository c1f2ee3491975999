"""The default profile: int8 weights with a scale a column, activations rounded token by token.

Each row of activations (a token) has a scale of its own, taken as it comes, so that no text's
scores depend on its neighbours in a batch or on padding, and nothing is calibrated. Rounding by
rows and columns is that of Dettmers et al. 2022 (arXiv:2208.07339), section 2.1, without its
outlier part: large channels are made like the others instead (smoothing.py). What has a known
least value (behind a GELU or a ReLU) is counted from there and not from the middle, which is one
bit more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ..core.parts import Bars, Batches, Export
from .rounding import (
    embeddings_in_int8,
    initializers,
    is_product,
    need_products,
    replace_nodes,
    rows_in_int8,
)
from .smoothing import smooth

BARS = Bars(
    size=0.27, loss=0.5, domain_loss=3.0, agreement=0.99, changed=0.001, cpu_1=0.70, cpu_32=0.70
)
_LEAST = {"Gelu": -0.17, "Relu": 0.0, "Sigmoid": 0.0, "Softmax": 0.0}
"""Operator -> a value that its output never goes below."""

_HALF, _FULL, _MIDDLE, _ZERO, _ONE, _TINY, _LAST = (
    f"rounding.{name}" for name in ("half", "full", "middle", "zero", "one", "tiny", "last")
)
_CONSTANTS = {
    _HALF: np.array(127, np.float32),
    _FULL: np.array(255, np.float32),
    _MIDDLE: np.array(128, np.uint8),
    _ZERO: np.array(0, np.uint8),
    _ONE: np.array(1, np.float32),
    _TINY: np.array(1e-12, np.float32),
    _LAST: np.array([-1], np.int64),
}


def build() -> Export:
    """int8 token by token; nothing to choose."""
    return Export(write=write, bars=BARS)


def write(source: Path, batches: Batches, target: Path) -> None:
    """Write `source` to `target` with int8 products and embeddings.

    Args:
        source: a graph in float32.
        batches: not looked at.
        target: the file to write.

    Raises:
        ModelError: nothing in the graph can be rounded.
    """
    model = onnx.load(source)
    need_products(model)
    smooth(model)
    embeddings_in_int8(model)
    products_in_int8(model)
    onnx.save(model, target)


def products_in_int8(model: onnx.ModelProto) -> None:
    """Replace each product with a constant matrix by one of int8, token by token."""
    held = initializers(model)
    makers = {out: node.op_type for node in model.graph.node for out in node.output}
    for name, value in _CONSTANTS.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    nodes, seen, sums = list[onnx.NodeProto](), set[str](), dict[str, npt.NDArray[np.float32]]()
    for node in model.graph.node:
        if not is_product(node, held):
            nodes.append(node)
            continue
        rows, weight = node.input
        least = _LEAST.get(makers.get(rows, ""))
        if rows not in seen:
            nodes += _rounded_rows(model.graph, rows, least)
            seen.add(rows)
        if weight not in sums:
            sums[weight] = _round_columns(model.graph, held[weight])
        nodes += _product(model.graph, rows, weight, node.output[0], least, sums[weight])
    replace_nodes(model, nodes)
    if not any(known.domain == _DOMAIN for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


_DOMAIN = "com.microsoft"


def _rounded_rows(
    graph: onnx.GraphProto, rows: str, least: float | None
) -> Iterator[onnx.NodeProto]:
    """`rows` in uint8: from `least` up, or, where it is not known, around 128."""
    yield helper.make_node("ReduceMax", [rows, _LAST], [f"{rows}.top"], keepdims=1)
    if least is None:
        yield helper.make_node("ReduceMin", [rows, _LAST], [f"{rows}.bottom"], keepdims=1)
        yield helper.make_node("Neg", [f"{rows}.bottom"], [f"{rows}.depth"])
        yield helper.make_node("Max", [f"{rows}.top", f"{rows}.depth", _TINY], [f"{rows}.spread"])
    else:
        graph.initializer.append(numpy_helper.from_array(np.array(least, np.float32), f"{rows}.0"))
        yield helper.make_node("Sub", [f"{rows}.top", f"{rows}.0"], [f"{rows}.range"])
        yield helper.make_node("Max", [f"{rows}.range", _TINY], [f"{rows}.spread"])
        yield helper.make_node("Sub", [rows, f"{rows}.0"], [f"{rows}.above"])
    steps, zero = (_HALF, _MIDDLE) if least is None else (_FULL, _ZERO)
    yield helper.make_node("Div", [steps, f"{rows}.spread"], [f"{rows}.inverse"])
    yield helper.make_node("Div", [f"{rows}.spread", steps], [f"{rows}.scale"])
    shifted = rows if least is None else f"{rows}.above"
    yield helper.make_node("Mul", [shifted, f"{rows}.inverse"], [f"{rows}.steps"])
    yield helper.make_node("QuantizeLinear", [f"{rows}.steps", _ONE, zero], [f"{rows}.uint8"])


def _round_columns(graph: onnx.GraphProto, weight: onnx.TensorProto) -> npt.NDArray[np.float32]:
    """Put `weight` in int8 with a scale a column into the graph; the sum of each column."""
    values, scale = rows_in_int8(np.ascontiguousarray(numpy_helper.to_array(weight).T))
    name, scales = weight.name, scale.reshape(-1)
    columns = np.ascontiguousarray(values.T)
    graph.initializer.append(numpy_helper.from_array(columns, f"{name}.int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scale"))
    sums: npt.NDArray[np.float32] = (values.astype(np.float64).sum(1) * scales).astype(np.float32)
    return sums


def _product(
    graph: onnx.GraphProto,
    rows: str,
    weight: str,
    out: str,
    least: float | None,
    sums: npt.NDArray[np.float32],
) -> Iterator[onnx.NodeProto]:
    """(scale * steps + least) W = scale * (steps W) + least * (sum of each column)."""
    zero = _MIDDLE if least is None else _ZERO
    # Of one scale for all rows, and then each row's own: ONNX Runtime would fuse the plain
    # operators into this one with the rows' scales in that place, of which it reads the first and
    # gives wrong sums (1.31 and 1.32 do).
    inputs = [f"{rows}.uint8", f"{weight}.int8", _ONE, f"{weight}.scale", zero]
    yield helper.make_node("MatMulIntegerToFloat", inputs, [f"{out}.sum"], domain=_DOMAIN)
    if not least:
        yield helper.make_node("Mul", [f"{out}.sum", f"{rows}.scale"], [out])
        return
    graph.initializer.append(
        numpy_helper.from_array((least * sums).astype(np.float32), f"{out}.floor")
    )
    yield helper.make_node("Mul", [f"{out}.sum", f"{rows}.scale"], [f"{out}.rows"])
    yield helper.make_node("Add", [f"{out}.rows", f"{out}.floor"], [out])
