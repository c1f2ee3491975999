"""Weights of a graph in whole numbers: which can be rounded, embeddings row by row, int8 products.

Embeddings are half of a small encoder: each row of a large table becomes int8 with one scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ..core.errors import ModelError

LEAST = 2**16
"""Values of a table below which rounding it saves nothing."""

Weights = Mapping[str, onnx.TensorProto]


def need_products(model: onnx.ModelProto) -> None:
    """Raise where no product has a constant weight.

    Raises:
        ModelError: there is none; which operators hold the weights stands in the message.
    """
    held = initializers(model)
    if any(is_product(node, held) for node in model.graph.node):
        return
    kinds = sorted({n.op_type for n in model.graph.node if held.keys() & set(n.input)})
    raise ModelError(
        f"no product of this graph can be quantised: its weights stand in "
        f"{', '.join(kinds) or 'no operator'}, and only MatMul with a constant is known here. "
        "Export with --profile fp32 or fp16."
    )


def initializers(model: onnx.ModelProto) -> Weights:
    """The constant tensors of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def is_product(node: onnx.NodeProto, held: Weights) -> bool:
    """Whether `node` multiplies by a constant matrix."""
    weight = held.get(node.input[1]) if node.op_type == "MatMul" else None
    return weight is not None and len(weight.dims) == 2


def embeddings_in_int8(model: onnx.ModelProto) -> None:
    """Replace each large table that rows are gathered from by int8 rows with a scale each."""
    graph, tables = model.graph, initializers(model)
    nodes, done = list[onnx.NodeProto](), dict[str, str]()
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or not _is_table(node, table):
            nodes.append(node)
            continue
        if table.name not in done:
            done[table.name] = _rounded(graph, table)
        nodes += _gathered(node, done[table.name])
    replace_nodes(model, nodes)


def rows_in_int8(
    table: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 [n, m] and a scale [n, 1] whose product is nearest to `table` [n, m]."""
    scale = np.abs(table).max(1, keepdims=True) / 127.0
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return np.rint(table / scale).astype(np.int8), scale


def replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Give the graph these nodes, and drop tensors that none of them reads."""
    graph = model.graph
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(fresh)
    graph.initializer.extend(kept)


def _is_table(node: onnx.NodeProto, table: onnx.TensorProto) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    wide = len(table.dims) == 2 and int(np.prod(table.dims)) >= LEAST
    return wide and axis == 0 and table.data_type == onnx.TensorProto.FLOAT


def _rounded(graph: onnx.GraphProto, table: onnx.TensorProto) -> str:
    values, scale = rows_in_int8(numpy_helper.to_array(table))
    name = f"{table.name}.int8"
    graph.initializer.extend(
        [numpy_helper.from_array(values, name), numpy_helper.from_array(scale, f"{name}.scale")]
    )
    return name


def _gathered(node: onnx.NodeProto, name: str) -> Iterator[onnx.NodeProto]:
    ids, out = node.input[1], node.output[0]
    yield helper.make_node("Gather", [name, ids], [f"{out}.int8"])
    yield helper.make_node("Cast", [f"{out}.int8"], [f"{out}.cast"], to=onnx.TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{name}.scale", ids], [f"{out}.scale"])
    yield helper.make_node("Mul", [f"{out}.cast", f"{out}.scale"], [out])
