"""A base that stays, and small files that change it: adapter and head apart from the graph.

The base is rounded once, as in `balanced`; LoRA (Hu et al. 2021, arXiv:2106.09685) and head are
inputs of the graph, in float16, which ONNX Runtime fills from an adapter file. A domain update is
then one file of some hundred kB, put in place of the last between two calls, without reloading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from ..core.errors import DataError, ModelError
from ..core.files import write_atomically
from ..core.parts import Model
from ..core.values import Vector
from ..models.merged import frozen
from .balanced import products_in_int8
from .graph import export_module
from .rounding import embeddings_in_int8, need_products
from .session import open_session, scores

HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
_FORMAT = 1  # of the adapter files
_IDENTITY = "identity"  # of the base that was rounded, in the properties of its graph

Halves = Mapping[str, npt.NDArray[np.float16]]


class _Adapted(nn.Module):
    """A linear layer and what LoRA adds to it; the factors come with the call."""

    def __init__(self, linear: nn.Linear, name: str, held: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.linear = linear
        self._name, self._held = name, held

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The layer's output, and (rows A) B."""
        found: torch.Tensor = self.linear(rows)
        down, up = self._held[f"{self._name}.lora_A"], self._held[f"{self._name}.lora_B"]
        return found + (rows @ down) @ up


class _Base(nn.Module):
    """Token ids, factors and head in; scores out."""

    def __init__(self, encoder: Any, layers: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.held: dict[str, torch.Tensor] = {}
        for name in layers:
            owner, _, key = name.rpartition(".")
            parent = encoder.get_submodule(owner)
            setattr(parent, key, _Adapted(getattr(parent, key), name, self.held))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        parameters: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Scores [b, labels]."""
        self.held.update({name: value.float() for name, value in parameters.items()})
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).float()
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        self.held.clear()
        head, bias = parameters[HEAD_WEIGHT].float(), parameters[HEAD_BIAS].float()
        found: torch.Tensor = pooled @ head + bias
        return found


def parameters(model: Model) -> Halves:
    """Factors and head of a classifier as the base's inputs, float16.

    A transposed [h, r], B transposed and times LoRA's scale [r, h'], `head.weight` [h, labels],
    `head.bias` [labels].

    Raises:
        ModelError: a value is too large for float16.
    """
    adapted: Any = model.module.encoder
    found: dict[str, npt.NDArray[np.float32]] = {}
    for name, tensor in model.parameters().items():
        value = tensor.detach().float().numpy()
        if name.endswith(".lora_B"):
            layer = adapted.get_base_model().get_submodule(name.removesuffix(".lora_B"))
            value = value * np.float32(layer.scaling["default"])
        found[name] = value.T if value.ndim == 2 else value
    halves = {name: np.ascontiguousarray(v, np.float16) for name, v in found.items()}
    if not all(np.isfinite(value).all() for value in halves.values()):
        raise ModelError(
            "a value of the adapter is too large for float16; export the release merged, with "
            "--profile balanced"
        )
    return halves


def write_base(model: Model, target: Path) -> None:
    """Write the base of `model`, rounded, with its adapter and head as inputs, to `target`.

    Raises:
        ModelError: the base cannot be written as ONNX, or nothing in it can be rounded.
    """
    held = parameters(model)
    layers = sorted({n.removesuffix(".lora_A") for n in held if n.endswith(".lora_A")})
    module = _Base(frozen(model.module.encoder), layers).eval().requires_grad_(False)
    tensors = {name: torch.from_numpy(value) for name, value in held.items()}
    shapes = {n: {1: "labels"} if n == HEAD_WEIGHT else {0: "labels"} for n in _HEAD}
    axes = {**dict.fromkeys(tensors), **shapes}
    graph = export_module(module, {"parameters": tensors}, {"parameters": axes})
    _name_inputs(graph, list(tensors))
    need_products(graph)
    embeddings_in_int8(graph)
    products_in_int8(graph)
    # The runtime asks for every input that has no value of its own, also where an adapter fills it.
    for name, value in held.items():
        graph.graph.initializer.append(numpy_helper.from_array(np.zeros_like(value), name))
    onnx.helper.set_model_props(graph, {_IDENTITY: model.identity()})
    onnx.save(graph, target)


_HEAD = (HEAD_WEIGHT, HEAD_BIAS)


def _name_inputs(graph: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give the parameters' inputs the parameters' own names, in the order of the call."""
    given = [value.name for value in graph.graph.input][2:]
    if len(given) != len(names):
        raise ModelError(
            f"the base must take {len(names)} tensors of adapter and head; its graph takes "
            f"{len(given)}. This base cannot be exported with its adapter apart."
        )
    renamed = dict(zip(given, names, strict=True))
    for value in graph.graph.input:
        value.name = renamed.get(value.name, value.name)
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)


