"""A new folder for what a command leaves behind."""

from __future__ import annotations

import time
from pathlib import Path

from ..core.config import Config
from ..core.errors import DataError, RunError


def fresh(config: Config, prefix: str = "") -> Path:
    """A new folder below `[run] folder`, made; its name ends with the time.

    Args:
        config: of the run.
        prefix: of the name, before the run's own.

    Raises:
        DataError: nothing can be written there.
    """
    home = Path(config.run.folder).expanduser()
    stem = f"{prefix}{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1000):
        folder = home / (f"{stem}-{number}" if number else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise DataError(f"[run.folder] {home} must be a folder to write to: {error}") from error
        return folder
    raise RunError(f"{home} holds a thousand folders of this second")
