"""A release or a run becomes an artefact: merged, one graph, made small, checked, put in place."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..core import check, plugins
from ..core.errors import DataError, ModelError, RunError
from ..core.files import write_atomically
from ..core.parts import Export
from ..core.values import Records
from ..data.stream import stream
from ..server.gate import Check
from ..server.releases import Signer
from . import artefact
from .artefact import LABELS, TOKENIZER, Artefact
from .classifier import Whole, whole
from .gate import Asked, Figures, bars_of, judge, measure
from .graph import OPSET, need_equal, write_graph
from .merge import Origin, Restored, need_same, restored, without_path, write_merged
from .model_card import model_card
from .predictor import Predictor, chances, open_tokenizer
from .session import Ids, open_session, padded, scores

KEPT = 0.95
"""Share of held-out texts of known labels that stay in scope, as in `continual.scope`."""

_LOOKED_AT = 64  # texts on which graph and model are compared
_STEM, _CARD, _ADAPTER, _MERGED = "model", "README.md", "adapter", "merged"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Held:
    """Records that were kept apart, of labels that the model knows.

    Attributes:
        test: what the gate asks.
        validation: what ranges and the scope are looked up on; the test records without any.
    """

    test: Records
    validation: Records


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an export.

    Attributes:
        artefact: in its place; None where the gate kept it out.
        figures: as measured.
        checks: of the gate.
    """

    artefact: Artefact | None
    figures: Figures
    checks: Sequence[Check]

    @property
    def holds(self) -> bool:
        """Whether all checks hold."""
        return all(check.holds for check in self.checks)


def export(
    source: Origin,
    target: Path | None,
    profile: str,
    say: Say,
    *,
    signer: Signer | None = None,
    with_merged: bool = False,
) -> Outcome:
    """Make an artefact of `source` and put it in place if it passes its gate.

    Args:
        source: a release or a run.
        target: folder of the artefact; None to measure and put nothing in place.
        profile: how the graph is made small; empty for that of the config.
        say: is told what is being done.
        signer: signs the artefact.
        with_merged: put the merged model beside it, in safetensors.

    Raises:
        PerennialError: it cannot be merged, written or measured; nothing was put in place.
    """
    say("merging")
    found = restored(source)
    if not found.model.labels_needed:
        raise ModelError(
            "a causal model is no classifier: it becomes gguf-q8_0, gguf-f16 or onnx-cache "
            "(perennial.export.causal_exports), not one of the profiles"
        )
    limits = found.config.export
    chosen = profile or limits.profile
    options = dict(limits.options) if chosen == limits.profile else {}
    how: Export = plugins.load("export", chosen, options, Export, "export")
    held = held_out(found)
    model = whole(found.model, found.answer)
    looked = held.test.take(spread(len(held.test), _LOOKED_AT))
    gaps = {"merge": need_same(found, model, looked.texts[:32])}
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "float32.onnx"
        say("writing the graph")
        write_graph(model, graph)
        tokenizer = Path(scratch) / TOKENIZER
        tokens = tokens_of(model, tokenizer, held.test)
        gaps["graph"] = need_equal(
            model, graph, [tokens[i] for i in spread(len(tokens), _LOOKED_AT)],
            found.logits(looked),
        )  # fmt: skip
        say(f"making it small: {chosen}")
        small = Path(scratch) / f"{_STEM}{how.suffix}"
        batches = Predictor(None, open_tokenizer(tokenizer), model.labels, 1.0)
        drawn = batches_of(batches.tokens(held.validation.texts), how.batches)
        how.write(graph, lambda: drawn, small)
        say(f"measuring on {len(held.test)} held-out records")
        asked = Asked(tokens, targets(held.test, model.labels), held.test.domains)
        session, reference = open_session(small), open_session(graph)
        sizes = (small.stat().st_size, graph.stat().st_size)
        figures = measure(session, reference, sizes, asked)
        checks = judge(figures, bars_of(how.bars, limits), sure=limits.sure)
        outcome = Outcome(None, figures, checks)
        if target is None or not outcome.holds:
            return outcome
        threshold = _threshold(session, batches, held.validation)

        def fill(folder: Path) -> Mapping[str, Any]:
            shutil.copyfile(small, folder / small.name)
            shutil.copyfile(tokenizer, folder / TOKENIZER)
            write_atomically(folder / LABELS, json.dumps(model.labels, indent=1))
            shutil.copytree(source.adapter, folder / _ADAPTER)
            without_path(folder / _ADAPTER / "adapter_config.json", found.config)
            if with_merged:
                write_merged(found, model, folder / _MERGED)
            _write_card(folder, source, found, chosen, held, outcome)
            return {
                **source.named,
                "profile": chosen,
                "options": options,
                "model": small.name,
                "head": model.head,
                "max_length": model.max_length,
                "threshold": threshold,
                "base": found.model.identity(),
                "opset": OPSET,
                "versions": {
                    name: version(name) for name in ("perennial-fl", "onnxruntime", "tokenizers")
                },
                "gaps": gaps,
                "figures": figures.pack(),
                "checks": [check.pack() for check in checks],
            }

        say(f"writing {target}")
        return Outcome(artefact.place(target, fill, signer), figures, checks)


