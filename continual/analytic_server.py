"""The server's half of the head in closed form: sums of all domains, and the head they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..core.errors import RunError
from ..core.parts import Kept, Lesson
from ..core.values import Vector
from . import heads, statistics
from .analytic_answer import Head, Recipe, blended, closed_form, closed_forms, log_softmax
from .analytic_client import natural, shape_of
from .heads import Linear
from .random_features import project
from .statistics import Floats, Sums

GRIDS = {
    "ridge": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "lda": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 2e-1, 5e-1, 9e-1),
    "means": (0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0),
}
"""Regularisers to choose among."""

DEFAULTS = {"ridge": 1e-2, "lda": 3e-2, "means": 1.0}
"""Regularisers where no validation record says which is best: near the best on CLINC150."""

TEMPERATURES = {
    "ridge": (5.0, 10.0, 20.0, 40.0),
    "lda": (0.1, 0.3, 1.0),
    "means": (5.0, 10.0, 20.0, 40.0),
}
BLENDS = (0.0, 0.25, 0.5, 0.75)
"""Temperatures of the closed form, and weights of the model's own head, to choose among."""

_TEMPERATURE = {"ridge": 10.0, "lda": 0.3, "means": 10.0}  # without validation
_BATCH = 64  # records in a forward pass of the model's own head


@dataclass(frozen=True, slots=True)
class Solver:
    """How sums become a head.

    Attributes:
        form: `means`, `lda` or `ridge`.
        regulariser: 0 to choose it.
        blend: weight of the model's own head, or `auto` to choose it.
        renew: whether a domain's sums stand in the place of those before.
    """

    form: str
    regulariser: float
    blend: float | Literal["auto"]
    renew: bool

    @property
    def second(self) -> bool:
        """Whether the Gram matrix is needed."""
        return self.form != "means"


@dataclass(frozen=True, slots=True)
class _Trial:
    """The server's validation records: pooled features in steps [n, m] and labels [n]."""

    steps: Vector
    targets: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.targets)


def learn(kept: Kept, lesson: Lesson, recipe: Recipe, solver: Solver) -> Kept:
    """The sums with the domain's added (or in their place), and the head that they give.

    Args:
        kept: of the domains before.
        lesson: its total is laid out as by `statistics.gather`.
        recipe: of the features.
        solver: how they become a head.
    """
    sums = _added({} if solver.renew else kept, lesson, recipe, second=solver.second)
    trial = _trial(lesson, recipe)
    before = float(kept["regulariser"]) if "regulariser" in kept else 0.0
    candidates = _candidates(solver, before, choose=bool(len(trial)))
    chosen, linear = _solved(sums, lesson.labels, solver.form, candidates, recipe, trial)
    head = _mixed(Head(recipe, linear, _TEMPERATURE[solver.form]), lesson, trial, solver)
    return {
        "labels": np.array(lesson.labels, str),
        "counts": np.asarray(sums.counts),
        "sums": np.asarray(sums.sums),
        "gram": np.asarray(sums.gram),
        "regulariser": np.array(chosen),
        "head": head.vector(),
    }


def facts(kept: Kept) -> Mapping[str, float | int | str]:
    """Plain values for the report."""
    if "head" not in kept:
        return {}
    head = Head.read(kept["head"])
    width = kept["sums"].shape[1]
    return {
        "features": width,
        "regulariser": float(kept["regulariser"]),
        "temperature": head.temperature,
        "blend": head.blend,
        "records counted": round(float(kept["counts"].sum())),
        "values per upload": len(kept["counts"]) * (1 + width) + len(kept["gram"]),
        "bytes of the sums": sum(kept[name].nbytes for name in ("counts", "sums", "gram")),
    }


def _added(kept: Kept, lesson: Lesson, recipe: Recipe, *, second: bool) -> Sums:
    """What was kept, under today's labels, and the domain's total: in whole numbers.

    What clients sum are whole numbers; a sum that rounds or has noise is off by far more than
    what rounding it here changes.
    """
    num_labels, width = len(lesson.labels), recipe.num_features(shape_of(lesson.manifest)[1])
    total = natural(lesson.total, num_labels, width)
    if not np.abs(total).max(initial=0.0) < 2.0**53:
        raise RunError(
            "sums of statistics must be below 2**53; they are not: a client sent what no records "
            "add up to. Find it, leave it out, and resume the run."
        )
    new = statistics.view(np.rint(total, out=total), num_labels, width)
    if not kept:
        return Sums(*(_narrow(part) for part in (new.counts, new.sums, new.gram)))
    places = {label: i for i, label in enumerate(lesson.labels)}
    rows = np.array([places[str(label)] for label in kept["labels"]], np.intp)
    new.counts[rows] += kept["counts"]
    new.sums[rows] += kept["sums"]
    if second:
        np.add(new.gram, kept["gram"], out=new.gram)
    return Sums(*(_narrow(part) for part in (new.counts, new.sums, new.gram)))


