"""Make the channels of a product's inputs alike before they are rounded.

A few channels of a transformer's normalised activations are many times larger than all others, and
take the steps of the rounding for themselves. Each channel is divided by a factor and the matrix's
row multiplied by it, which changes nothing but the rounding (Xiao et al. 2022, SmoothQuant,
arXiv:2211.10438, equation 4, at alpha 0.5). The large channels are the same for all texts, so they
are looked up on drawn token ids: nobody's text is read.

Behind other operators than a layer's normalisation it is left out: there the large values move
from text to text, and factors that suit one text make the rounding of others coarser.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..core.values import Vector
from .rounding import Weights, initializers, is_product, replace_nodes
from .session import Ids, open_session, padded

_MAKER = "LayerNormalization"
_SEED, _BATCHES, _ROWS, _SHORTEST, _LONGEST = 0, 4, 32, 4, 16
_TINY = 1e-6


def smooth(model: onnx.ModelProto) -> None:
    """Put factors before and into the products whose inputs a layer's normalisation gives.

    A graph that takes no token ids, or has no such product, stays as it is.
    """
    held = initializers(model)
    groups = dict(_groups(model, held))
    batches = _drawn(model, held)
    if not groups or not batches:
        return
    channels = largest(model, [name for names in groups.values() for name in names], batches)
    inverses: dict[str, str] = {}
    for place, (weights, names) in enumerate(groups.items()):
        matrices = [numpy_helper.to_array(held[weight]) for weight in weights]
        found = factors(np.max([channels[name] for name in names], axis=0), matrices)
        for weight, matrix in zip(weights, matrices, strict=True):
            held[weight].CopyFrom(numpy_helper.from_array(matrix * found[:, None], weight))
        inverse = f"smoothing.{place}"
        model.graph.initializer.append(numpy_helper.from_array(1.0 / found, inverse))
        inverses.update(dict.fromkeys(names, inverse))
    replace_nodes(model, list(_with_factors(model, inverses)))


def factors(channels: Vector, weights: Sequence[Vector]) -> Vector:
    """What each channel is divided by, float32 [k]; their geometric mean is 1.

    Args:
        channels: the largest absolute value of each [k].
        weights: the matrices [k, m] that the channels are multiplied by.
    """
    columns = np.concatenate([w / np.maximum(np.abs(w).max(0), _TINY) for w in weights], axis=1)
    stiff = np.maximum(np.abs(columns).max(1), _TINY)
    found = np.log(np.sqrt(np.maximum(channels, _TINY) / stiff))
    even: Vector = np.exp(found - found.mean()).astype(np.float32)
    return even


def largest(
    model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Mapping[str, Ids]]
) -> Mapping[str, Vector]:
    """The largest absolute value of each channel [k] of the tensors [..., k] called `names`."""
    asked = onnx.ModelProto.FromString(model.SerializeToString())
    asked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "asked.onnx"
        onnx.save(asked, path)
        session = open_session(path)
    found: dict[str, Vector] = {}
    for batch in batches:
        for name, values in zip(names, session.run(list(names), batch), strict=True):
            channels = np.abs(values).reshape(-1, values.shape[-1]).max(0)
            found[name] = np.maximum(found.get(name, channels), channels)
    return found


def _groups(
    model: onnx.ModelProto, held: Weights
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Matrices, and the inputs that meet them: more than one where encoders share layers."""
    makers = {out: node.op_type for node in model.graph.node for out in node.output}
    met: dict[str, set[str]] = {}
    for node in model.graph.node:
        if is_product(node, held) and makers.get(node.input[0]) == _MAKER:
            met.setdefault(node.input[0], set()).add(node.input[1])
    groups = list[tuple[set[str], set[str]]]()
    for name, weights in met.items():
        joined = ({*weights}, {name})
        for group in [group for group in groups if group[0] & weights]:
            groups.remove(group)
            joined = (joined[0] | group[0], joined[1] | group[1])
        groups.append(joined)
    uses = Counter(name for node in model.graph.node for name in set(node.input))
    for weights, names in groups:
        within = sum(is_product(node, held) and node.input[0] in names for node in model.graph.node)
        if sum(uses[weight] for weight in weights) == within:  # else something else reads one
            yield tuple(sorted(weights)), tuple(sorted(names))


def _with_factors(model: onnx.ModelProto, inverses: Mapping[str, str]) -> Iterator[onnx.NodeProto]:
    held = initializers(model)
    for node in model.graph.node:
        if is_product(node, held) and node.input[0] in inverses:
            node.input[0] = f"{node.input[0]}.even"
        yield node
        for out in node.output:
            if out in inverses:
                yield helper.make_node("Mul", [out, inverses[out]], [f"{out}.even"])


def _drawn(model: onnx.ModelProto, held: Weights) -> list[Mapping[str, Ids]]:
    """Batches of drawn token ids; none for a graph that takes something else."""
    inputs = {given.name for given in model.graph.input}
    tables = [
        held[node.input[0]].dims[0]
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in held
    ]
    if inputs != {"input_ids", "attention_mask"} or not tables:
        return []
    rng = np.random.default_rng(_SEED)
    lengths = rng.integers(_SHORTEST, _LONGEST + 1, (_BATCHES, _ROWS))
    return [padded([rng.integers(0, min(tables), n).tolist() for n in row]) for row in lengths]
