"""`perennial simulate`: a run folder, a log, a display that follows the events, the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core import check
from ..core.errors import DataError, RunError, StoppedError
from ..core.files import write_atomically
from ..core.log import logged
from .display import Display, Mode
from .folders import fresh
from .runs import find


def start(text: str, resume: str, *, quiet: bool, json: bool) -> None:
    """Start the run in `text`, or go on with the run `resume`.

    Raises:
        PerennialError: config, data or model are at fault, or the run cannot go on.
    """
    if resume:
        folder = find(resume, Path("runs"))
        text = _config_of(folder)
        check.read(text)
    else:
        folder = _new_folder(text)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    mode = mode_of(quiet=quiet, json=json)
    with (
        logged(str(folder / "log.txt")),
        _tidy(folder, resume),
        Display(folder / "events.jsonl", mode=mode, skip_old=bool(resume)),
    ):
        from ..simulations.simulate import simulate

        try:
            simulate(text, folder)
        except KeyboardInterrupt:
            if not resume and not _begun(folder):
                raise StoppedError("stopped before the run began; nothing was written") from None
            raise StoppedError(
                f"stopped; go on with: perennial simulate --resume {folder}"
            ) from None
        except RunError as error:
            if not resume and not _begun(folder):
                raise
            raise RunError(f"{error}\nDetails: {folder / 'log.txt'}") from error
    if mode in ("live", "plain"):
        sys.stdout.write(f"report: {folder / 'report.html'}\nadapter: {folder / 'adapter'}\n")


def mode_of(*, quiet: bool, json: bool = False) -> Mode:
    """How a run is shown: what was asked, else as the terminal can."""
    return "quiet" if quiet else "json" if json else "live" if sys.stdout.isatty() else "plain"


def _config_of(folder: Path) -> str:
    try:
        return (folder / "config.toml").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{folder} must hold config.toml to be resumed; it does not") from error


def _new_folder(text: str) -> Path:
    folder = fresh(check.read(text))
    write_atomically(folder / "config.toml", text)
    return folder


def _begun(folder: Path) -> bool:
    log = folder / "events.jsonl"
    return log.exists() and log.stat().st_size > 0


@contextmanager
def _tidy(folder: Path, resume: str) -> Iterator[None]:
    """Leave no run folder behind when the run never began."""
    try:
        yield
    except BaseException:
        if not resume and not _begun(folder):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
        raise
