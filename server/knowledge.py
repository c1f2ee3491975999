"""What the server keeps of all domains so far, on disk: one file for each domain that begins.

It may be far larger than a checkpoint (the sums of a wide analytic head have hundreds of MB) and
changes once a domain, so it lies beside the checkpoints and not in them.
"""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import RunError
from ..core.files import sync_folder
from ..core.parts import Kept

_KEPT = 2  # that of the domain being learnt, and the one before it
_DAMAGED = (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError, TypeError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known when a domain begins.

    Attributes:
        kept: of the continual method.
        counted: by node, the domains at whose end it was counted.
    """

    kept: Kept = field(default_factory=dict)
    counted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def save(folder: Path, domain: int, knowledge: Knowledge, stamp: str) -> None:
    """Write what is known when `domain` begins, synced, and drop all but the newest two files.

    Args:
        folder: made if missing.
        domain: index of the domain that begins.
        knowledge: all of it is written.
        stamp: a hash of what it belongs to.

    Raises:
        RunError: it cannot be written; the files are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(knowledge.kept)
    counted = [[node, *domains] for node, domains in sorted(knowledge.counted.items())]
    head = json.dumps({"domain": domain, "stamp": stamp, "names": names, "counted": counted})
    arrays = {f"kept.{i}": knowledge.kept[name] for i, name in enumerate(names)}
    path = folder / f"{domain:04d}.npz"
    fresh = folder / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with fresh.open("xb") as file:  # straight to the file: a copy in memory may be too much
            np.savez(file, head=np.array(head), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise RunError(
            f"{path} must be written at the end of a domain; it cannot: {error}. Make room and "
            "resume the run: the domain's end is asked again, and nothing is lost."
        ) from error
    sync_folder(folder)
    for old in sorted(folder.glob("*.npz"))[:-_KEPT]:
        old.unlink()


def load(folder: Path, domain: int, stamp: str) -> Knowledge:
    """What was known when `domain` began; nothing for the first domain of a run.

    Raises:
        RunError: the file is missing, damaged, or belongs to something else.
    """
    path = folder / f"{domain:04d}.npz"
    if not path.exists() and not domain:
        return Knowledge()
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            kept = {name: file[f"kept.{i}"] for i, name in enumerate(head["names"])}
        if (head["domain"], head["stamp"]) != (domain, stamp):
            raise ValueError(f"it is of domain {head['domain']}, stamp {head['stamp']}")
        counted = {int(node): tuple(map(int, domains)) for node, *domains in head["counted"]}
    except _DAMAGED as error:
        raise RunError(
            f"{path} must hold what the run learnt before domain {domain}: {error}. Put it back "
            "from a backup, or start the run anew."
        ) from error
    return Knowledge(kept, counted)
