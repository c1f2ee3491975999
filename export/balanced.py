"""The default profile: int8 weights with a scale a column, activations rounded token by token.

Each row of activations (a token) has a scale of its own, taken as it comes, so that no text's
scores depend on its neighbours in a batch or on padding, and nothing is calibrated. Products of
int8 and their exact sums in int32 are plain ONNX operators (MatMulInteger), which runtimes fuse.
Rounding by rows and columns as in Dettmers et al. 2022 (arXiv:2208.07339), section 2.1, without
its outlier part: sentence encoders of this size do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
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

BARS = Bars(
    size=0.27, loss=0.5, domain_loss=3.0, agreement=0.99, changed=0.001, cpu_1=0.70, cpu_32=0.70
)
_STEPS, _TINY, _LAST, _ZERO = "steps", "tiny", "last", "zero"


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
    embeddings_in_int8(model)
    products_in_int8(model)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def products_in_int8(model: onnx.ModelProto) -> None:
    """Replace each product with a constant matrix by one of int8, token by token."""
    held = initializers(model)
    for name, value in {_STEPS: np.float32(255), _TINY: np.float32(1e-12)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), _LAST))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint8), _ZERO))
    nodes, seen, rounded = list[onnx.NodeProto](), set[str](), set[str]()
    for node in model.graph.node:
        if not is_product(node, held):
            nodes.append(node)
            continue
        rows, weight = node.input
        if rows not in seen:
            nodes += _rounded_rows(rows)
            seen.add(rows)
        if weight not in rounded:
            _round_columns(model.graph, held[weight])
            rounded.add(weight)
        nodes += _product(rows, weight, node.output[0])
    replace_nodes(model, nodes)


def _rounded_rows(rows: str) -> Iterator[onnx.NodeProto]:
    """`rows` in uint8 from 0, each between its own least and largest value."""
    yield helper.make_node("ReduceMax", [rows, _LAST], [f"{rows}.top"], keepdims=1)
    yield helper.make_node("ReduceMin", [rows, _LAST], [f"{rows}.least"], keepdims=1)
    yield helper.make_node("Sub", [f"{rows}.top", f"{rows}.least"], [f"{rows}.range"])
    yield helper.make_node("Max", [f"{rows}.range", _TINY], [f"{rows}.spread"])
    yield helper.make_node("Div", [_STEPS, f"{rows}.spread"], [f"{rows}.inverse"])
    yield helper.make_node("Div", [f"{rows}.spread", _STEPS], [f"{rows}.scale"])
    yield helper.make_node("Sub", [rows, f"{rows}.least"], [f"{rows}.above"])
    yield helper.make_node("Mul", [f"{rows}.above", f"{rows}.inverse"], [f"{rows}.steps"])
    yield helper.make_node("Round", [f"{rows}.steps"], [f"{rows}.whole"])
    yield helper.make_node("Cast", [f"{rows}.whole"], [f"{rows}.uint8"], to=onnx.TensorProto.UINT8)


def _round_columns(graph: onnx.GraphProto, weight: onnx.TensorProto) -> None:
    """`weight` in int8, a scale a column, and the sum of each column."""
    values, scale = rows_in_int8(np.ascontiguousarray(numpy_helper.to_array(weight).T))
    name, scales = weight.name, scale.reshape(-1)
    sums = (values.astype(np.float64).sum(1) * scales).astype(np.float32)
    columns = np.ascontiguousarray(values.T)
    graph.initializer.append(numpy_helper.from_array(columns, f"{name}.int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scale"))
    graph.initializer.append(numpy_helper.from_array(sums, f"{name}.total"))


def _product(rows: str, weight: str, out: str) -> Iterator[onnx.NodeProto]:
    """(scale * steps + least) W = scale * (steps W) + least * (sum of each column)."""
    # The columns' scale first, and by itself: ONNX Runtime would fuse a product of both scales into
    # an operator that knows one scale for all rows, and give wrong sums (1.31 and 1.32 do).
    inputs = [f"{rows}.uint8", f"{weight}.int8", _ZERO]
    yield helper.make_node("MatMulInteger", inputs, [f"{out}.int32"])
    yield helper.make_node("Cast", [f"{out}.int32"], [f"{out}.sum"], to=onnx.TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{out}.sum", f"{weight}.scale"], [f"{out}.columns"])
    yield helper.make_node("Mul", [f"{out}.columns", f"{rows}.scale"], [f"{out}.rows"])
    yield helper.make_node("Mul", [f"{rows}.least", f"{weight}.total"], [f"{out}.floor"])
    yield helper.make_node("Add", [f"{out}.rows", f"{out}.floor"], [out])
