"""What an update must share with the run that it goes on from, told before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..core import check
from ..core.check_continual import lasting, why_left_out
from ..core.config import Config
from ..core.errors import ConfigError, Fault, PerennialError
from ..server import releases
from ..server.release_differences import flat

_METHODS = "continual.methods"


def need_descent(config: Config, home: Path) -> None:
    """Check that an update leaves as they are what the release in service was learnt with.

    Without a release, or where its config cannot be read any more, nothing is said here: the run
    itself refuses what it cannot go on from.

    Args:
        config: of the update.
        home: with releases.

    Raises:
        ConfigError: something else is asked for, with each option that differs.
    """
    release = releases.in_service(home)
    if release is None:
        return
    try:
        before = check.read((release.folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PerennialError):
        return
    if faults := list(_faults(before, config, release.name)):
        raise ConfigError(faults)


def _faults(before: Config, after: Config, release: str) -> Iterator[Fault]:
    old, new = (dict(flat(lasting(config))) for config in (before, after))
    others = check.methods(before) != check.methods(after)
    if before.continual.name == after.continual.name and others:
        yield _methods(before, after, release)
        old, new = (
            {place: value for place, value in tree.items() if not place.startswith(_METHODS)}
            for tree in (old, new)
        )
    for place in dict.fromkeys((*old, *new)):
        if old.get(place) != new.get(place):
            yield Fault(
                place,
                f"must stay {_words(old, place)}, as in release {release}, which this update goes "
                f"on from; got {_words(new, place)}",
                "write it so, or begin anew in another [update] home",
            )


def _methods(before: Config, after: Config, release: str) -> Fault:
    """That other methods would be in force, and what in either config decided it."""
    old, new = check.methods(before), check.methods(after)
    parts = [f"must stay {_listed(old)}, as in release {release}, which this update goes on from"]
    parts.append(f"got {_listed(new)}")
    for config, where in ((after, "here"), (before, f"in release {release}")):
        parts += [f"{where}, without {why}" for why in why_left_out(config)]
    remedy = "write what leaves them out as it was"
    if not why_left_out(after):
        remedy = f"name {', '.join(old)} under [[continual.methods]]"
    return Fault(_METHODS, "; ".join(parts), f"{remedy}, or begin anew in another [update] home")


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) > 1 else f"{names[0]} alone"


def _words(tree: dict[str, object], place: str) -> str:
    return repr(tree[place]) if place in tree else "left out"
