"""The client's half of the head in closed form: the sums of its records at the end of a domain."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError, PrivacyError, RunError
from ..core.parts import Model, Phase
from ..core.values import Manifest, Records, Vector
from . import contributions, private_sums, statistics
from .analytic_answer import Recipe
from .random_features import STEPS, Grid, expand
from .statistics import Floats

# Of a record, counts are 1, class sums hold a feature of about STEPS, and the Gram matrix its
# square; and a class has fewer records than all have. Powers of two: nothing is lost on the way.
_COUNT, _SUM = float(STEPS**2), 4.0 * STEPS

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_MANY = 2**20  # no name has a number: the base itself says how many layers it has


def start(phase: Phase) -> Phase:
    """The phase itself, once what the server no longer needs is off the client's disk.

    Raises:
        RunError: what was added before cannot be read, or not be written without it.
    """
    if phase.everything or phase.gone:  # else nothing was ever taken away: spare the reading
        contributions.purge(phase.folder, _line(phase), phase.counted)
    return phase


def sums(
    phase: Phase, shard: Records, model: Model, recipe: Recipe, *, refresh: bool, second: bool
) -> Vector:
    """What this client adds to the server's sums: `level` of what `statistics.gather` lays out.

    Args:
        phase: of the end of the domain.
        shard: its records of the domain.
        model: holds the parameters at the end of the domain.
        recipe: of the features.
        refresh: whether the server's sums start anew: all records that are held are summed.
        second: whether the Gram matrix is summed too.

    Raises:
        DataError: a record's label is not among the labels so far.
        PrivacyError: a private run asks for a refresh.
        RunError: what was added before cannot be read, or what is added now not be written.
    """
    num_labels, width = len(_labels(phase, model)), recipe.num_features(hidden_of(model.manifest))
    vector = _sums(phase, shard, model, recipe, refresh=refresh, second=second)
    return level(vector, num_labels, width)


def _sums(
    phase: Phase, shard: Records, model: Model, recipe: Recipe, *, refresh: bool, second: bool
) -> Vector:
    if phase.private:
        if refresh:
            raise PrivacyError(
                "records whose privacy is promised may be summed once; a refresh sums them again "
                "at the end of each domain. Use encoder = 'base' or 'first' in a private run."
            )
        return _noisy(phase, shard, model, recipe, second=second)
    records = _held(phase, shard)
    if refresh:
        grid, labels = _grid(model, records, recipe), _labels(phase, model)
        return _gathered(grid, records.targets, labels, recipe, second=second)
    return _change(phase, records, model, recipe, second=second)


def _held(phase: Phase, shard: Records) -> Records:
    """The client's own records of all domains so far, each once, without the withdrawn ones."""
    records = phase.held() + shard
    first = {name: i for i, name in reversed(list(enumerate(records.ids)))}
    return records.take(sorted(i for name, i in first.items() if not phase.withdrew(name)))


def _change(
    phase: Phase, records: Records, model: Model, recipe: Recipe, *, second: bool
) -> Vector:
    """New records added, withdrawn ones subtracted; what is added is written down first."""
    layers = f"{recipe.layers} layers, adapted {recipe.adapted}"
    source = f"{_line(phase)}base {phase.base}, {layers}"
    num_pooled = recipe.layers * hidden_of(model.manifest)
    before = contributions.counted(phase.folder, source, num_pooled, phase.counted)
    known = frozenset(before.ids)
    new = records.where(lambda i: records.ids[i] not in known)
    leaves = np.array([phase.withdrew(name) for name in before.ids], bool)
    grid = _grid(model, new, recipe)
    removed = np.where(leaves, phase.index, contributions.NEVER).astype(np.int32)
    kept = replace(before, removed=removed, ends=phase.counted | {phase.index})
    gone = before.take(np.flatnonzero(leaves))
    vector = _gathered(
        np.concatenate([grid, gone.grid]),
        new.targets + gone.labels,
        _labels(phase, model),
        recipe,
        second=second,
        signs=np.repeat(np.array([1.0, -1.0], np.float32), [len(new), len(gone)]),
    )
    after = contributions.joined(kept, new.ids, new.targets, grid, phase.index)
    contributions.write(phase.folder, after)
    return vector


