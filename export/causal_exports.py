"""A causal release becomes a file that other runtimes run: GGUF, or ONNX with a cache."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, Fault
from ..core.files import write_atomically
from ..server.releases import Signer
from . import artefact, gguf
from . import causal as onnx_cache
from .artefact import Artefact
from .exporting import Say
from .generate import GRAPH
from .merge import Origin, causal, restored
from .model_card import causal_card

PACKINGS = {"gguf-q8_0": "Q8_0", "gguf-f16": "F16"}
ONNX = "onnx-cache"
FORMATS = (*PACKINGS, ONNX)
"""What a causal release becomes; the first is the default."""

KIND = "causal"
"""In the card of an artefact that generates text, and answers no labels."""


def export_causal(
    source: Origin, target: Path, chosen: str, say: Say, signer: Signer | None = None
) -> Artefact:
    """Merge a causal release in float32, write it as `chosen`, and put it in place.

    What is written is read back and held against the merged model before it is put in place: a
    GGUF file tensor by tensor, a graph by its logits and its greedy tokens.

    Args:
        source: a release or a run of a causal model.
        target: folder of the artefact.
        chosen: one of `FORMATS`.
        say: is told what is being done.
        signer: signs the artefact.

    Raises:
        PerennialError: no such format, or the model cannot be written in it; nothing was put in
            place.
    """
    if chosen not in FORMATS:
        problem = f"{chosen!r} is no format of a causal model"
        raise ConfigError([Fault("export.profile", problem, f"allowed: {', '.join(FORMATS)}")])
    say("merging")
    found = restored(source)
    model, tokenizer = causal(found)

    def fill(folder: Path) -> Mapping[str, Any]:
        say(f"writing {chosen} and reading it back")
        told, name = _written(model, tokenizer, folder, chosen)
        text = causal_card(
            source,
            chosen=chosen,
            base=str(found.config.model.options.get("base", "")),
            licence=found.config.export.licence,
            gap=told,
            files=artefact.hashes(folder),
        )
        write_atomically(folder / "README.md", text)
        return {
            **source.named,
            "kind": KIND,
            "profile": chosen,
            "model": name,
            "base": found.model.identity(),
            "threshold": None,
            "max_length": getattr(model.config, "max_position_embeddings", None),
            "versions": {"perennial-fl": version("perennial-fl")},
            "gaps": {chosen: told},
        }

    return artefact.place(target, fill, signer)


def _written(model: Any, tokenizer: Any, folder: Path, chosen: str) -> tuple[float, str]:
    """How far what was written is from the model, and the name of its file."""
    if chosen == ONNX:
        made = onnx_cache.write(model, tokenizer, folder / "graph")
        return made.apart, f"graph/{GRAPH}"
    packed = gguf.write(model, tokenizer, folder / "model.gguf", PACKINGS[chosen])
    return packed.lost, "model.gguf"
