"""The log of a run: one file, to which every process of the run appends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOG_VARIABLE = "PERENNIAL_LOG"
"""Environment variable with the log's path, for processes that a run starts."""

_FORM = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


@contextmanager
def logged(path: str) -> Iterator[None]:
    """Append what is logged, and what Python warns of, to `path`; nothing changes when it is empty.

    The screen belongs to the display, so neither goes there while this is open.
    """
    if not path:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORM))
    root, ours = logging.getLogger(), logging.getLogger("perennial")
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    before = os.environ.get(LOG_VARIABLE)
    os.environ[LOG_VARIABLE] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOG_VARIABLE]
        else:
            os.environ[LOG_VARIABLE] = before
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
