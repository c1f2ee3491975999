"""From the files of a release or a run to one model in float32, and proof that it is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ..core import check
from ..core.config import Config
from ..core.errors import DataError, ModelError, RunError
from ..core.files import write_atomically
from ..core.parts import Answer, Model
from ..core.values import Records, Vector
from ..models.bases import EMBEDDED, PUBLIC_NAME
from ..models.merged import merged, restore
from ..server.report_events import HEAD
from .classifier import Whole

PARITY = 1e-4
"""How far a merged encoder's hidden states may be from those through the adapter."""

_REPORTED = {"run", "version", "clients", "num_clients"}  # what an export reads of a report

ADAPTER, ANSWER, REPORT, CONFIG = "adapter", "answer.npy", "report.json", "config.toml"


@dataclass(frozen=True, slots=True)
class Origin:
    """What is exported.

    Attributes:
        folder: of a release or a run: `adapter/`, `config.toml`, `report.json`.
        text: the config that it was trained with, with what the user changed since.
        report: of the run.
        named: what the artefact's card says of it, such as a release's number and digest.
    """

    folder: Path
    text: str
    report: Mapping[str, Any]
    named: Mapping[str, Any]

    @property
    def adapter(self) -> Path:
        """Folder of the adapter in PEFT's own format."""
        return self.folder / ADAPTER


@dataclass(frozen=True, slots=True)
class Restored:
    """A model as it was released.

    Attributes:
        config: that it was trained with.
        model: holds the adapter.
        answer: who answers in its place; None where its own head does.
    """

    config: Config
    model: Model
    answer: Answer | None

    def logits(self, records: Records) -> Vector:
        """Scores of the labels as the run evaluates them, float32 [n, labels]."""
        if self.answer is not None:
            return self.answer.logits(records)
        asked = replace(records, targets=(self.model.labels[0],) * len(records))
        return self.model.logits(self.model.encode(asked), 32)


def origin(folder: Path, text: str, named: Mapping[str, Any]) -> Origin:
    """What lies in the folder of a release or of a run.

    Raises:
        DataError: it holds no report, or no adapter: the run has not ended.
    """
    try:
        report = json.loads((folder / REPORT).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{folder} must hold {REPORT} of a run that has ended a domain: {error}"
        ) from error
    if not isinstance(report, dict) or not set(report) >= _REPORTED:
        raise DataError(
            f"{folder / REPORT} must be the report of a run, with {', '.join(sorted(_REPORTED))}; "
            "it is not. Make it anew with: perennial report RUN"
        )
    if not (folder / ADAPTER).is_dir():
        raise DataError(f"{folder} holds no {ADAPTER}/; export a run that has ended, or a release")
    return Origin(folder, text, report, named)


def restored(source: Origin) -> Restored:
    """The model of `source`, with its adapter and whoever answers in its place.

    Raises:
        PerennialError: config, base and adapter do not fit each other, or a file is damaged.
    """
    config = check.read(source.text)
    model: Model = check.build(config, "model")
    told: Any = model
    if not hasattr(getattr(told, "tokenizer", None), "save_pretrained"):
        raise ModelError(
            f"[model] {config.model.name!r} cannot be exported: it has no tokenizer of its own "
            "that could be handed on; encoder_classifier and causal_lm have"
        )
    restore(model, source.adapter, (source.report.get("model") or {}).get("identity"))
    if not model.labels_needed:
        return Restored(config, model, None)
    told.forget_cut()
    answer = _answer(config, model, source.adapter / ANSWER)
    by = [one for one in source.report.get("answered_by") or () if one is not None]
    if answer is None and by[-1:] == [HEAD]:
        raise ModelError(
            f"{source.adapter / ANSWER} is missing, and it answered in the run, not the adapter's "
            "own head; restore the folder"
        )
    return Restored(config, model, answer)


def causal(found: Restored) -> tuple[Any, Any]:
    """A causal model with its adapter merged in, float32, and its tokenizer.

    Raises:
        ModelError: it is none, or its base is quantised.
    """
    if found.model.labels_needed:
        raise ModelError("this release classifies; it is no causal model")
    told: Any = found.model
    return merged(told.module), told.tokenizer


def need_same(found: Restored, whole: Whole, texts: Sequence[str]) -> float:
    """The largest difference between merged and adapted encoder, on `texts`.

    Raises:
        RunError: it is larger than `PARITY`.
    """
    encoders: Any = whole.module
    if "merged" not in encoders.encoders or not texts:
        return 0.0
    adapted: Any = found.model.module.encoder
    batch = whole.tokenizer(
        list(texts),
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=whole.max_length,
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    adapted.eval()
    with torch.no_grad():
        one = encoders.encoders["merged"](**inputs).last_hidden_state
        other = adapted(**inputs).last_hidden_state
    seen = inputs["attention_mask"].bool()
    gap = float((one - other)[seen].abs().max())
    if not gap <= PARITY:
        raise RunError(
            f"the merged model must be within {PARITY:g} of the adapted one; it is {gap:.3g} away. "
            "The adapter's values are too large for float32: look at the run's losses."
        )
    return gap


def write_merged(found: Restored, whole: Whole, folder: Path) -> None:
    """Write the merged encoder in Hugging Face format, its tokenizer and its head.

    Args:
        found: the model as it was released.
        whole: of it.
        folder: made; `model.safetensors`, `config.json`, the tokenizer, `head.safetensors`.
    """
    folder.mkdir(parents=True)
    encoder = merged(found.model.module.encoder)
    encoder.save_pretrained(folder, safe_serialization=True)
    whole.tokenizer.save_pretrained(folder)
    head: Any = found.model.module.head
    tensors = {"weight": head.weight, "bias": head.bias}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "head.safetensors")
    write_atomically(folder / "labels.json", json.dumps(whole.labels, indent=1))
    _without_paths(folder / "config.json")


def without_path(path: Path, config: Config) -> None:
    """Have PEFT's own config name the base as others know it, not by where it lay here."""
    if not path.exists():
        return
    base = str(config.model.options.get("base", EMBEDDED))
    told = json.loads(path.read_bytes())
    told["base_model_name_or_path"] = PUBLIC_NAME if base == EMBEDDED else Path(base).name
    write_atomically(path, json.dumps(told, indent=1, sort_keys=True))


def _without_paths(path: Path) -> None:
    """Drop what a config says of where the base lay on this machine."""
    told = json.loads(path.read_bytes())
    told.pop("_name_or_path", None)
    write_atomically(path, json.dumps(told, indent=1, sort_keys=True))


def _answer(config: Config, model: Model, path: Path) -> Answer | None:
    if not path.exists():
        return None
    try:
        head = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; restore the release") from error
    answer = check.build(config, "continual").answer
    if answer is None:
        raise ModelError(
            f"{path} answers in the place of the head, and no method of [continual] can read it; "
            "use the config that the release was made with"
        )
    found: Answer = answer(head, model, model.labels)
    return found
