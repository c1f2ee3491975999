"""A classifier as one ONNX graph in float32, which takes token ids of any batch and length.

Inputs `input_ids` and `attention_mask`, int64 [batch, tokens]; output `logits`, float32
[batch, labels].
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from ..core.errors import ModelError, RunError
from ..core.values import Vector
from .classifier import Whole
from .rounding import initializers, replace_nodes
from .session import open_session, scores

OPSET = 20
"""Of the graph; the newest whose operators all our quantisers and runtimes know."""

TOLERANCE = 1e-3
"""How far the graph's logits may be from torch's."""

_NEVER = -1e3  # below it stand labels that are never the answer: their digits say nothing

_AXES = {0: "batch", 1: "tokens"}


def write_graph(whole: Whole, path: Path) -> None:
    """Write the graph of `whole` to `path`, weights inside.

    Raises:
        ModelError: the base holds something that does not become ONNX.
    """
    onnx.save(export_module(whole.module), path)


def export_module(
    module: torch.nn.Module,
    more: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """The graph of a module that takes ids and mask [b, t] and gives `logits` [b, labels].

    Args:
        module: in eval mode.
        more: arguments after the first two, by name.
        shapes: their dynamic axes, by name.

    Raises:
        ModelError: it holds something that does not become ONNX.
    """
    ids = torch.ones((2, 8), dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **(more or {})}
    # Given no shapes, the exporter would take those of the example for all there are.
    axes = {"input_ids": _AXES, "attention_mask": _AXES, **(shapes or {})}
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated parts, and of shared names
            program: Any = torch.onnx.export(
                module,
                (),
                kwargs=inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=None if more else list(inputs),
                output_names=["logits"],
                dynamic_shapes=axes,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"this base cannot be written as ONNX: {error}. Its adapter still loads in PEFT; the "
            "embedded base and others of its kind can be written."
        ) from error
    finally:
        exporter.setLevel(level)
    model = _lean(program.model_proto)
    onnx.checker.check_model(model)
    return model


def _lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, each computation and each tensor once, without traces of this machine."""
    import onnx_ir
    from onnx_ir.passes import common

    graph = onnx_ir.from_proto(model)
    common.DeduplicateInitializersPass(size_limit=2**31)(graph)
    common.CommonSubexpressionEliminationPass()(graph)
    common.RemoveUnusedNodesPass()(graph)
    lean = onnx_ir.to_proto(graph)
    _turn_constants(lean)
    # Quantisers infer shapes again and fail on what the exporter inferred.
    del lean.graph.value_info[:]
    del lean.metadata_props[:]
    for node in lean.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return lean


def _turn_constants(model: onnx.ModelProto) -> None:
    """Replace transposed constants by constants: what two encoders share is left as a Transpose."""
    held, nodes = initializers(model), list[onnx.NodeProto]()
    for node in model.graph.node:
        tensor = held.get(node.input[0]) if node.op_type == "Transpose" else None
        if tensor is None:
            nodes.append(node)
            continue
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        turned = np.ascontiguousarray(numpy_helper.to_array(tensor).transpose(order))
        model.graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
    replace_nodes(model, nodes)


def need_equal(whole: Whole, path: Path, tokens: list[list[int]], wanted: Vector) -> float:
    """The largest difference between the graph's logits and those that the release gives.

    Args:
        whole: as it was written.
        path: of the graph.
        tokens: ids of each text.
        wanted: float32 [n, labels], of the model as the run evaluates it.

    Raises:
        RunError: it is larger than `TOLERANCE`, or the release gives no numbers.
    """
    if np.isnan(wanted).any():
        raise RunError(
            "the model's scores must be numbers; some are not, so its adapter or head is damaged "
            "or its training diverged: look at the run's losses. Nothing was exported."
        )
    found = scores(open_session(path), tokens, 32)
    seen = wanted > _NEVER
    gap = float(np.abs(found - wanted)[seen].max(initial=0.0))
    if not gap <= TOLERANCE or not (found[~seen] <= _NEVER).all():
        raise RunError(
            f"the graph's logits must be within {TOLERANCE:g} of torch's; they are {gap:.3g} apart "
            f"on {len(tokens)} texts. This base computes otherwise in ONNX Runtime; nothing was "
            "exported."
        )
    return gap
