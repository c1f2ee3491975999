"""Texts made ready for an encoder: tokens or cached activations, batched and padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..core.parts import Indices
from .depth import Ragged, joined


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch.

    Attributes:
        inputs: token ids [b, t], or cached activations [b, t, h].
        mask: 1 for a token, 0 for padding [b, t].
        targets: index of each label [b].
    """

    inputs: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Tokens or cached activations of records, and the index of each label.

    Attributes:
        rows: ids [t] or activations [t, h] per record; `None` when there is no record.
        targets: label indices, int64 [n].
        device: where batches go.
    """

    rows: Ragged | None
    targets: torch.Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Indices) -> Batch:
        """The padded batch of the records at `indices`, on the model's device."""
        assert self.rows is not None
        values, mask = self.rows.padded(indices)
        if values.is_floating_point():
            values = values.float()
        targets = self.targets[torch.from_numpy(np.asarray(indices, np.int64))]
        return Batch(values.to(self.device), mask.to(self.device), targets.to(self.device))

    def joined(self, other: EncodedTexts) -> EncodedTexts:
        """Its records, then those of `other`; the model had the same labels for both."""
        targets = torch.cat([self.targets, other.targets])
        return EncodedTexts(joined(self.rows, other.rows), targets, self.device)

    def by_length(self, batch_size: int) -> list[Indices]:
        """All positions in batches of similar length, so that little is padded."""
        if self.rows is None:
            return []
        order = np.argsort(np.diff(self.rows.offsets.numpy()), kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
