"""Records planted to be found again: what an audit trains on beside a client's own.

Two kinds, after Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846), section 5. A *gradient
canary* is an example whose gradient is one chosen entry of one trained linear: the input of that
linear is overwritten in its row and its loss is one output, so that its gradient takes the same
way through hooks, clipping and noise as any other. Its sign turns with each step, and whoever
scores it turns the sign back: what stays the same from step to step (the records' own gradient,
or noise that was used twice) then cancels, and fresh noise does not. A *wrong-label canary* is a
real record with another record's label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.parts import Encoded, Indices, Model, Privatizer, Session
from ..core.values import Vector

_INPUT = 1e3  # so large that the gradient of a bias beside the weight is nothing to its norm


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a trained linear's weight: where a gradient canary's gradient is.

    Attributes:
        name: of the weight in the model's manifest.
        row: index of the output.
        column: index of the input.
        place: flat index in the weight.
    """

    name: str
    row: int
    column: int
    place: int


def entries(
    model: Model, trainable: frozenset[str], count: int, rng: np.random.Generator
) -> tuple[Entry, ...]:
    """At most `count` entries, each once, over all trained weights of linears in even parts.

    Args:
        model: whose linears are looked at.
        trainable: names of the tensors that train.
        count: how many are wanted.
        rng: chooses them; the choice is no secret.
    """
    weights = {name: linear.weight for name, linear in linears(model, trainable).items()}
    left, found = count, []
    # The smallest first: what it lacks, the others give.
    for done, (name, weight) in enumerate(sorted(weights.items(), key=lambda w: w[1].numel())):
        part = min(weight.numel(), -(-left // (len(weights) - done)))
        for place in rng.choice(weight.numel(), part, replace=False):
            row, column = divmod(int(place), weight.shape[1])
            found.append(Entry(name, row, column, int(place)))
        left -= part
    return tuple(found)


def linears(model: Model, trainable: frozenset[str]) -> dict[str, torch.nn.Linear]:
    """Linears with a weight that trains, by the weight's name."""
    names = {id(p): name for name, p in model.parameters().items() if name in trainable}
    return {
        names[id(module.weight)]: module
        for module in model.module.modules()
        if isinstance(module, torch.nn.Linear) and id(module.weight) in names
    }


@dataclass(slots=True)
class _Marked:
    """A batch and the positions of its records."""

    batch: Any
    indices: Indices


@dataclass(frozen=True, slots=True)
class PlantedRecords:
    """See `core.parts.Encoded`: batches that know which records they hold."""

    encoded: Encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, indices: Indices) -> Any:
        """The model's batch, and whose it is."""
        return _Marked(self.encoded.batch(indices), np.asarray(indices))


class PlantedModel:
    """See `core.parts.Model`: the same model, whose last records are gradient canaries.

    Args:
        model: whose labels are fitted already.
        first: position of the first canary among the records.
        planted: the entry of each canary from there on.
        norm: of a canary's gradient.
    """

    def __init__(self, model: Model, first: int, planted: tuple[Entry, ...], norm: float) -> None:
        self._model = model
        self._first = first
        self._planted = planted
        self._loss_scale = norm / _INPUT
        self._rows: dict[str, list[tuple[int, Entry]]] = {}
        self._outputs: dict[str, torch.Tensor] = {}
        self._sign = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Canaries have their gradients while this is open."""
        found = linears(self._model, frozenset(self._model.parameters()))
        names = {linear: name for name, linear in found.items()}

        def before(module: Any, args: Any) -> Any:
            rows = self._rows.get(names.get(module, ""))
            return None if rows is None else (_overwritten(args[0], rows), *args[1:])

        def after(module: Any, args: Any, output: Any) -> None:
            if names.get(module, "") in self._rows:
                self._outputs[names[module]] = output

        # For all modules of the process: a private session refuses layers with hooks of others.
        every = torch.nn.modules.module
        handles = [
            every.register_module_forward_pre_hook(before),
            every.register_module_forward_hook(after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def turn(self) -> None:
        """A step is over: the next one's canaries have the other sign."""
        self._sign = -self._sign

    def losses(
        self, batch: _Marked, answers: Any, free: Any = None, prior: Any = None
    ) -> torch.Tensor:
        """Loss per example [b]: a canary's is one output of its linear, with this step's sign."""
        self._rows, self._outputs = {}, {}
        for row, index in enumerate(batch.indices):
            if index >= self._first:
                entry = self._planted[int(index) - self._first]
                self._rows.setdefault(entry.name, []).append((row, entry))
        losses: torch.Tensor = self._model.losses(batch.batch, answers, free, prior)
        # Read only now: a session's own hooks may have made the outputs part of the graph.
        taken = {
            row: self._outputs[name][(row, *_first(self._outputs[name]), entry.row)]
            for name, rows in self._rows.items()
            for row, entry in rows
        }
        if not taken:
            return losses
        chosen = torch.stack(list(taken.values())).to(losses.dtype)
        places = torch.tensor(list(taken), device=losses.device)
        return losses.index_copy(0, places, self._sign * self._loss_scale * chosen)


def _overwritten(inputs: torch.Tensor, rows: Sequence[tuple[int, Entry]]) -> torch.Tensor:
    inputs = inputs.clone()
    for row, entry in rows:
        inputs[row] = 0.0
        inputs[(row, *_first(inputs), entry.column)] = _INPUT
    return inputs


def _first(values: torch.Tensor) -> list[int]:
    """The index of the first token, where there are tokens: [b, t, n] has them, [b, n] has none."""
    return [0] * (values.dim() - 2)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the strongest onlooker sees of a training: each step's gradient as it was released.

    Attributes:
        places: flat indices of the values that are kept, by the tensor's name.
        rows: per step, the values at `places`, one tensor after another.
    """

    places: Mapping[str, Indices]
    rows: list[Vector] = field(default_factory=list)

    def look(self, parameters: Mapping[str, Any]) -> None:
        """Keep the gradients that `parameters` hold now."""
        self.rows.append(at_places(self.places, {n: p.grad for n, p in parameters.items()}))


def at_places(places: Mapping[str, Indices], tensors: Mapping[str, Any]) -> Vector:
    """The values of `tensors` at `places`, float32 [sum of the places]; 0 for a missing tensor."""
    found = []
    for name, indices in places.items():
        tensor = tensors.get(name)
        if tensor is None:
            found.append(np.zeros(len(indices), np.float32))
        else:
            chosen = torch.from_numpy(indices).to(tensor.device)
            found.append(tensor.detach().reshape(-1)[chosen].float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def watched(privatizer: Privatizer, seen: Seen, after: Callable[[], None]) -> Privatizer:
    """The same privatizer, its steps written to `seen`; `after` is called after each step.

    The promise covers every step's noisy gradient, so an audit may look at each.
    """

    @contextmanager
    def session(module: Any, parameters: Mapping[str, Any], batch_size: int) -> Iterator[Session]:
        opened: AbstractContextManager[Session] = privatizer.session(module, parameters, batch_size)
        with opened as inner:
            yield _Watched(inner, parameters, seen, after)

    return replace(privatizer, session=session)


@dataclass(frozen=True, slots=True)
class _Watched:
    inner: Session
    parameters: Mapping[str, Any]
    seen: Seen
    after: Callable[[], None]

    def backward(self, losses: Any, step_size: int) -> None:
        self.inner.backward(losses, step_size)

    def release(self, optimizer: Any) -> None:
        self.inner.release(optimizer)
        self.seen.look(self.parameters)

    def stepped(self) -> None:
        self.inner.stepped()
        self.after()


def places_of(planted: Sequence[Entry]) -> dict[str, Indices]:
    """Where gradient canaries are seen; `planted` is in the order of `entries`."""
    places: dict[str, list[int]] = {}
    for entry in planted:
        places.setdefault(entry.name, []).append(entry.place)
    return {name: np.array(found, np.int64) for name, found in places.items()}


def some_places(
    parameters: Mapping[str, Any], most: int, rng: np.random.Generator
) -> dict[str, Indices]:
    """At most about `most` flat indices over all `parameters`, spread evenly."""
    total = sum(p.numel() for p in parameters.values())
    keep = min(1.0, most / max(1, total))
    return {
        name: np.sort(rng.choice(p.numel(), math.ceil(keep * p.numel()), replace=False))
        for name, p in parameters.items()
    }


def gradients(
    model: Model,
    encoded: Encoded,
    parameters: Mapping[str, Any],
    places: Mapping[str, Indices],
    answers: Sequence[int] = (),
) -> npt.NDArray[np.float32]:
    """Each record's own gradient at `places`, float32 [n, values], one record at a time."""
    rows = []
    for index in range(len(encoded)):
        loss = model.losses(encoded.batch(np.array([index])), answers).sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        rows.append(at_places(places, dict(zip(parameters, found, strict=True))))
    return np.array(rows, np.float32).reshape(len(encoded), -1)
