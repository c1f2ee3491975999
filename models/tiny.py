"""A tiny random encoder for tests and trials: same code, no download, starts at once."""

from __future__ import annotations

import zlib
from typing import Annotated, Any

import torch
import transformers
from pydantic import Field

from ..core.parts import Model
from . import adapter, bases, encoder_classifier

_VOCABULARY = 512
# The base must be the same on every machine of a run, so its seed is no option.
_SEED = 20240


def build(
    *,
    rank: Annotated[int, Field(ge=1)] = 4,
    alpha: Annotated[float, Field(gt=0.0)] = 8.0,
    targets: tuple[str, ...] = ("all",),
    layers: Annotated[int, Field(ge=0, le=2)] = 1,
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 32,
) -> Model:
    """A random two-layer BERT whose words are hashed into 512 tokens.

    Args:
        rank: LoRA's r.
        alpha: LoRA's alpha.
        targets: last parts of the names of the linears to adapt, or `["all"]`.
        layers: adapt only the top k layers; 0 adapts both.
        width: size of the hidden states, a multiple of 4.
    """
    config = transformers.BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        # Wide enough that the words, not their positions, make the features.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        encoder = transformers.BertModel(config, add_pooling_layer=False)
    bases.without_dropout(encoder)
    encoder.requires_grad_(False)
    lora = adapter.Lora(rank, alpha, targets)
    return encoder_classifier.on(encoder, hash_words, "tiny", lora, layers, max_length=64)


def hash_words(texts: list[str], truncation: bool, max_length: int) -> dict[str, Any]:
    """Token ids 1..511 of the words of each text by CRC-32; at least one token a text."""
    rows = [[1 + zlib.crc32(w.encode()) % (_VOCABULARY - 1) for w in t.split()] for t in texts]
    return {"input_ids": [(row or [1])[:max_length] for row in rows]}
