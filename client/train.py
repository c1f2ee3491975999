"""The local loop: backward, privatizer, pulls, mask, step - in the order that DP needs.

Pulls join after clipping and noise because a penalty inside the loss changes nothing under
DP-SGD; the mask scales the step, not the gradient, because an adaptive optimizer would undo a
scaled gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.config import Train
from ..core.errors import PrivacyError
from ..core.parts import Encoded, Indices, Model, Privatizer, Strata, Tensors


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, then decay, over all rounds of a domain.

    Attributes:
        round: index of this round in the domain.
        rounds: rounds of the domain.
        warmup_rate: share of the domain's steps in which the rate rises, 0..1.
        decay: `linear` to 0 at the domain's end, or `constant`.
    """

    round: int
    rounds: int
    warmup_rate: float
    decay: str

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate, 0..1, at `step` of the `steps` of this round."""
        done = (self.round + (step + 0.5) / steps) / self.rounds
        if done < self.warmup_rate:
            return done / self.warmup_rate
        if self.decay == "constant":
            return 1.0
        return (1.0 - done) / (1.0 - self.warmup_rate)


@dataclass(frozen=True, slots=True)
class Forces:
    """What acts on the parameters beside the loss: pulls (summed) and the step's mask."""

    pulls: Sequence[Callable[[Tensors], Tensors]] = ()
    mask: Callable[[Tensors], Tensors] = lambda parameters: {}


def train(
    model: Model,
    encoded: Encoded,
    strata: Strata,
    table: Train,
    schedule: Schedule,
    privatizer: Privatizer,
    forces: Forces,
    trainable: frozenset[str],
    answers: Sequence[int],
    rng: np.random.Generator,
    counts: Sequence[int] = (),
    observe: Callable[[float], None] = lambda norm: None,
) -> float:
    """Train `model` in place on `encoded`; the mean loss over the records seen (0 if none).

    Args:
        model: its trainable tensors are changed.
        encoded: the records of this round.
        strata: which cohort each of them belongs to.
        table: batch size, epochs, optimizer and rates.
        schedule: where in the domain this round stands.
        privatizer: draws the batches and makes the gradients private.
        forces: pulls and mask; a tensor that is masked altogether when the round begins stands
            still in all of it.
        trainable: names of the tensors that move; the others are left as they are.
        answers: indices of the labels that the loss of new records looks at; all when empty. That
            of replayed records looks at all labels, so that new labels learn to stay off old
            records while new records leave old labels in peace (ER-ACE, Caccia et al. 2022,
            arXiv:2104.05025, section 4).
        rng: draws the batches of non-private training.
        counts: of the round's records with each label; where given, the loss is a balanced one.
        observe: told the Euclidean norm of the gradient of the last step, noise and pulls in it.
    """
    named = {n: p for n, p in model.parameters().items() if n in trainable}
    # What is masked altogether needs no gradient: a round that moves the head alone is cheap.
    trainable = trainable - {name for name, part in forces.mask(named).items() if not part.any()}
    parameters = {n: p for n, p in named.items() if n in trainable}
    if not parameters:
        return 0.0
    optimizer = _optimizer(table, _groups(table, parameters))
    drawn = list(privatizer.batches(strata, table.batch_size, table.epochs, rng))
    _need_charged(privatizer.steps(table.epochs) if len(strata) else 0, len(drawn))
    total, count = torch.zeros(()), 0
    prior = {"prior": log_prior(counts)} if len(counts) else {}
    replayed = strata.of >= strata.fresh
    mixed = bool(answers) and bool(replayed.any())
    private = privatizer.session(model.module, parameters, table.batch_size)
    with _frozen(model, trainable), private as session:
        for step, indices in enumerate(drawn):
            _set_rate(optimizer, schedule.factor(step, len(drawn)))
            optimizer.zero_grad(set_to_none=True)
            for part in _parts(indices, table.accumulate, privatizer.largest_part):
                free = torch.from_numpy(replayed[part]) if mixed else None
                losses = model.losses(encoded.batch(part), answers, free, **prior)
                session.backward(losses, len(indices))
                total = total.to(losses.device) + losses.detach().sum()
                count += len(part)
            session.release(optimizer)
            _pull(parameters, forces.pulls)
            _masked_step(optimizer, parameters, forces.mask(parameters))
            session.stepped()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if drawn and gradients:
        observe(float(torch.nn.utils.get_total_norm(gradients)))
    return float(total) / count if count else 0.0


def _need_charged(charged: int, drawn: int) -> None:
    """Whether as many steps were drawn as the ledger was charged for, empty ones too."""
    if charged and charged != drawn:
        raise PrivacyError(
            f"a round must take the {charged} steps that were charged; {drawn} were drawn. Nothing "
            "was trained."
        )


def log_prior(counts: Sequence[int]) -> torch.Tensor:
    """Log of the share of each label, [labels], every label counted once more than it was met.

    Added to the logits of a loss it makes the loss balanced (Ren et al. 2020, arXiv:2007.10740,
    equation 4): what is learnt no longer depends on how many records of each label a client has,
    which is where clients with other labels pull apart (Zhang et al. 2022, arXiv:2209.00189).
    """
    smoothed = torch.tensor(counts, dtype=torch.float32) + 1.0
    return torch.log(smoothed / smoothed.sum())


def _groups(table: Train, parameters: Tensors) -> list[dict[str, Any]]:
    """The adapter's tensors and the head's, each with its own rate."""
    head = [tensor for name, tensor in parameters.items() if name.startswith("head.")]
    rest = [tensor for name, tensor in parameters.items() if not name.startswith("head.")]
    groups = ((rest, table.lr), (head, table.head_lr or table.lr))
    return [{"params": part, "lr": lr, "peak": lr} for part, lr in groups if part]


def _optimizer(table: Train, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if table.optimizer == "sgd":
        decay = table.weight_decay
        return torch.optim.SGD(groups, momentum=table.momentum, weight_decay=decay, fused=True)
    return torch.optim.AdamW(groups, weight_decay=table.weight_decay, fused=True)


def _set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _parts(indices: Indices, accumulate: int, largest: int) -> list[Indices]:
    number = max(accumulate, -(-len(indices) // largest)) if largest else accumulate
    # An empty Poisson batch has no part: no forward pass, but the privatizer still adds noise.
    return [part for part in np.array_split(indices, number) if len(part)]


def _pull(parameters: Tensors, pulls: Sequence[Callable[[Tensors], Tensors]]) -> None:
    for pull in pulls:
        for name, gradient in pull(parameters).items():
            parameter = parameters[name]
            if parameter.grad is None:  # no part reached it in this step
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad += gradient.detach()


def _masked_step(
    optimizer: torch.optim.Optimizer, parameters: Tensors, mask: Mapping[str, Any]
) -> None:
    before = {name: parameters[name].detach().clone() for name in mask if name in parameters}
    for name in before:
        gradient = parameters[name].grad
        if gradient is not None and not torch.any(mask[name]):
            gradient.zero_()  # it is meant to stand still, and whoever watches can tell
    optimizer.step()
    with torch.no_grad():
        for name, start in before.items():
            parameters[name].copy_(start + mask[name] * (parameters[name] - start))


class _frozen:
    """Tensors outside `trainable` need no gradient while this is open."""

    def __init__(self, model: Model, trainable: frozenset[str]) -> None:
        self._still = [p for n, p in model.parameters().items() if n not in trainable]

    def __enter__(self) -> None:
        for parameter in self._still:
            parameter.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for parameter in self._still:
            parameter.requires_grad_(True)
