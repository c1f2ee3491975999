"""Text generation: any causal language model with LoRA, loss on the completions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
from pydantic import Field
from torch import nn

from ..core.errors import RunError
from ..core.parts import Encoded, EncodedRecords, Indices, Model, Score
from ..core.values import Manifest, Records, Vector
from . import adapter, bases
from .answers import IGNORED, drawn
from .depth import Ragged, find_layers, joined
from .features import Remembered, pooled


def build(
    *,
    base: str,
    rank: Annotated[int, Field(ge=1)] = 8,
    alpha: Annotated[float, Field(gt=0.0)] = 16.0,
    targets: tuple[str, ...] = ("all",),
    layers: Annotated[int, Field(ge=0)] = 0,
    max_length: Annotated[int, Field(ge=8)] = 512,
    gradient_checkpointing: bool = False,
) -> Model:
    """A causal language model on `base` with LoRA in its top layers.

    Args:
        base: a folder in Hugging Face format, or a name on the hub.
        rank: LoRA's r.
        alpha: LoRA's alpha; the scale is alpha / rank.
        targets: last parts of the names of the linears to adapt, or `["all"]`.
        layers: adapt only the top k layers; 0 adapts all. The output head is never adapted.
        max_length: prompt and completion together; a longer prompt loses its beginning.
        gradient_checkpointing: trade time for memory in the layers that train.

    Raises:
        ModelError: the base cannot be loaded, or targets or layers do not fit it.
    """
    model, tokenizer = bases.load(base, transformers.AutoModelForCausalLM)
    model.config.use_cache = False
    identity = bases.fingerprint(model)
    within = [f"{model.base_model_prefix}."]
    if layers:
        name, all_layers = find_layers(model)
        first = max(len(all_layers) - layers, 0)
        within = [f"{name}.{i}." for i in range(first, len(all_layers))]
    module = adapter.attach(model, adapter.Lora(rank, alpha, targets), within, "CAUSAL_LM")
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    module.train()
    return CausalLM(module, tokenizer, base, identity, max_length)


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch: ids, mask and next-token targets, each [b, t]."""

    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Prompts and completions as token ids.

    Attributes:
        rows: ids and targets side by side [t, 2] per record; `None` without records.
        count: number of records.
        device: where batches go.
    """

    rows: Ragged | None
    count: int
    device: torch.device

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Indices) -> Batch:
        """The padded batch of the records at `indices`, on the model's device."""
        assert self.rows is not None
        values, mask = self.rows.padded(indices)
        targets = torch.where(mask.bool(), values[..., 1], IGNORED)
        return Batch(values[..., 0].to(self.device), mask.to(self.device), targets.to(self.device))

    def joined(self, other: EncodedPairs) -> EncodedPairs:
        """Its records, then those of `other`."""
        return EncodedPairs(joined(self.rows, other.rows), self.count + other.count, self.device)


