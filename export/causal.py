"""A merged causal model as one ONNX graph with a cache, its tokenizer beside it.

One graph serves both halves of generating: the prompt at once with an empty cache, then one token
at a time with what the graph gave out before. `export.generate` runs it without torch.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import ModelError, RunError
from ..core.files import sync_folder
from ..models import bases, cached
from . import generate
from .generate import FACTS, GRAPH, INPUTS, Generator

logger = logging.getLogger(__name__)

OPSET = 20

# A graph is one protobuf message, which ends at 2 GiB; larger weights lie in a file beside it.
_MOST_INSIDE = 3 * 2**29

# Largest difference of a logit from torch's, both in float32.
_MOST_APART = 1e-3

# Positions that depend on how long the text is: a graph would hold those of one length.
_MOVING_ROPES = ("dynamic", "longrope")

# Prompts of the check, in tokens, and how many tokens each goes on for.
_PROMPTS, _FURTHER = (1, 5, 12), 12


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` wrote.

    Attributes:
        folder: holds the graph, the tokenizer and what is to be known of them.
        size_bytes: of the graph and its weights.
        apart: the largest difference of a logit from torch's that was seen.
    """

    folder: Path
    size_bytes: int
    apart: float


def write(model: Any, tokenizer: Any, folder: Path, opset: int = OPSET) -> Written:
    """Write `model` into `folder`, which appears whole, and only after it agreed with torch.

    The graph takes `input_ids` [batch, tokens], `attention_mask` [batch, total] (1 for a token, 0
    for padding on the left) and `past.N.key` and `past.N.value` [batch, heads, past, width] of each
    layer, and gives `logits` [batch, tokens, vocabulary] and `present.N.key`, `present.N.value`;
    total is past + tokens, and past may be 0.

    Args:
        model: a merged transformers causal model in float32 that attends to the whole text; left
            as it was.
        tokenizer: the model's, or the folder (`Path`) that holds it.
        folder: must not be there; the folder that it lies in must.
        opset: of ONNX, 18 to 20.

    Raises:
        ModelError: a model or a tokenizer that cannot be exported, or packages that are missing.
        RunError: the graph does not agree with torch; nothing is left of it.
        OSError: the folder is there, or the disk is full.
        ValueError: another opset.
    """
    if not 18 <= opset <= 20:
        raise ValueError(f"opset must be 18 to 20; got {opset}")
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: remove it, or choose another name")
    _need_packages()
    _check(model)
    if isinstance(tokenizer, Path):
        tokenizer = bases.tokenizer(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            "the graph needs a tokenizer beside it that the `tokenizers` library runs "
            f"(tokenizer.json); got {type(tokenizer).__name__}"
        )
    with _appearing(folder) as fresh, _evaluating(model):
        _export(model, fresh, opset)
        tokenizer.save_pretrained(str(fresh))
        facts = {"ends": _ends(model, tokenizer), "context": _context(model), "opset": opset}
        (fresh / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        apart = _compare(model, Generator(fresh))
    size_bytes = sum(path.stat().st_size for path in folder.glob(f"{GRAPH}*"))
    logger.info("%s holds a graph of %d bytes, %.1e from torch", folder, size_bytes, apart)
    return Written(folder, size_bytes, apart)


def _need_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"writing a graph needs the package {missing[0]}, which is not installed; in the "
            "project's folder, run pip install '.[export]'"
        )


