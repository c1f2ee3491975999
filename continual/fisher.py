"""The diagonal of the Fisher information of a model's trainable tensors, example by example.

F = E_x E_{y ~ p(y|x)} [grad log p(y|x)^2]: the label is drawn from the model's own prediction.
With the label of the data instead, the empirical Fisher, the square says how badly a record is
fitted rather than how much the model leans on a value (Kunstner, Balles and Hennig 2019,
arXiv:1905.12558). The square is of one example's gradient: that of a batch's mean shrinks with
the batch, and with it whatever is weighed by it.

Where there are labels, the draw is stratified: the likeliest label with its probability, and one
drawn from the others with theirs. The expectation is the same. But a model that has learnt its
records is sure of them, nearly all of the Fisher then stands in labels that one plain draw in
hundreds would hit, and a mean over some tens of records is far too large or far too small: on 30
requests that were fitted to a loss of 0.009, 0.006 to 9.4 times the exact trace with plain draws,
0.9 to 1.1 times with these.

The prediction is over the labels that the loss looked at. One that compares a domain's own labels
only never learns how they stand to earlier ones: over all labels the model would seem to lean on
what it was not taught, and EWC would hold what no domain needs. Where old records are replayed it
does learn that from them, and the prediction is over all labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..core.seeds import generator
from ..core.values import Records, Vector

# Records made ready at once: bounds the memory that cached activations take.
_ENCODED = 256

_BATCH = 64

_Asked: TypeAlias = list[tuple[float, Any]]
"""Probabilities, and a batch of one record with the label that has it, or stands for those."""


def diagonal(
    model: Any, records: Records, samples: int, seed: int, answers: Sequence[int] = ()
) -> Vector:
    """The mean squared gradient of up to `samples` of `records`, float32 [n]; zeros without any.

    Args:
        model: left as it was, gradients and their requirements too.
        records: their texts are read; labels are drawn from the model.
        samples: how many of them, drawn without replacement.
        seed: of the draws of records and labels.
        answers: indices of the labels among which the model predicts; empty for all.
    """
    number = min(samples, len(records))
    drawn = generator(seed, "fisher").choice(len(records), number, replace=False)
    total = {name: torch.zeros_like(p) for name, p in model.parameters().items()}
    for squares in _squares(model, records.take(np.sort(drawn)), seed, answers):
        for name, square in squares.items():
            total[name] += square
    flat = [value.reshape(-1) for value in total.values()]
    return np.array((torch.cat(flat) / max(number, 1)).float().cpu().numpy())


def rows(
    model: Any, records: Records, clip_norm: float, seed: int, answers: Sequence[int] = ()
) -> Iterator[Vector]:
    """One row [1, t + 1] per record, t tensors: shares of the squared clip, and a 1.

    A row holds the sum of the record's expected squared gradient in each tensor over `clip_norm`
    squared, scaled down where they add up to more than 1: none is below 0 and their sum is at
    most 1, so that a row's L2 norm is at most the square root of 2. A row depends on its record,
    the model, the seed and `answers`, which are public, alone. First comes a block of no row, for
    the width.

    Args:
        model: left as it was.
        records: each id once.
        clip_norm: largest root of the sum of a record's squared gradients, > 0.
        seed: of the drawn labels.
        answers: indices of the labels among which the model predicts; empty for all.
    """
    names = tuple(model.parameters())
    yield np.zeros((0, len(names) + 1), np.float32)
    for squares in _squares(model, records, seed, answers):
        norms = np.array([float(squares[n].sum()) if n in squares else 0.0 for n in names])
        shares = norms / max(clip_norm**2, norms.sum())
        yield np.append(shares, 1.0).astype(np.float32)[None]


def _squares(
    model: Any, records: Records, seed: int, answers: Sequence[int]
) -> Iterator[dict[str, torch.Tensor]]:
    """The expected squared gradient of each record, by tensor, over labels drawn from the model."""
    parameters = {n: p for n, p in model.parameters().items() if p.requires_grad}
    for first in range(0, len(records), _ENCODED):
        part = records.take(range(first, min(first + _ENCODED, len(records))))
        for asked in _asked(model, part, seed, answers):
            total: dict[str, torch.Tensor] = {}
            for rate, batch in asked:
                loss = model.losses(batch, answers).sum()
                # Not `backward`: whatever gradients the parameters hold stay as they are.
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, value in zip(parameters, found, strict=True):
                    # A gradient may be infinite, and 0 times it would be no number.
                    if value is not None and rate != 0.0:
                        total[name] = total.get(name, 0.0) + rate * value.square()
            yield total


def _asked(model: Any, records: Records, seed: int, answers: Sequence[int]) -> Iterator[_Asked]:
    # A generator for each record: else one record more would change the labels of the others.
    draws = [generator(seed, "label", id_) for id_ in records.ids]
    encoded = model.encode(records)
    if not model.labels_needed:
        for i, rng in enumerate(draws):
            yield [(1.0, model.resampled(encoded.batch(np.array([i])), rng))]
        return
    rates = _softmax(model.logits(encoded, _BATCH).astype(np.float64), answers)
    tops = rates.argmax(1)
    others = rates.copy()
    others[np.arange(len(tops)), tops] = 0.0
    second = [_drawn(row, rng) for row, rng in zip(others, draws, strict=True)]
    likely, unlikely = (_answered(model, records, labels) for labels in (tops, second))
    for i, top in enumerate(tops):
        at = np.array([i])
        yield [(rates[i, top], likely.batch(at)), (others[i].sum(), unlikely.batch(at))]


def _drawn(rates: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
    total = rates.sum()
    return int(rng.choice(len(rates), p=rates / total)) if total > 0.0 else 0


def _answered(model: Any, records: Records, labels: Any) -> Any:
    """`records` encoded with these answers, indices of labels, in the place of their own."""
    targets = tuple(model.labels[int(label)] for label in labels)
    return model.encode(replace(records, targets=targets))


def _softmax(scores: npt.NDArray[np.float64], answers: Sequence[int]) -> npt.NDArray[np.float64]:
    """Probabilities [b, labels], 0 for the labels that are not in `answers`, if it names any."""
    if answers:
        bound = np.full(scores.shape[1], -np.inf)
        bound[list(answers)] = 0.0
        scores = scores + bound
    exponents = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(exponents / exponents.sum(1, keepdims=True))