class CausalLM:
    """See `core.parts.Model`. It has no labels; its answers are tokens."""

    def __init__(
        self, module: Any, tokenizer: Any, base_name: str, identity: str, max_length: int
    ) -> None:
        self.labels: tuple[str, ...] = ()
        self.labels_needed = False
        self.module = module
        self._tokenizer = tokenizer
        self._base_name = base_name
        self._identity = identity
        self._max_length = max_length
        self._device = torch.device("cpu")
        self._bf16 = False
        self._remembered = Remembered()

    @property
    def tokenizer(self) -> Any:
        """The base's own tokenizer."""
        return self._tokenizer

    @property
    def manifest(self) -> Manifest:
        """Names and shapes of the LoRA factors."""
        return adapter.manifest(self._factors)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The LoRA factors by name."""
        return self._factors

    @cached_property
    def _factors(self) -> dict[str, nn.Parameter]:
        return adapter.factors(self.module)

    def fit_labels(self, labels: Sequence[str]) -> None:
        """Nothing to fit: completions are tokens.

        Raises:
            ValueError: labels were given.
        """
        if labels:
            raise ValueError("a causal language model has no labels")

    def vector(self) -> Vector:
        """A copy of all trainable values, float32 [manifest.size]."""
        return adapter.flatten(self._factors)

    def load(self, vector: Vector) -> None:
        """Write `vector` [manifest.size] into the trainable tensors in place."""
        adapter.fill(self._factors, vector)

    def place(self, device: str, precision: str) -> None:
        """Move to `cpu` or `cuda`; `bf16` computes by autocast and keeps float32 weights."""
        self._device = torch.device(device)
        self._bf16 = precision == "bf16"
        self.module.to(self._device)
        self._remembered.forget()  # another device rounds in another way

    def encode(self, records: Records) -> EncodedRecords:
        """Prompt, completion and end token of each record; targets on the completion only."""
        pairs = zip(records.texts, records.targets, strict=True)
        rows = [self._row(prompt, completion) for prompt, completion in pairs]
        return EncodedPairs(Ragged.of(rows) if rows else None, len(rows), self._device)

    def _row(self, prompt: str, completion: str) -> torch.Tensor:
        start = self._tokenizer(prompt)["input_ids"]
        end = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        if self._tokenizer.eos_token_id is not None:
            end = [*end, self._tokenizer.eos_token_id]
        end = end[: self._max_length - 1]
        start = start[-(self._max_length - len(end)) :] or end[:1]
        targets = [IGNORED] * (len(start) - 1) + end + [IGNORED]
        return torch.tensor([start + end, targets]).T.contiguous()

    def losses(
        self, batch: Batch, answers: Sequence[int], free: Any = None, prior: Any = None
    ) -> torch.Tensor:
        """Mean cross entropy over the completion's tokens, per example [b].

        Args:
            batch: of `encode(...).batch`.
            answers: without labels there is nothing to choose; not read.
            free: likewise.
            prior: likewise.
        """
        loss, _ = self._token_losses(batch)
        counted = (batch.targets != IGNORED).sum(1).clamp(min=1)
        return loss.sum(1) / counted

    def resampled(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """`batch`, each completion token drawn from the prediction there, without gradients."""
        counted = batch.targets != IGNORED
        with torch.no_grad():
            logits = self.outputs(batch)[counted]
        targets = batch.targets.clone()
        targets[counted] = drawn(logits, rng)
        return replace(batch, targets=targets)

    def logits(self, encoded: Encoded, batch_size: int) -> Vector:
        """Nothing to give: completions are tokens.

        Raises:
            RunError: always.
        """
        raise RunError(
            "scores of labels need a model that has labels; a causal language model has none. Use "
            "a classifier, or leave out what asks for scores."
        )

    def features(self, records: Records, layers: int = 1, *, adapted: bool = False) -> Vector:
        """Mean over the prompt's tokens of the last hidden states, float32 [n, layers * width].

        Args:
            records: their texts are read, and nothing else.
            layers: how many of the top layers, side by side, the last one first.
            adapted: through the adapter as it is now; else of the frozen base.

        Raises:
            ModelError: the base has not so many layers, or they cannot be told apart.
        """

        def compute() -> Vector:
            tokens = [self._prompt(text) for text in records.texts]
            decoder = self.module.get_base_model().base_model
            return pooled(decoder, tokens, layers, self._device, self._autocast)

        if adapted:
            return compute()
        frozen = adapter.frozen_base(self.module)(compute)
        return self._remembered.get(records.texts, layers, frozen)

    def _prompt(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"][-self._max_length :]
        # An empty prompt is the start of a text, which many bases mark by the token of its end.
        return ids or [self._tokenizer.eos_token_id or 0]

    def score(self, encoded: Encoded, batch_size: int) -> Score:
        """Sums over completion tokens: cross entropy and right next tokens."""
        assert isinstance(encoded, EncodedPairs)
        score = Score()
        with torch.no_grad():
            for start in range(0, len(encoded), batch_size):
                indices = np.arange(start, min(start + batch_size, len(encoded)))
                batch = encoded.batch(indices)
                loss, logits = self._token_losses(batch)
                counted = batch.targets != IGNORED
                right = ((logits.argmax(-1) == batch.targets) & counted).sum()
                score += Score(float(loss.sum()), int(right), int(counted.sum()))
        return score

    def _token_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.outputs(batch)
        loss = nn.functional.cross_entropy(
            logits.transpose(1, 2), batch.targets, reduction="none", ignore_index=IGNORED
        )
        return loss, logits

    def outputs(self, batch: Batch) -> torch.Tensor:
        """Logits [b, t, tokens], with their graph."""
        with self._autocast():
            logits: torch.Tensor = self.module(
                input_ids=batch.ids, attention_mask=batch.mask
            ).logits
        return logits.float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def save(self, folder: Path) -> None:
        """PEFT's adapter files in `folder`."""
        adapter.save(self.module, folder, self._base_name)

    def identity(self) -> str:
        """16 hex digits over the frozen base."""
        return self._identity
