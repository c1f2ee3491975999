"""Where an update begins: the release in service and the run behind it, or what is amiss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from . import checkpoint, releases
from .gate import learnt
from .lessons import FOLDER as KNOWLEDGE
from .releases import Release
from .run import LINE

FOLDER = "updates"
COPIED = ("events.jsonl", LINE)
"""Files of a run that one which goes on from it begins with."""


def need_sound(home: Path) -> None:
    """Whether an update can begin at the release in service, before anything is trained.

    Raises:
        DataError: a file of the release, or of the run behind it, is missing or damaged.
    """
    present = releases.in_service(home)
    if present is None:
        return
    if faults := releases.damage(present):
        raise DataError(
            f"{faults[0]}. Restore {present.folder} from a backup, or roll back, before the next "
            "update."
        )
    report_of(present)
    behind(home, present)


def need_newest(home: Path, parent: Release) -> None:
    """Whether no other update was made in the place of this release.

    Clients know the domains of a line by their places: where two releases learnt different domains
    at one place, what a client counts for the older one is what it gave for the younger.

    Raises:
        DataError: another release was cut from the same parent later.
    """
    for release in releases.all_of(home):
        if release.number > parent.number and release.card["parent"] == parent.card["parent"]:
            raise DataError(
                f"release {parent.name} may serve, but not be updated: release {release.name} was "
                "made in its place, and clients' statistics are of that one now. Promote "
                f"{release.name} or its parent, and update from there."
            )


def behind(home: Path, parent: Release) -> tuple[Path, int]:
    """The run behind a release, and the index of the domain with which it ended.

    Raises:
        DataError: something of it is missing or damaged.
    """
    run = home / FOLDER / str(parent.card.get("update"))
    saved = checkpoint.newest(run / "checkpoints") if run.is_dir() else None
    if saved is None or saved.state.round:
        raise DataError(
            f"{run} must hold the run behind the release in service, ended with its domain; it "
            "does not. Put it back from a backup, or roll back to a release whose run is there."
        )
    domain = saved.state.domain
    for path in (run / KNOWLEDGE / f"{domain:04d}.npz", *(run / name for name in COPIED)):
        if not path.is_file():
            raise DataError(f"{path} is missing; put it back from a backup")
    return run, domain


def report_of(release: Release) -> dict[str, Any]:
    """The report of the run behind a release.

    Raises:
        DataError: it is missing or damaged.
    """
    path = release.folder / "report.json"
    try:
        found = json.loads(path.read_bytes())
        learnt(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} must be the report of the release: {error!r}. Restore it."
        ) from error
    return dict(found)
