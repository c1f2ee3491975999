"""`perennial keyholder`: the key holder as a process of its own."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from ..core.errors import DataError
from ..core.log import to_stderr
from ..privacy.keys import PASSPHRASE, PASSPHRASE_FILE, passphrase_from


def hold(file: Path, *, with_parent: bool = False) -> None:
    """Serve the key that `file` names until SIGTERM or Ctrl-C.

    Args:
        file: the key holder's config.
        with_parent: stop when standard input ends too, so that a parent that dies takes this
            process with it.

    Raises:
        ConfigError: every fault of the file.
        DataError: key, log or certificates cannot be opened.
        RunError: the address is taken, or another process has the log.
    """
    from ..privacy.serve import read, serving

    settings = read(file)
    to_stderr(logging.WARNING)
    logging.getLogger("perennial").setLevel(logging.INFO)
    passphrase = passphrase_of()
    with _stop() as stopped, serving(settings, passphrase) as (address, holder):
        typer.echo(f"address      {address}{'  (insecure)' if settings.insecure else ''}")
        typer.echo(f"fingerprint  {holder.fingerprint()}")
        typer.echo(f"min_clients  {settings.min_clients}")
        typer.echo(f"audit log    {settings.audit}")
        sys.stdout.flush()
        if with_parent:
            threading.Thread(target=_follow_parent, daemon=True).start()
        stopped()
        typer.echo("stopping")


def passphrase_of(*, new: bool = False) -> str:
    """The passphrase of the environment, or the user's, who does not see it while typing.

    Args:
        new: ask for it twice.

    Raises:
        DataError: there is none, and nobody to ask.
    """
    given = passphrase_from(os.environ)
    if given:
        return given
    if not _at_terminal():
        raise DataError(
            f"a passphrase must be given; there is none, and no terminal to ask. Set "
            f"{PASSPHRASE_FILE} to a file that holds it, or {PASSPHRASE}."
        )
    return str(typer.prompt("passphrase of the keys", hide_input=True, confirmation_prompt=new))


def _follow_parent() -> None:
    # Unbuffered, so that no lock of Python's is held when this process ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _at_terminal() -> bool:
    return sys.stdin.isatty()


@contextmanager
def _stop() -> Iterator[Callable[[], object]]:
    """Gives what waits until this process is asked to stop; for the main thread."""
    # A signal handler may call `put` of this queue; `Event.set` could lock against itself.
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    names = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(name, lambda number, frame: asked.put(number)) for name in names]
    try:
        yield asked.get
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
