"""Where exports lie: beside the releases of a home, or inside a run's folder. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import DataError
from ..server import releases
from ..server.releases import Release

FOLDER = "exports"
"""Folder of exports: below a home, one for each release; or in a run's folder."""


def release_of(target: str, home: Path) -> Release | None:
    """The release that `target` names; None where it names something else.

    Args:
        target: a number or a release's folder; empty for the release in service.
        home: of releases.

    Raises:
        DataError: there is no such release.
    """
    if not target:
        present = releases.in_service(home)
        if present is None:
            raise DataError(f"no release of {home} is in service; name one by its number, or a run")
        return present
    if target.isascii() and target.isdigit():
        return releases.read(home, int(target))
    folder = Path(target).resolve()
    if (folder / releases.CARD).is_file() and folder.parent.name == releases.FOLDER:
        return releases.read(folder.parent.parent, int(folder.name))
    return None


def home_of(release: Release) -> Path:
    """The home that a release lies in."""
    return release.folder.parent.parent


def of_release(release: Release, profile: str) -> Path:
    """Folder of a release's export."""
    return home_of(release) / FOLDER / release.name / profile


def of_run(run: Path, profile: str) -> Path:
    """Folder of a run's export."""
    return run / FOLDER / profile
