"""A merged causal model of the Llama family as one GGUF file, F16 or Q8_0, tokenizer included.

The format is that of ggml (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), written and
read back through the `gguf` package. Matrices are packed; norms and biases stay float32. Q8_0 is
32 bytes and one half-precision scale for each block of 32 weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError, RunError
from ..core.files import sync_folder
from ..models import bases
from . import llama, vocabulary
from .llama import Tensor
from .vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Fields = Mapping[str, "str | bool | int | float | tuple[Any, ...]"]

# GGUF's number of each file type (llama_ftype).
_FILE_TYPES = {"F16": 1, "Q8_0": 7}
_BLOCK = 32

# Largest |packed - weight| / |weight|, as L2 norms of a tensor. A half has 11 bits; eight bits
# lose most where one weight of each block is large and the others are not, about 0.013.
_MOST_LOST = {"F32": 0.0, "F16": 1e-3, "Q8_0": 2e-2}


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` wrote.

    Attributes:
        path: the file.
        packing: `F16` or `Q8_0`.
        size_bytes: of the file.
        num_tensors: in the file.
        lost: the largest |packed - weight| / |weight| of a tensor, as L2 norms.
    """

    path: Path
    packing: str
    size_bytes: int
    num_tensors: int
    lost: float


def write(
    model: Any,
    tokenizer: Any,
    path: Path,
    packing: str = "Q8_0",
    progress: Progress | None = None,
) -> Written:
    """Write `model` to `path`, where it appears only after it was read back and compared.

    Args:
        model: a merged transformers causal model in float32, of the Llama family; left as it was.
        tokenizer: the model's, or the folder (`Path`) that holds it.
        path: the file, which is replaced if it is there; its folder must be.
        packing: of the matrices: `F16`, or `Q8_0` at about half the size.
        progress: called with (tensors done, tensors in all); each counts twice, when it is
            written and when it is compared.

    Raises:
        ModelError: another architecture, tensors that do not fit it or do not pack, or a
            tokenizer that is missing or that llama.cpp would run in another way.
        RunError: the file does not hold what was written; nothing is left of it.
        OSError: the disk is full or the folder cannot be written; `path` keeps its old content.
        ValueError: no such packing.
    """
    if packing not in _FILE_TYPES:
        raise ValueError(f"packing must be one of {', '.join(_FILE_TYPES)}; got {packing!r}")
    if tokenizer is None:
        raise ModelError(
            "a GGUF file holds the tokenizer, and none was given. Give the base's tokenizer, or "
            "the folder that holds its tokenizer.json."
        )
    _library()
    tensors = llama.tensors(model)
    if isinstance(tokenizer, Path):
        tokenizer = bases.tokenizer(tokenizer)
    words = vocabulary.read(tokenizer, llama.num_tokens(model), llama.ends(model))
    fields = _about(packing) | llama.fields(model) | _word_fields(words)
    with _replacing(path) as fresh:
        kept, lost = _write(fresh, fields, tensors, packing, progress or _silent)
        _compare(fresh, fields, kept, progress or _silent)
    size_bytes = path.stat().st_size
    logger.info("%s holds %d tensors as %s in %d bytes", path, len(tensors), packing, size_bytes)
    return Written(path, packing, size_bytes, len(tensors), lost)


def _silent(done: int, total: int) -> None:
    pass


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "writing GGUF needs the package gguf, which is not installed; in the project's folder, "
            "run pip install '.[export]'"
        ) from error
    return gguf


def _about(packing: str) -> dict[str, Any]:
    kind = {"general.type": "model", "general.file_type": _FILE_TYPES[packing]}
    return kind | ({"general.quantization_version": 2} if packing == "Q8_0" else {})


def _word_fields(words: Vocabulary) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": words.kind,
        "pre": words.pre,
        "tokens": words.tokens,
        "token_type": words.types,
        "add_space_prefix": words.adds["space_prefix"],
        "add_bos_token": words.adds["bos"],
        "add_eos_token": words.adds["eos"],
    }
    fields |= {"scores": words.scores} if words.scores else {"merges": words.merges}
    fields |= {_ID_FIELDS[name]: index for name, index in words.ids.items()}
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return named | _template_fields(words.chat_template)


# GGUF spells out what the unknown and the padding token are called.
_ID_FIELDS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}