def _line(phase: Phase) -> str:
    """How a source begins: what another run's ends had is nothing that this one's have."""
    return f"run {phase.run}, "


def _noisy(phase: Phase, shard: Records, model: Model, recipe: Recipe, *, second: bool) -> Vector:
    """One noisy sum of the domain's own records."""
    own, labels = phase.domain.labels, _labels(phase, model)
    records = shard.where(lambda i: shard.targets[i] in own and not phase.withdrew(shard.ids[i]))
    grid = _grid(model, records, recipe)
    width = recipe.num_features(hidden_of(model.manifest))
    return private_sums.noisy(
        lambda part: expand(grid[part], recipe.width, recipe.seed),
        records,
        _classes(records.targets, own),
        _classes(own, labels),
        len(labels),
        width,
        # Half of the squares of random features are cut away.
        STEPS * float(np.sqrt(width / 2 if recipe.width else width)),
        phase.summed,
        second=second,
    )


def _gathered(
    grid: Grid,
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    recipe: Recipe,
    *,
    second: bool,
    signs: Vector | None = None,
) -> Vector:
    features = expand(grid, recipe.width, recipe.seed)
    classes = _classes(targets, labels)
    return statistics.gather(features, classes, len(labels), second=second, signs=signs)


def _grid(model: Model, records: Records, recipe: Recipe) -> Grid:
    if not len(records):
        return np.zeros((0, recipe.layers * hidden_of(model.manifest)), np.int8)
    return np.rint(recipe.steps(model, records)).astype(np.int8)


def _classes(targets: tuple[str, ...], labels: tuple[str, ...]) -> npt.NDArray[np.intp]:
    index = {label: i for i, label in enumerate(labels)}
    unknown = sorted(set(targets) - index.keys())
    if unknown:
        raise DataError(
            f"every record's label must be among the {len(index)} labels so far; {unknown[0]!r} is "
            "not. The server's domain list must name every label of the clients."
        )
    return np.array([index[target] for target in targets], np.intp)


def _labels(phase: Phase, model: Model) -> tuple[str, ...]:
    return phase.labels or model.labels


def level(vector: Vector, num_labels: int, width: int) -> Vector:
    """The vector [size(K, M)] with its parts made as large as each other, in place.

    So sums that round all values to one scale lose as little of each.
    """
    vector[:num_labels] *= _COUNT
    vector[num_labels : num_labels * (1 + width)] *= _SUM
    return vector


def natural(total: Floats, num_labels: int, width: int) -> Floats:
    """A copy of a sum of vectors of `level`, as they were before it."""
    total = total.copy()
    total[:num_labels] /= _COUNT
    total[num_labels : num_labels * (1 + width)] /= _SUM
    return total


def hidden_of(manifest: Manifest) -> int:
    """Values in a layer of the base: the width of the model's own head."""
    return shape_of(manifest)[1]


def depth_of(manifest: Manifest) -> int:
    """Layers of the base, as far as the names of what is adapted tell: the top one always is."""
    found = (_LAYER.search(name) for name in manifest.names if not name.startswith("head."))
    return max((1 + int(match[1]) for match in found if match), default=_MANY)


def shape_of(manifest: Manifest) -> tuple[int, int]:
    """Number of labels so far, and values in a layer of the base.

    Raises:
        RunError: the model has no head, so no labels.
    """
    for name, shape in zip(manifest.names, manifest.shapes, strict=True):
        if name == "head.weight":
            return shape[0], shape[1]
    raise RunError(
        "a head in closed form needs a model with labels; this one has none. Use a classifier, or "
        "another continual method."
    )
