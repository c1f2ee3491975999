"""Attack drill, second half: the words of a record out of one step's update.

The hardest case for a client: one record, one step of plain gradient descent, every layer adapted
and both of LoRA's factors trained.
With fewer layers the first adapted one reads activations that depend on the whole text; a token's
vector is then not known beforehand, and the attacker asks another question instead: which of the
texts that he knows was it?
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core import plugins
from ..core.config import Config
from ..core.parts import Encoded, Model, Privatizer
from ..core.values import Records, Vector
from ..privacy import attacks
from .trial import Trial, open_trial
from .views import SEALED, SUM, View, privatizers, sealed

Say = Callable[[str], None]
Basis = npt.NDArray[np.float32]

_STEP = {
    "optimizer": "sgd",
    "lr": 1.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
}
_CLIENTS = 6
_EXAMPLES = ("sample",)
"""Data whose texts belong to nobody, so that a report may show one."""


_PIECES = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read back: one view.

    Attributes:
        view: of the updates.
        tokens: share of the records' tokens that were read, 0..1; None where the first
            adapted layer reads no tokens.
        named: share of the records picked out of `candidates` known texts, 0..1.
        example: a record's text as read; empty where no text may be shown.
    """

    view: View
    tokens: float | None
    named: float
    example: str = ""


@dataclass(frozen=True, slots=True)
class Inversion:
    """What was read back under every view.

    Attributes:
        readings: one per view.
        records: how many were attacked.
        candidates: texts that the attacker knows.
        frozen: whether the config keeps A still, so that this attack has nothing to read.
        example: the text of the record shown; empty where none may be.
    """

    readings: tuple[Reading, ...]
    records: int
    candidates: int
    frozen: bool
    example: str = ""


def inversion(trial: Trial, records: int, candidates: int, say: Say) -> Inversion:
    """What an attacker reads out of single steps on single records.

    Args:
        trial: of the config; texts are named by its own layers.
        records: how many are attacked.
        candidates: texts that the attacker knows, those of the records among them.
        say: gets a line now and then.
    """
    pool = trial.shard + trial.others + trial.rest
    chosen = pool.take(trial.rng("inversion").permutation(len(pool))[:candidates])
    records = min(records, len(chosen))
    frozen = not any(name.endswith("lora_A") for name in trial.trainable)
    trial = _all_tensors(trial)
    deep = _all_tensors(_all_layers(trial.config) or trial)
    say(f"drill: {records} single records, one step each")
    words = _Attack(deep, chosen, records)
    readable = attacks.reads_embeddings(deep.model, words.names[0], words.encoded.batch(_one(0)))
    shown = trial.config.data.name in _EXAMPLES
    read = words.read(say) if readable else {}
    own = words if deep.model is trial.model else _Attack(trial, chosen, records)
    named = own.named(say)
    common = frozenset.intersection(*map(frozenset, words.truth)) if readable else frozenset()
    said = _words(deep.model, pool) if shown and readable else {}
    example = min(range(records), key=lambda i: abs(len(chosen.texts[i]) - 40))
    readings = tuple(
        Reading(
            view,
            _mean(
                attacks.share_found(truth, guess, common)
                for truth, guess in zip(words.truth, read[view], strict=True)
            )
            if readable
            else None,
            named[view],
            attacks.read_back([t for t in read[view][example] if t not in common], said)
            if said
            else "",
        )
        for view in named
    )
    return Inversion(readings, records, len(chosen), frozen, chosen.texts[example] if said else "")