def _narrow(whole: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Whole numbers in 32 bits where all fit, else in 64: half of the memory and of the file."""
    fits = np.abs(whole).max(initial=0.0) < 2.0**31
    return whole.astype(np.int32 if fits else np.int64)


def _trial(lesson: Lesson, recipe: Recipe) -> _Trial:
    if not len(lesson.validation):
        return _Trial(np.zeros((0, 0), np.float32), np.zeros(0, np.intp))
    index = {label: i for i, label in enumerate(lesson.labels)}
    targets = np.array([index[target] for target in lesson.validation.targets], np.intp)
    return _Trial(recipe.steps(lesson.model, lesson.validation), targets)


def _candidates(solver: Solver, before: float, *, choose: bool) -> Sequence[float]:
    """Regularisers to try; after the first domain only the last choice and its neighbours."""
    if solver.regulariser:
        return (solver.regulariser,)
    if not choose:
        return (DEFAULTS[solver.form],)
    grid = GRIDS[solver.form]
    if before not in grid:
        return grid
    place = grid.index(before)
    return grid[max(place - 1, 0) : place + 2]


def _solved(
    sums: Sums,
    labels: Sequence[str],
    form: str,
    candidates: Sequence[float],
    recipe: Recipe,
    trial: _Trial,
) -> tuple[float, Linear]:
    """The regulariser with the most right answers, the largest of equals, and its head."""
    # Solved in the order of the names: that in which the labels came then changes no bit.
    order = np.argsort(np.array(labels, str))
    sorted_ = Sums(sums.counts[order], sums.sums[order], sums.gram)

    def solver(trial: _Trial) -> Callable[[float], Linear]:
        solve = {
            "ridge": lambda: heads.ridge(sorted_),
            "lda": lambda: heads.discriminants(sorted_),
            "means": lambda: heads.means(sorted_, _within(trial, recipe)),
        }[form]()
        return lambda value: _placed(solve(value), order)

    whole = solver(trial)
    if len(candidates) == 1:
        return candidates[0], whole(candidates[0])
    if form != "means":
        return _best(whole, candidates, recipe, trial)
    # Its covariance is of validation records: the choice is made on those that it is not of.
    half = np.argsort(trial.targets, kind="stable")
    one, other = (_Trial(trial.steps[i], trial.targets[i]) for i in (half[::2], half[1::2]))
    value, _ = _best(solver(one), candidates, recipe, other)
    return value, whole(value)


def _best(
    solve: Callable[[float], Linear], candidates: Sequence[float], recipe: Recipe, trial: _Trial
) -> tuple[float, Linear]:
    linears = [solve(value) for value in candidates]
    scores = closed_forms(recipe, linears, trial.steps)
    right = [int((found.argmax(1) == trial.targets).sum()) for found in scores]
    best = max(range(len(candidates)), key=lambda i: (right[i], candidates[i]))
    return candidates[best], linears[best]


def _placed(linear: Linear, order: npt.NDArray[np.intp]) -> Linear:
    """A head whose labels stand where they stood before they were taken in `order`."""
    back = np.argsort(order)
    return Linear(linear.weight[back], linear.bias[back])


def _within(trial: _Trial, recipe: Recipe) -> Floats | None:
    """Covariance [M, M] of the features of validation records around their labels' means."""
    if not len(trial):
        return None
    features = project(trial.steps, recipe.width, recipe.seed)
    num_labels = int(trial.targets.max(initial=-1)) + 1
    vector = statistics.gather(features, trial.targets, num_labels, second=False)
    centres = heads.class_means(statistics.view(vector, num_labels, features.shape[1]))
    rest = features - centres[trial.targets]
    found: Floats = rest.T @ rest / max(len(rest) - len(set(trial.targets.tolist())), 1)
    return found


def _mixed(head: Head, lesson: Lesson, trial: _Trial, solver: Solver) -> Head:
    """The head with its temperature and blend: most right answers, then likeliest targets.

    The smallest blend of those with the most right answers: what does not help is left out.
    """
    blend = solver.blend
    if not len(trial):
        return replace(head, blend=0.0 if blend == "auto" else blend)
    scores = closed_form(head, trial.steps)
    encoded = lesson.model.encode(lesson.validation)
    own = log_softmax(lesson.model.logits(encoded, _BATCH))
    best: tuple[tuple[int, float, float], Head] | None = None
    for weight in BLENDS if blend == "auto" else (blend,):
        for temperature in TEMPERATURES[solver.form]:
            mixed = blended(log_softmax(scores * np.float32(temperature)), own, weight)
            right = int((mixed.argmax(1) == trial.targets).sum())
            likely = log_softmax(mixed)[np.arange(len(trial)), trial.targets].mean()
            rank = (right, -weight, float(likely))
            if best is None or rank > best[0]:
                best = (rank, replace(head, temperature=temperature, blend=weight))
    assert best is not None
    return best[1]
