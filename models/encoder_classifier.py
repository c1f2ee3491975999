"""Text classification: any encoder, mean pooling, a linear head that grows, LoRA inside.

Mean pooling as in Reimers and Gurevych 2019 (arXiv:1908.10084), section 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.parts import Encoded, EncodedRecords, Model, Score
from ..core.values import Manifest, Records, Vector
from . import adapter, bases
from . import answers as labelled
from .depth import CutEncoder, Ragged, find_layers
from .encoded import Batch, EncodedTexts
from .features import Remembered, pooled

# Sentences per forward pass while activations are cached: fixed, because the composition of
# a batch can change the last bit of a float, and a resumed run must cache the same bits.
_CACHE_BATCH = 64


def build(
    *,
    base: str = bases.EMBEDDED,
    rank: Annotated[int, Field(ge=1)] = 8,
    alpha: Annotated[float, Field(gt=0.0)] = 16.0,
    targets: tuple[str, ...] = ("all",),
    layers: Annotated[int, Field(ge=0)] = 1,
    max_length: Annotated[int, Field(ge=4)] = 128,
    gradient_checkpointing: bool = False,
) -> Model:
    """A classifier on `base` with LoRA in its top layers.

    Args:
        base: `minilm` (embedded), a folder in Hugging Face format, or a name on the hub.
        rank: LoRA's r.
        alpha: LoRA's alpha; the scale is alpha / rank.
        targets: last parts of the names of the linears to adapt, or `["all"]`.
        layers: adapt only the top k layers and cache what lies below; 0 adapts all.
        max_length: longer texts are cut to this many tokens.
        gradient_checkpointing: trade time for memory in the layers that train.

    Raises:
        ModelError: the base cannot be loaded, or targets or layers do not fit it.
    """
    encoder, tokenizer = bases.load(base, transformers.AutoModel)
    name = bases.PUBLIC_NAME if base == bases.EMBEDDED else base
    lora = adapter.Lora(rank, alpha, targets)
    return on(encoder, tokenizer, name, lora, layers, max_length, gradient_checkpointing)


def on(
    encoder: Any,
    tokenizer: Any,
    base_name: str,
    lora: adapter.Lora,
    layers: int,
    max_length: int,
    gradient_checkpointing: bool = False,
) -> EncoderClassifier:
    """The classifier on an encoder that is loaded already; arguments as in `build`."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # the mean over tokens is the sentence
    identity = bases.fingerprint(encoder)
    cut, within = 0, [""]
    if layers:
        name, all_layers = find_layers(encoder)
        cut = max(len(all_layers) - layers, 0)
        within = [f"{name}.{i}." for i in range(cut, len(all_layers))]
    module = adapter.attach(encoder, lora, within, None)
    if gradient_checkpointing:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
        encoder.enable_input_require_grads()
    module.train()
    return EncoderClassifier(module, encoder, tokenizer, base_name, identity, cut, max_length)


def _zero_linear(width: int, rows: int) -> nn.Linear:
    linear = nn.Linear(width, 1)
    linear.out_features = rows
    linear.weight = nn.Parameter(torch.zeros(rows, width))
    linear.bias = nn.Parameter(torch.zeros(rows))
    return linear


