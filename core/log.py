"""The log: one form for all processes, in every line where in a run it was written.

A line says `run`, `domain`, `round` and `node`, with `-` for what does not apply; with
`PERENNIAL_LOG_JSON=1` in the environment each line is one JSON object instead, for collectors.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

LOG_VARIABLE = "PERENNIAL_LOG"
"""Environment variable with the log's path, for processes that a run starts."""

JSON_VARIABLE = "PERENNIAL_LOG_JSON"
"""Environment variable: `1` for JSON lines."""

FIELDS = ("run", "domain", "round", "node")
"""What every line says of its place, in this order."""

_PLACE: ContextVar[Mapping[str, Any]] = ContextVar("place", default=MappingProxyType({}))


@contextmanager
def placed(**fields: Any) -> Iterator[None]:
    """Lines that are written meanwhile say these `FIELDS`, beside those said already."""
    token = _PLACE.set({**_PLACE.get(), **fields})
    try:
        yield
    finally:
        _PLACE.reset(token)


class Form(logging.Formatter):
    """Lines with their place; times are UTC."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback's lines follow it, or stand in the object."""
        place = _PLACE.get()
        if os.environ.get(JSON_VARIABLE) == "1":
            return self._object(record, place)
        said = " ".join(f"{name}={place.get(name, '-')}" for name in FIELDS)
        record.place = said
        return super().format(record)

    def _object(self, record: logging.LogRecord, place: Mapping[str, Any]) -> str:
        told: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "process": record.process,
            "logger": record.name,
            **{name: place.get(name) for name in FIELDS},
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


FORM = "%(asctime)s %(levelname)s %(process)d %(name)s %(place)s: %(message)s"
"""Of a line that is no JSON object."""


def to_stderr(level: int = logging.INFO) -> None:
    """Have this process, a service, log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Form(FORM))
    logging.basicConfig(level=level, handlers=[handler])
    # A line for each question after work, several a second, hides all others.
    logging.getLogger("httpx").setLevel(logging.WARNING)


@contextmanager
def logged(path: str) -> Iterator[None]:
    """Append what is logged, and what Python warns of, to `path`; nothing changes when it is empty.

    The screen belongs to the display, so neither goes there while this is open.
    """
    if not path:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Form(FORM))
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
