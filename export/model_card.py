"""The model card of an export: what it is, what it knows, what was promised, whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models.bases import EMBEDDED, PUBLIC_NAME
from ..server.gate import Check
from ..server.report_privacy import breaches, doubts, epsilon, noun
from ..server.units import DASH, count, percent
from .gate import Figures
from .merge import Origin

_UNKNOWN = "not stated by its owner"


def model_card(
    source: Origin,
    *,
    profile: str,
    base: str,
    licence: str,
    labels: Sequence[str],
    records: Mapping[str, int],
    figures: Figures,
    checks: Sequence[Check],
    files: Mapping[str, str],
) -> str:
    """Markdown with the front matter of a Hugging Face model card.

    Args:
        source: what was exported.
        profile: how it was made small.
        base: as the config names it.
        licence: of the export; empty where nobody said it.
        labels: that it answers with.
        records: held-out records by domain.
        figures: measured on the artefact.
        checks: of the gate.
        files: name -> SHA-256 of what lies beside the card.
    """
    public = PUBLIC_NAME if base == EMBEDDED else Path(base).name
    lines = [
        "---",
        "pipeline_tag: text-classification",
        f"base_model: {public}",
        f"license: {_front(licence.lower() or 'other')}",
        "tags: [perennial, federated-learning, onnx]",
        "---",
        "",
        f"# {source.report['run']}, exported as {profile}",
        "",
        f"{_origin(source)}. It tells {count(len(labels), 'label')} apart, of "
        f"{count(len(records), 'domain')}; base model {public}.",
        "",
        "## Use",
        "",
        "    perennial predict FOLDER texts.txt",
        "",
        "or any ONNX runtime: `input_ids` and `attention_mask` int64 [batch, tokens] from "
        "`tokenizer.json`, `logits` [batch, labels] in the order of `labels.json`.",
        "",
        "## Data",
        "",
        *_data(source, records),
        "",
        "## Accuracy by domain, on held-out records",
        "",
        "| domain | records | float32 | this file |",
        "|---|---|---|---|",
        *(
            f"| {_cell(name)} | {number} | {percent(before)} | {percent(now)} |"
            for name, (number, before, now) in figures.domains.items()
        ),
        "",
        "## Gate",
        "",
        *(f"- {c.what}: {c.words} ({'holds' if c.holds else 'FAILS'})" for c in checks),
        "",
        *_end(source, licence, "Apache-2.0" if base == EMBEDDED else f"that of {public}", files),
    ]
    return "\n".join(lines) + "\n"


def causal_card(
    source: Origin,
    *,
    chosen: str,
    base: str,
    licence: str,
    gap: float,
    files: Mapping[str, str],
) -> str:
    """The card of a model that generates text.

    Args:
        source: what was exported.
        chosen: its format.
        base: as the config names it.
        licence: of the export; empty where nobody said it.
        gap: how far what was written is from the merged model, as its format measures it.
        files: name -> SHA-256 of what lies beside the card.
    """
    packed = chosen.startswith("gguf")
    own = "any ONNX runtime; `perennial.export.generate` answers text"
    runtime = "llama.cpp" if packed else own
    measured = (
        "the largest share of a tensor's norm that packing lost"
        if packed
        else "the largest difference of a logit from the merged model's"
    )
    lines = [
        "---",
        "pipeline_tag: text-generation",
        f"base_model: {Path(base).name}",
        f"license: {_front(licence.lower() or 'other')}",
        f"tags: [perennial, federated-learning, {'gguf' if packed else 'onnx'}]",
        "---",
        "",
        f"# {source.report['run']}, exported as {chosen}",
        "",
        f"{_origin(source)}; base model {Path(base).name}. It runs under {runtime}.",
        "",
        "## Data",
        "",
        *list(_data(source, {}))[:2],
        "",
        "## What was checked",
        "",
        f"Read back after it was written: {gap:.2g} is {measured}.",
        "",
        *_end(source, licence, f"that of {Path(base).name}", files),
    ]
    return "\n".join(lines) + "\n"


def _end(source: Origin, licence: str, of_base: str, files: Mapping[str, str]) -> Iterator[str]:
    """What was promised, whose it is and what it consists of: the end of every card."""
    yield from ("## Privacy", "", *_privacy(source.report.get("privacy")), "")
    yield from ("## Licence", "")
    yield f"This model: {licence or _UNKNOWN}. Base model: {of_base}."
    yield from ("", "## Files", "", "| file | SHA-256 |", "|---|---|")
    yield from (f"| {name} | `{digest}` |" for name, digest in files.items())


def _cell(name: str) -> str:
    """A name as one cell of a table."""
    return " ".join(name.split()).replace("|", "\\|")


def _front(text: str) -> str:
    """A value of the front matter; a JSON string is one of YAML."""
    plain = text.replace("-", "").replace(".", "").isalnum()
    return text if plain else json.dumps(text, ensure_ascii=False)


def _origin(source: Origin) -> str:
    number = source.named.get("release")
    what = f"Release {number:04d}" if isinstance(number, int) else f"Run {source.report['run']}"
    return f"{what} of Perennial {source.report['version']}"


def _data(source: Origin, records: Mapping[str, int]) -> Iterator[str]:
    report = source.report
    private = bool(report.get("privacy"))
    told = [client["records"] for client in report["clients"] if client["rounds"]]
    number = sum(told) if told and None not in told else None
    trained = DASH if private or number is None else f"{number:,.0f}"
    yield f"- clients: {report['num_clients']}"
    yield f"- training records of the last round: {trained}"
    yield f"- held-out records: {sum(records.values()):,} of {', '.join(records)}"


def _privacy(block: Any) -> Iterator[str]:
    if not block:
        yield "No promise of privacy was made in training: what the weights tell of a record has "
        yield "no bound."
        return
    for unit in block["units"]:
        target, delta = unit.get("target"), unit.get("delta")
        bound = "" if target is None else f" of at most {target:g}"
        yield f"- for each {noun(unit)}: epsilon {epsilon(unit['epsilon'])}{bound} at delta "
        yield f"  {delta}, by the clients' ledgers, over the whole life of the model so far"
    for line in (*breaches(block), *doubts(block)):
        yield f"- {line}"