def _template_fields(template: str | Mapping[str, str]) -> dict[str, Any]:
    if isinstance(template, str):
        return {"tokenizer.chat_template": template} if template else {}
    named = {name: text for name, text in template.items() if name != "default"}
    fields: dict[str, Any] = {
        f"tokenizer.chat_template.{name}": text for name, text in named.items()
    }
    if named:
        fields["tokenizer.chat_templates"] = tuple(named)
    if "default" in template:
        fields["tokenizer.chat_template"] = template["default"]
    return fields


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the name of `path` when all went well."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write(
    path: Path,
    fields: Fields,
    tensors: Mapping[str, Tensor],
    packing: str,
    progress: Progress,
) -> tuple[dict[str, tuple[str, str]], float]:
    """Packing and sha256 of each tensor by name, and the most that one lost."""
    gguf = _library()
    writer = gguf.GGUFWriter(path, llama.ARCHITECTURE)
    kept: dict[str, tuple[str, str]] = {}
    most_lost = 0.0
    try:
        _add_fields(writer, fields)
        for name, tensor in tensors.items():
            _announce(writer, name, tensor, _packing(name, tensor, packing))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            chosen = _packing(name, tensor, packing)
            packed, lost = _packed(name, tensor.values(), chosen)
            writer.write_tensor_data(packed)
            kept[name] = (chosen, hashlib.sha256(packed.tobytes()).hexdigest())
            most_lost = max(most_lost, lost)
            progress(len(kept), 2 * len(tensors))
    finally:
        writer.close()
    return kept, most_lost


def _add_fields(writer: Any, fields: Fields) -> None:
    for key, value in fields.items():
        if isinstance(value, bool):  # which is an int to Python
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _packing(name: str, tensor: Tensor, packing: str) -> str:
    if len(tensor.shape) < 2:
        return "F32"
    if packing == "Q8_0" and tensor.shape[-1] % _BLOCK:
        raise ModelError(
            f"Q8_0 packs rows in blocks of {_BLOCK} weights; {name} is {list(tensor.shape)}. Write "
            "this model as F16."
        )
    return packing


def _announce(writer: Any, name: str, tensor: Tensor, packing: str) -> None:
    gguf = _library()
    kind = gguf.GGMLQuantizationType[packing]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
    # The package takes the shape in bytes where a type packs several weights together.
    numbers = {"F32": np.float32, "F16": np.float16}.get(packing, np.uint8)
    given = tensor.shape if packing in ("F32", "F16") else shape
    num_bytes = int(np.prod(shape))
    writer.add_tensor_info(name, given, np.dtype(numbers), num_bytes, raw_dtype=kind)


def _packed(
    name: str, values: npt.NDArray[np.float32], packing: str
) -> tuple[npt.NDArray[Any], float]:
    """The packed tensor, and |packed - values| / |values| as L2 norms."""
    gguf = _library()
    kind = gguf.GGMLQuantizationType[packing]
    with np.errstate(over="ignore", invalid="ignore"):
        packed = gguf.quants.quantize(values, kind)
        size = float(np.linalg.norm(values))
        gap = float(np.linalg.norm(gguf.quants.dequantize(packed, kind).reshape(-1) - values.flat))
    lost = gap / size if size else gap
    if not lost <= _MOST_LOST[packing]:  # nor is NaN
        raise ModelError(
            f"{name} must lose at most {_MOST_LOST[packing]} of its norm as {packing}; it loses "
            f"{lost:.3g}. Weights that are infinite, no numbers, above 65504 or all below 1e-7 "
            "have no half-precision form: see that training did not diverge."
        )
    return np.ascontiguousarray(packed), lost


def _compare(
    path: Path, fields: Fields, kept: Mapping[str, tuple[str, str]], progress: Progress
) -> None:
    """Hold the file at `path` against what was to be written."""
    try:
        reader = _library().GGUFReader(path)
        found = {key: field.contents() for key, field in reader.fields.items()}
        wrong = [key for key, value in fields.items() if found.get(key) != _as_read(value)]
        there = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise RunError(f"{path.name} cannot be read back: {error}. {_AGAIN}") from error
    wrong += sorted(set(there) ^ set(kept))
    for place, (name, (packing, digest)) in enumerate(kept.items()):
        tensor = there.get(name)
        if tensor is not None:
            data = hashlib.sha256(tensor.data.tobytes()).hexdigest()
            if (tensor.tensor_type.name, data) != (packing, digest):
                wrong.append(name)
        progress(len(kept) + place + 1, 2 * len(kept))
    if wrong:
        raise RunError(f"{path.name} does not read back as written, first {wrong[0]}. {_AGAIN}")


_AGAIN = "Nothing was kept; look at the disk, and export again."


def _as_read(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_read(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value
