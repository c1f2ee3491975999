"""`perennial export`: a release or a run becomes one small file that is held against its gate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core import check
from ..core.errors import DataError, RunError
from ..server import releases
from ..server.release_proofs import flaws
from . import exports
from .overrides import override
from .releasing import signer, trust
from .runs import find

if TYPE_CHECKING:
    from ..export.artefact import Artefact
    from ..export.exporting import Outcome
    from ..export.merge import Origin
    from ..server.releases import Release, Signer

_CAUSAL = "gguf-q8_0"  # what a causal release becomes when nobody says

GATED_OUT = 3
"""Exit code of an export that did not pass its gate."""


def export(
    target: str,
    profile: str,
    home: Path,
    folder: Path,
    settings: Sequence[str],
    *,
    merged: bool,
    as_json: bool,
) -> int:
    """Export a release or a run; the exit code: 0, or 3 where the gate kept it out.

    Args:
        target: a release's number or folder, or a run's name or folder; empty for the release in
            service.
        profile: empty for that of the config.
        home: of releases.
        folder: of runs.
        settings: changes of the config, such as where test records lie.
        merged: put the merged model beside it.
        as_json: print the outcome as JSON.

    Raises:
        PerennialError: there is nothing to export, or it cannot be exported.
    """
    need_extra()
    from ..export.exporting import export as start

    release = exports.release_of(target, home)
    if release is not None:
        _need_sound(release)
    source = _source(release, target, folder, settings)
    config = check.read(source.text)
    causal = config.model.name == "causal_lm"
    chosen = profile or (_CAUSAL if causal else config.export.profile)
    if release is None:
        place, who = exports.of_run(source.folder, chosen), None
    else:
        place, who = exports.of_release(release, chosen), _signer(release)
    if causal:
        from ..export.causal_exports import export_causal

        made = export_causal(source, place, chosen, _say(quiet=as_json), who)
        return _tell_causal(made, as_json=as_json)
    outcome = start(source, place, chosen, _say(quiet=as_json), signer=who, with_merged=merged)
    return _tell(outcome, place, as_json=as_json)


def need_extra() -> None:
    """Raise where the extra `export` is not installed.

    Raises:
        RunError: it is not.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not find_spec(name)]
    if missing:
        raise RunError(
            f"exports need the extra `export`, of which {', '.join(missing)} is not installed: "
            "install perennial-fl[export]"
        )


def _need_sound(release: Release) -> None:
    """Raise where a release is not the one that was released: its export would be signed anew."""
    faults = flaws(release, trust(exports.home_of(release) / f"{releases.KEY}.pub"))
    if faults:
        raise DataError(
            f"release {release.name} does not hold: {'; '.join(faults)}. Put the folder back from "
            "a backup, or export another release."
        )


def _source(release: Release | None, target: str, folder: Path, settings: Sequence[str]) -> Origin:
    from ..export.merge import CONFIG, origin

    if release is None:
        found = find(target, folder)
        named: dict[str, Any] = {"run": found.name}
    else:
        found = release.folder
        named = {"release": release.number, "digest": release.digest}
    try:
        text = (found / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{found} must hold {CONFIG}, the config that it was trained with: {error}"
        ) from error
    return origin(found, override(text, list(settings)), named)


def _signer(release: Release) -> Signer:
    return signer(exports.home_of(release))


def _say(*, quiet: bool) -> Any:
    def say(text: str) -> None:
        if not quiet:
            typer.echo(f"export: {text}", err=True)

    return say


def _tell_causal(made: Artefact, *, as_json: bool) -> int:
    if as_json:
        told = {"exported": True, "folder": str(made.folder), "gaps": made.card["gaps"]}
        typer.echo(json.dumps(told))
    else:
        typer.echo(f"exported to {made.folder}: {made.model.name}")
    return 0


def _tell(outcome: Outcome, place: Path, *, as_json: bool) -> int:
    if as_json:
        told = {
            "exported": outcome.artefact is not None,
            "folder": str(place) if outcome.artefact else None,
            "figures": outcome.figures.pack(),
            "checks": [check.pack() for check in outcome.checks],
        }
        typer.echo(json.dumps(told))
    else:
        for item in outcome.checks:
            typer.echo(f"  {'holds' if item.holds else 'FAILS'}  {item.what}: {item.words}")
        if outcome.artefact is not None:
            typer.echo(f"exported to {place}; use it with: perennial predict {place}")
        else:
            failed = ", ".join(item.what for item in outcome.checks if not item.holds)
            typer.echo(
                f"not exported: {failed}. Take another profile (--profile), or, where the loss is "
                "one you can bear, another bar in [export]."
            )
    return 0 if outcome.artefact is not None else GATED_OUT
