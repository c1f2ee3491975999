"""Whether this process was asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGTERM or Ctrl-C came; for the main thread."""
    # A plain list: a lock that the main thread holds would lock its own signal handler out.
    came: list[int] = []
    names = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(name, lambda number, _: came.append(number)) for name in names]
    try:
        yield lambda: bool(came)
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