def _check(model: Any) -> None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise ModelError(f"a transformers causal model is exported; got {type(model).__name__}")
    state = model.state_dict()
    if hasattr(model, "peft_config") or any("lora_" in name for name in state):
        raise ModelError("a graph holds one model: merge the adapter into its base first")
    if model.get_output_embeddings() is None or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"a graph is written for causal models with an output head; got {type(model).__name__}"
        )
    odd = [name for name, t in state.items() if t.is_floating_point() and t.dtype != torch.float32]
    odd += [name for name, tensor in state.items() if tensor.is_meta or tensor.is_cuda]
    if odd:
        raise ModelError(
            f"weights must be float32 and in this machine's memory; {odd[0]} is not. Load the base "
            "with dtype=torch.float32 on the CPU, and merge again."
        )
    used = getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if used else None
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (window is not None and window < _context(model)):
        raise ModelError(
            "the graph attends to the whole text; layers of this model do not "
            f"({', '.join(sorted(kinds)) or f'a window of {window} tokens'})"
        )
    rope = dict(getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _MOVING_ROPES:
        raise ModelError(
            f"positions of this model ({rope}) depend on the length of the text, which one graph "
            "cannot hold"
        )


def _context(model: Any) -> int:
    """The longest text, in tokens; 0 where the model has no such limit."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 0)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [named] if isinstance(named, int) else list(named or ())
    return list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *ends) if i is not None))


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`; it takes the name of `folder` when all went well."""
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        yield fresh
        for path in fresh.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(fresh)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _export(model: Any, folder: Path, opset: int) -> None:
    # Sizes that no two axes share and none of which is 0 or 1, which would be taken for constants.
    past = cached.empty(model, texts=2, length=3)
    tokens, total = torch.ones(2, 4, dtype=torch.long), torch.ones(2, 7, dtype=torch.long)
    axes = tuple({0: "batch", 2: "past"} for _ in past)
    names = generate.names(len(past) // 2)
    with warnings.catch_warnings():
        # They tell of axes that keep torch's own name for a sum, and of torch's coming changes.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                cached.Cached(model).eval(),
                (tokens, total, *past),
                dynamo=True,
                opset_version=opset,
                input_names=[*INPUTS, *(f"past.{name}" for name in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
                dynamic_shapes=({0: "batch", 1: "tokens"}, {0: "batch", 1: "total"}, axes),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise ModelError(
                f"{type(model).__name__} cannot be exported to ONNX: {first}"
            ) from error
    assert program is not None
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    program.save(str(folder / GRAPH), external_data=size > _MOST_INSIDE)


def _compare(model: Any, generator: Generator) -> float:
    """The largest difference of a logit from torch's: whole texts, single tokens, padded pairs."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    room = _context(model) or 2**30
    draw = np.random.default_rng(0)
    texts = [draw.integers(vocabulary, size=min(length, room - 1)) for length in _PROMPTS]
    apart = 0.0
    for text in texts:
        ids, found = _followed(generator, text, min(_FURTHER, room - len(text)))
        wanted = model(input_ids=torch.from_numpy(ids[None]), use_cache=False).logits[0]
        apart = max(apart, _gap(found, wanted.numpy()))
    short, long = texts[1], texts[2]
    pad = len(long) - len(short)
    pair = np.stack([np.concatenate([np.zeros(pad, np.int64), short]), long])
    mask = np.ones_like(pair)
    mask[0, :pad] = 0
    logits, _ = generator.step(pair, mask, generator.empty(2))
    wanted = model(input_ids=torch.from_numpy(short[None]), use_cache=False).logits[0]
    apart = max(apart, _gap(logits[0, pad:], wanted.numpy()))
    if not apart <= _MOST_APART:  # nor is NaN
        raise RunError(
            f"the graph must give torch's logits within {_MOST_APART}; they differ by {apart:.3g}. "
            f"Nothing was kept: {type(model).__name__} computes something that this export does "
            "not hold."
        )
    return apart


def _followed(
    generator: Generator, text: np.ndarray[Any, Any], further: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`text` with the likeliest token after it, again and again, and the logits at each place."""
    mask = np.ones((1, len(text)), np.int64)
    logits, past = generator.step(text[None], mask, generator.empty(1))
    parts, ids = [logits[0]], list(text)
    for _ in range(further):
        ids.append(int(parts[-1][-1].argmax()))
        mask = np.ones((1, len(ids)), np.int64)
        logits, past = generator.step(np.array([ids[-1:]], np.int64), mask, past)
        parts.append(logits[0])
    return np.array(ids, np.int64), np.concatenate(parts)


def _gap(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float(np.abs(found - wanted).max())