class _Classifier(nn.Module):
    """The PEFT encoder and the head, so that one module holds all that trains."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = _zero_linear(width, 0)


class EncoderClassifier:
    """See `core.parts.Model`. Answers are labels; new labels get zero rows in the head."""

    def __init__(
        self,
        peft_encoder: Any,
        encoder: Any,
        tokenizer: Any,
        base_name: str,
        identity: str,
        cut: int,
        max_length: int,
    ) -> None:
        self.labels: tuple[str, ...] = ()
        self.labels_needed = True
        self.module = _Classifier(peft_encoder, encoder.config.hidden_size)
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._base_name = base_name
        self._identity = identity
        self._max_length = max_length
        self._cut = CutEncoder(encoder, cut) if cut else None
        self._device = torch.device("cpu")
        self._bf16 = False
        self._remembered = Remembered()

    @property
    def tokenizer(self) -> Any:
        """The base's own tokenizer."""
        return self._tokenizer

    def forget_cut(self) -> None:
        """Compute every layer each time in float32 from now on: nothing is cached in half."""
        self._cut = None

    @property
    def max_length(self) -> int:
        """Tokens that longer texts are cut to."""
        return self._max_length

    @property
    def manifest(self) -> Manifest:
        """Names and shapes of LoRA factors and head."""
        return adapter.manifest(self.parameters())

    def parameters(self) -> Mapping[str, torch.Tensor]:
        """LoRA factors, then `head.weight` [labels, h] and `head.bias` [labels]."""
        head = self.module.head
        return {**self._factors, "head.weight": head.weight, "head.bias": head.bias}

    @cached_property
    def _factors(self) -> dict[str, nn.Parameter]:
        return adapter.factors(self.module.encoder)

    def fit_labels(self, labels: Sequence[str]) -> None:
        """Give the head one row per label; rows of known labels are kept, new ones are zero."""
        if tuple(labels) == self.labels:
            return
        old, rows = self.module.head, {label: i for i, label in enumerate(self.labels)}
        new = _zero_linear(old.in_features, len(labels)).to(self._device)
        with torch.no_grad():
            for i, label in enumerate(labels):
                if label in rows:
                    new.weight[i] = old.weight[rows[label]]
                    new.bias[i] = old.bias[rows[label]]
        self.module.head = new
        self.labels = tuple(labels)

    def vector(self) -> Vector:
        """A copy of all trainable values, float32 [manifest.size]."""
        return adapter.flatten(self.parameters())

    def load(self, vector: Vector) -> None:
        """Write `vector` [manifest.size] into the trainable tensors in place."""
        adapter.fill(self.parameters(), vector)

    def place(self, device: str, precision: str) -> None:
        """Move to `cpu` or `cuda`; `bf16` computes by autocast and keeps float32 weights."""
        self._device = torch.device(device)
        self._bf16 = precision == "bf16"
        self.module.to(self._device)
        self._remembered.forget()  # another device rounds in another way

    def encode(self, records: Records) -> EncodedRecords:
        """Tokens, or activations below the adapted layers, of `records`.

        Raises:
            DataError: a label that the model does not know.
        """
        index = {label: i for i, label in enumerate(self.labels)}
        unknown = sorted({target for target in records.targets if target not in index})
        if unknown:
            raise DataError(
                f"the model has no answer for label {unknown[0]!r} (record "
                f"{records.ids[records.targets.index(unknown[0])]}); it knows {len(index)} labels. "
                "The server's domain list must name every label of the clients."
            )
        targets = torch.tensor([index[target] for target in records.targets], dtype=torch.long)
        if not len(records):
            return EncodedTexts(None, targets, self._device)
        rows = Ragged.of([torch.tensor(ids) for ids in self._tokens(records.texts)])
        encoded = EncodedTexts(rows, targets, self._device)
        return encoded if self._cut is None else self._cached(encoded, self._cut)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)
        return found["input_ids"]  # type: ignore[no-any-return]

    def _cached(self, encoded: EncodedTexts, cut: CutEncoder) -> EncodedTexts:
        rows: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
        for indices in encoded.by_length(_CACHE_BATCH):
            batch = encoded.batch(indices)
            with self._autocast():
                hidden = cut.below(batch.inputs, batch.mask).half().cpu()
            for row, index, length in zip(hidden, indices, batch.mask.sum(1).tolist(), strict=True):
                rows[int(index)] = row[:length].clone()
        return EncodedTexts(Ragged.of(rows), encoded.targets, self._device)

    def losses(
        self, batch: Batch, answers: Sequence[int], free: Any = None, prior: Any = None
    ) -> torch.Tensor:
        """Cross entropy per example [b] over the labels in `answers` (all when empty).

        Args:
            batch: of `encode(...).batch`.
            answers: indices of labels.
            free: bool [b], the examples whose loss looks at all labels all the same.
            prior: [labels], added to the logits; None for nothing.
        """
        return labelled.losses(self.outputs(batch), batch.targets, answers, free, prior)

    def resampled(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """`batch` with labels drawn from the softmax over all labels, without gradients."""
        with torch.no_grad():
            return replace(batch, targets=labelled.drawn(self.outputs(batch), rng))

    def logits(self, encoded: Encoded, batch_size: int) -> Vector:
        """Scores of the labels, float32 [n, labels], in the order of `encoded`."""
        assert isinstance(encoded, EncodedTexts)
        found = np.empty((len(encoded), len(self.labels)), np.float32)
        with torch.no_grad():
            for indices in encoded.by_length(batch_size):
                found[indices] = self.outputs(encoded.batch(indices)).cpu().numpy()
        return found

    def features(self, records: Records, layers: int = 1, *, adapted: bool = False) -> Vector:
        """Mean over a text's tokens of the last hidden states, float32 [n, layers * width].

        Args:
            records: their texts are read, and nothing else.
            layers: how many of the top layers, side by side, the last one first.
            adapted: through the adapter as it is now; else of the frozen base.

        Raises:
            ModelError: the base has not so many layers, or they cannot be told apart.
        """

        def compute() -> Vector:
            tokens = self._tokens(records.texts)
            return pooled(self._encoder, tokens, layers, self._device, self._autocast)

        if adapted:
            return compute()
        frozen = adapter.frozen_base(self.module.encoder)(compute)
        return self._remembered.get(records.texts, layers, frozen)

    def score(self, encoded: Encoded, batch_size: int) -> Score:
        """Sums of cross entropy and right answers over all labels."""
        assert isinstance(encoded, EncodedTexts)
        score = Score()
        with torch.no_grad():
            for indices in encoded.by_length(batch_size):
                batch = encoded.batch(indices)
                logits = self.outputs(batch)
                loss = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
                right = (logits.argmax(1) == batch.targets).sum()
                score += Score(float(loss), int(right), len(indices))
        return score

    def outputs(self, batch: Batch) -> torch.Tensor:
        """Logits [b, labels], with their graph."""
        with self._autocast():
            if self._cut is not None:
                hidden = self._cut.above(batch.inputs, batch.mask)
            else:
                output = self._encoder(input_ids=batch.inputs, attention_mask=batch.mask)
                hidden = output.last_hidden_state
            mask = batch.mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            logits: torch.Tensor = self.module.head(pooled)
        return logits.float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def save(self, folder: Path) -> None:
        """PEFT's adapter files, `head.safetensors` and `labels.json` in `folder`."""
        adapter.save(self.module.encoder, folder, self._base_name)
        head = self.module.head
        tensors = {"weight": head.weight, "bias": head.bias}
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(kept, folder / "head.safetensors")
        write_atomically(folder / "labels.json", json.dumps(self.labels, indent=1))

    def identity(self) -> str:
        """16 hex digits over the frozen base."""
        return self._identity
