"""What an update must share with the run that it goes on from, told before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..core import check
from ..core.check_continual import LASTING
from ..core.config import Config
from ..core.errors import ConfigError, Fault, PerennialError
from ..server import releases
from ..server.release_differences import flat


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
    old, new = (
        dict(flat(c.model_dump(mode="json", include=set(LASTING)))) for c in (before, after)
    )
    for place in dict.fromkeys((*old, *new)):
        if old.get(place) != new.get(place):
            yield Fault(
                place,
                f"must stay {_words(old, place)}, as in release {release}, which this update goes "
                f"on from; got {_words(new, place)}",
                "write it so, or begin anew in another [update] home",
            )


def _words(tree: dict[str, object], place: str) -> str:
    return repr(tree[place]) if place in tree else "left out"