def write_adapter(
    held: Halves, base: Path, labels: Sequence[str], target: Path, *, identity: str
) -> None:
    """Write adapter and head for the base file `base`, and read them back.

    Args:
        held: of `parameters`.
        base: the file of `write_base`.
        labels: in the order of the head.
        target: the adapter's file; `.json` beside it says base and labels.
        identity: of the base that the adapter was trained on (`Model.identity`).

    Raises:
        DataError: what was read back is not what was written.
        ModelError: the adapter is one of another base, or does not fit its labels.
    """
    _need_fit(held, base, labels, identity)
    kept = {name: np.ascontiguousarray(value) for name, value in held.items()}
    # The runtime's format holds no references: arrays must live until the file is written.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in kept.items()}
    fresh = target.with_name(f".{target.name}.new")
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(_FORMAT)
    made.set_model_version(_FORMAT)
    made.set_parameters(values)
    try:
        made.export_adapter(str(fresh))
        if not _reads_back(fresh, kept):
            raise DataError(
                f"{target} reads back otherwise than it was written; nothing was replaced"
            )
        told = {"base": _hash(base), "labels": list(labels), "adapter": _hash(fresh)}
        write_atomically(target.with_name(target.name + ".json"), json.dumps(told, indent=1))
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _reads_back(path: Path, kept: Halves) -> bool:
    try:
        read = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
    except Exception:  # of a short file; the runtime's own errors have no common class but this
        return False
    found = {name: np.array(value.numpy()) for name, value in read.items()}
    return found.keys() == kept.keys() and all(np.array_equal(found[n], kept[n]) for n in kept)


def _need_fit(held: Halves, base: Path, labels: Sequence[str], identity: str) -> None:
    graph = onnx.load(base)
    own = {item.key: item.value for item in graph.metadata_props}.get(_IDENTITY)
    if own != identity:
        raise ModelError(
            f"the adapter was trained on the base {identity}; {base} was made of {own}. Write a "
            "base of the adapter's own model (write_base)."
        )
    inputs = {value.name for value in graph.graph.input}
    wanted = {t.name: _shape(t.name, t.dims) for t in graph.graph.initializer if t.name in inputs}
    got = {name: _shape(name, value.shape) for name, value in held.items()}
    wrong = sorted(n for n in wanted.keys() | got.keys() if wanted.get(n) != got.get(n))
    if wrong or held[HEAD_BIAS].shape != (len(labels),):
        name = wrong[0] if wrong else HEAD_BIAS
        raise ModelError(
            f"the adapter must fit {base} and its {len(labels)} labels; {name} does not. Rank and "
            "targets must be those that the base was written with; write another base for others."
        )


def _shape(name: str, dims: Sequence[int]) -> tuple[int, ...]:
    """Of a tensor, less the axis of the labels, which may grow."""
    return tuple(dims)[:-1] if name in _HEAD else tuple(dims)


@dataclass
class Apart:
    """A loaded base, and the adapter that answers at present.

    Attributes:
        session: of the base.
        base: SHA-256 of its file.
        labels: of the present adapter; empty before the first.
    """

    session: Any
    base: str
    labels: tuple[str, ...] = ()
    _options: Any = None
    _adapter: Any = None

    def swap(self, path: Path) -> None:
        """Answer with the adapter in `path` from now on; the base is not loaded again.

        Raises:
            DataError: it is damaged, or of another base; the present one stays.
        """
        try:
            told = json.loads(path.with_name(path.name + ".json").read_bytes())
            of, digest, labels = told["base"], told["adapter"], tuple(told["labels"])
            mine = _hash(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read: {error!r}; export it again") from error
        if of != self.base:
            raise DataError(
                f"{path} is an adapter of the base {of[:16]}...; this one is {self.base[:16]}.... "
                "Load the base that it was exported with."
            )
        if mine != digest:
            raise DataError(f"{path} is not the file that was exported; export it again")
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(str(path))
        options = onnxruntime.RunOptions()
        options.add_active_adapter(adapter)
        self._adapter, self._options, self.labels = adapter, options, labels

    def logits(self, tokens: Sequence[Sequence[int]], size: int = 32) -> Vector:
        """Scores float32 [n, labels] of the present adapter.

        Raises:
            DataError: there is none yet.
        """
        if self._options is None:
            raise DataError("an adapter must be put in place before the base can answer")
        return scores(self.session, tokens, size, options=self._options)


def open_base(path: Path) -> Apart:
    """The base in `path`, loaded, without an adapter yet.

    Raises:
        ModelError: it cannot be opened.
    """
    return Apart(open_session(path), _hash(path))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
