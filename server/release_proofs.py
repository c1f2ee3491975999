"""Whether a release, and the line of releases it came from, are what their signer released."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from .releases import CARD, SIGNATURE, Release, damage, read


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count.

    Attributes:
        keys: public keys of those who may sign.
        signed: (public key, signature, text) -> whether the signature is that of the key.
    """

    keys: frozenset[str]
    signed: Callable[[str, str, bytes], bool]


def verify(home: Path, number: int, trust: Trust) -> list[str]:
    """What is wrong with a release and its line of descent; nothing where all holds.

    Args:
        home: with the releases.
        number: of the release.
        trust: in whom.
    """
    faults, child = list[str](), None
    wanted: int | None = number
    while wanted is not None:
        try:
            release = read(home, wanted)
        except DataError as error:
            return [*faults, str(error)]
        if child is not None and child.card["parent"]["digest"] != release.digest:
            faults.append(f"release {release.name} is not the parent that {child.name} was cut of")
        faults += flaws(release, trust)
        parent, child = release.card.get("parent"), release
        wanted = _parent_number(parent, wanted)
        if parent is not None and wanted is None:
            faults.append(f"release {release.name} names no earlier release as its parent")
    return faults


def flaws(release: Release, trust: Trust) -> list[str]:
    """What is wrong with one release by itself; nothing where files and signature hold."""
    return damage(release) + _forged(release, trust)


def _parent_number(parent: Any, below: int) -> int | None:
    number = parent.get("number") if isinstance(parent, Mapping) else None
    return number if isinstance(number, int) and 0 < number < below else None


def _forged(release: Release, trust: Trust) -> list[str]:
    try:
        mark = json.loads((release.folder / SIGNATURE).read_bytes())
        signer, signature = str(mark["signer"]), str(mark["signature"])
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{release.name}/{SIGNATURE} cannot be read"]
    if not trust.signed(signer, signature, (release.folder / CARD).read_bytes()):
        return [f"{release.name}/{CARD} does not bear a valid signature"]
    if signer not in trust.keys:
        return [f"release {release.name} is signed by {signer[:16]}..., who is not trusted"]
    return []