def held_out(found: Restored) -> Held:
    """Held-out records of the labels that the model knows.

    Raises:
        DataError: the data cannot be read, or holds no test record of these labels.
    """
    config, labels = found.config, frozenset(found.model.labels)
    splits = stream(check.build(config, "data").read(), config.domains).splits
    test, validation = (
        part.where(lambda i, part=part: part.targets[i] in labels)  # type: ignore[misc]
        for part in (splits.test, splits.validation)
    )
    if not len(test):
        raise DataError(
            "what is exported is measured on test records, and the config's data has none of the "
            "model's labels; name some with --set data.test=FILE"
        )
    return Held(test, validation if len(validation) else test)


def tokens_of(model: Whole, path: Path, records: Records) -> list[list[int]]:
    """Write the tokenizer by itself; the ids of the texts, which must be those of the base's own.

    Raises:
        ModelError: the base has no tokenizer of that kind, or its ids are others.
    """
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            "the base's tokenizer must be a fast one to work without transformers; this one is "
            f"{type(model.tokenizer).__name__}. Use a base that has tokenizer.json."
        )
    backend.save(str(path))
    own = open_tokenizer(path)
    own.no_padding()
    own.enable_truncation(model.max_length)
    own.save(str(path))
    texts = list(records.texts)
    found = [encoding.ids for encoding in own.encode_batch(texts)]
    told = model.tokenizer(texts, truncation=True, max_length=model.max_length)["input_ids"]
    if found != [list(ids) for ids in told]:
        raise RunError(
            "the tokenizer by itself must give the ids that the model was trained on; it gives "
            "others. This base's tokenizer cannot be exported."
        )
    return found


def targets(records: Records, labels: Sequence[str]) -> Any:
    """The index of each record's label [n]."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[target] for target in records.targets], np.intp)


def batches_of(tokens: Sequence[Sequence[int]], count: int) -> list[Mapping[str, Ids]]:
    """`count` batches of 32 texts, drawn from all over."""
    chosen = np.random.default_rng(0).permutation(len(tokens))[: 32 * count]
    return [
        padded([tokens[i] for i in chosen[start : start + 32]])
        for start in range(0, len(chosen), 32)
    ]


def _threshold(session: Any, predictor: Predictor, records: Records) -> float:
    """The out-of-scope score that `KEPT` of the records stay within, 0..1."""
    logits = scores(session, predictor.tokens(records.texts), 32)
    return float(np.quantile(1.0 - chances(logits).max(1), KEPT))


def spread(count: int, most: int) -> list[int]:
    """At most `most` positions of `count`, from all over."""
    return list(range(0, count, max(1, -(-count // most))))


def _write_card(
    folder: Path,
    source: Origin,
    found: Restored,
    profile: str,
    held: Held,
    outcome: Outcome,
) -> None:
    records = {name: held.test.domains.count(name) for name in dict.fromkeys(held.test.domains)}
    text = model_card(
        source,
        profile=profile,
        base=str(found.config.model.options.get("base", "minilm")),
        licence=found.config.export.licence,
        labels=found.model.labels,
        records=records,
        figures=outcome.figures,
        checks=outcome.checks,
        files=artefact.hashes(folder),
    )
    write_atomically(folder / _CARD, text)
