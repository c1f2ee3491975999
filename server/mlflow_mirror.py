"""Releases as versions of a registered model in MLflow: a mirror for those who look there.

The folder of releases is what counts; the mirror only follows it, may be thrown away and is made
whole again by the next call. A version bears the release's number and digest, and the alias
`in_service` stands at the one that is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import RunError
from . import releases
from .releases import Release

ALIAS = "in_service"
"""Of the version whose release is in service."""

_FILES = "mlruns"
_QUIET = {"GIT_PYTHON_REFRESH": "quiet", "MLFLOW_DISABLE_TELEMETRY": "true"}


def mirror(home: Path, uri: str, name: str) -> list[int]:
    """Bring the registered model `name` at `uri` up to the releases of `home`; numbers of new ones.

    Args:
        home: with the releases.
        uri: of MLflow's tracking server, or of its database or folder.
        name: of the registered model; made if missing.

    Raises:
        RunError: MLflow is not installed, or refuses.
    """
    # A tracking server says where files go; without one MLflow would put them where we stand.
    files = None if uri.startswith(("http", "databricks")) else (home / _FILES).resolve().as_uri()
    with _client(uri) as client:
        return _followed(client, home, name, files)


@contextmanager
def _client(uri: str) -> Iterator[Any]:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise RunError(
            "a mirror needs MLflow, which is not installed: pip install 'perennial-fl[mlflow]'"
        ) from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"the MLflow registry at {uri} cannot be had, or refused: {error}"
        ) from error


def _followed(client: Any, home: Path, name: str, files: str | None) -> list[int]:
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name, description="Releases of a federated adapter.")
    there = {
        version.tags.get("digest"): version.version
        for version in client.search_model_versions(f"name = '{name}'")
    }
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name, files)
    fresh = []
    for release in releases.all_of(home):
        if release.digest not in there:
            there[release.digest] = _version(client, number, release, name)
            fresh.append(release.number)
    present = releases.in_service(home)
    if present is not None:
        client.set_registered_model_alias(name, ALIAS, there[present.digest])
    return fresh


def _version(client: Any, experiment: str, release: Release, name: str) -> str:
    card = release.card
    tags = {
        "digest": release.digest,
        "release": release.name,
        "parent": str((card["parent"] or {}).get("number", "")),
        "adapter_hash": str(card.get("adapter_hash", "")),
        "base": str(card.get("base", "")),
    }
    run = client.create_run(experiment, run_name=f"release {release.name}", tags=tags)
    id_ = run.info.run_id
    for key, value in _figures(card).items():
        client.log_metric(id_, key, value)
    client.log_artifacts(id_, str(release.folder), "release")
    client.set_terminated(id_)
    source = f"{run.info.artifact_uri}/release"
    return str(client.create_model_version(name, source, id_, tags=tags).version)


def _figures(card: Mapping[str, Any]) -> dict[str, float]:
    found = {f"accuracy.{domain}": rate for domain, rate in card.get("accuracy", {}).items()}
    found |= {key: card.get(key) for key in ("epsilon", "clients", "labels")}
    return {_plain(key): float(v) for key, v in found.items() if isinstance(v, int | float)}


def _plain(key: str) -> str:
    """As MLflow allows: letters, digits and a few marks."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in key)