class _Attack:
    """Updates of single records under every view, and what the first adapted layer reads.

    Attributes:
        names: of the factors that read the first adapted layer's input.
        truth: the tokens of each attacked record; empty where activations are cached.
        encoded: all candidates; the first are the attacked.
    """

    def __init__(self, trial: Trial, chosen: Records, records: int) -> None:
        self._trial = trial
        trial.model.load(trial.start)
        self.encoded = trial.model.encode(chosen)
        self.names = attacks.first_factors(
            trial.model, trial.trainable, self.encoded.batch(_one(0))
        )
        tokens = [attacks.tokens_of(self.encoded.batch(_one(i))) for i in range(records)]
        self.truth = [[int(t) for t in ids[0]] for ids in tokens if ids is not None]
        self._bases = self._spaces(records)
        trial.model.load(trial.start)

    def _spaces(self, records: int) -> dict[tuple[View, int], Basis]:
        found: dict[View, list[Vector]] = {}
        for view, privatizer in privatizers(self._trial).items():
            found[view] = [self._step(privatizer, i) for i in range(records)]
        bare = next(iter(found.values()))
        count = min(max(2, self._trial.config.shards.num_clients), _CLIENTS, records)
        found[View(SUM, f"sum of {count}, no noise")] = [
            np.sum([bare[(i + k) % records] for k in range(count)], axis=0) for i in range(records)
        ]
        found[SEALED] = [sealed(update) for update in bare]
        return {
            (view, i): attacks.row_space(self._factors(update))
            for view, updates in found.items()
            for i, update in enumerate(updates)
        }

    def _step(self, privatizer: Privatizer, index: int) -> Vector:
        # Poisson sampling might leave the record out: the attacker is given that it was in.
        certain = replace(privatizer, batches=lambda *_: iter([_one(0)]), steps=lambda epochs: 1)
        table = self._trial.config.train.model_copy(update=_STEP)
        return self._trial.trained(_Single(self.encoded, index), certain, table)

    def _factors(self, update: Vector) -> list[Vector]:
        tensors = self._trial.model.manifest.unpack(update)
        return [tensors[name] for name in self.names]

    def read(self, say: Say) -> dict[View, list[list[int]]]:
        """The tokens read of each attacked record, by view."""
        say(f"drill: {attacks.vocabulary(self._trial.model)} tokens tried at every place")
        longest = max(map(len, self.truth))
        pattern = self.encoded.batch(_one(0))
        found = attacks.most_alike(self._trial.model, self.names[0], pattern, longest, self._bases)
        views: dict[View, list[list[int]]] = {}
        for (view, i), tokens in found.items():
            views.setdefault(view, []).append(tokens[: len(self.truth[i])])
        return views

    def named(self, say: Say) -> dict[View, float]:
        """Share of the attacked records whose text was told from the others, by view."""
        say(f"drill: {len(self.encoded)} known texts tried")
        model, name = self._trial.model, self.names[0]
        scores = {key: np.zeros(len(self.encoded)) for key in self._bases}
        for candidate in range(len(self.encoded)):
            vectors = attacks.inputs_of(model, name, self.encoded.batch(_one(candidate)))[0]
            for key, basis in self._bases.items():
                scores[key][candidate] = attacks.inside(vectors, basis).mean()
        views: dict[View, list[bool]] = {}
        for (view, i), score in scores.items():
            views.setdefault(view, []).append(int(score.argmax()) == i)
        return {view: _mean(hits) for view, hits in views.items()}


@dataclass(frozen=True, slots=True)
class _Single:
    """See `core.parts.Encoded`: one record of others."""

    encoded: Encoded
    index: int

    def __len__(self) -> int:
        return 1

    def batch(self, indices: npt.NDArray[np.intp]) -> Any:
        return self.encoded.batch(np.full(len(indices), self.index, np.intp))


def _all_layers(config: Config) -> Trial | None:
    """The trial with every layer adapted; None where it is the config's own."""
    build = plugins.find("models", config.model.name, Model)
    layers = inspect.signature(build).parameters.get("layers")
    if layers is None or config.model.options.get("layers", layers.default) == 0:
        return None
    return open_trial(config, layers=0)


def _all_tensors(trial: Trial) -> Trial:
    return replace(trial, trainable=frozenset(trial.model.parameters()))


def _words(model: Model, records: Records) -> dict[tuple[int, ...], str]:
    """Words of the records by their tokens, as far as a word has tokens of its own."""
    found = sorted({w for text in records.texts for w in (*text.split(), *_PIECES.findall(text))})
    label = model.labels[0] if model.labels else ""
    ids = tuple(map(str, range(len(found))))
    column = ("",) * len(found)
    encoded = model.encode(Records(ids, tuple(found), (label,) * len(found), column, column))
    rows = []
    for index in range(len(found)):
        tokens = attacks.tokens_of(encoded.batch(_one(index)))
        rows.append([] if tokens is None else [int(t) for t in tokens[0]])
    common = frozenset.intersection(*map(frozenset, rows))
    known: dict[tuple[int, ...], set[str]] = {}
    for word, row in zip(found, rows, strict=True):
        known.setdefault(tuple(t for t in row if t not in common), set()).add(word.lower())
    known.pop((), None)
    # Where most tokens stand for several words, text that is put together says nothing.
    if sum(len(words) > 1 for words in known.values()) * 2 > len(known):
        return {}
    return {tokens: min(words) for tokens, words in known.items()}


def _one(index: int) -> npt.NDArray[np.intp]:
    return np.array([index], np.intp)


def _mean(values: Any) -> float:
    found: Sequence[float] = list(values)
    return float(np.mean(found)) if found else 0.0
