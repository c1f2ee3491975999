"""Writing files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import tokenize
import zipfile
from pathlib import Path

# What numpy, zipfile and json raise for a file cut or flipped anywhere (found by doing so), such as
# for an empty file, a head of another shape, and flags that a zip file may not have.
DAMAGED = (
    ValueError,
    KeyError,
    OSError,
    zipfile.BadZipFile,
    EOFError,
    TypeError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
)


def write_atomically(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """Write `content` to `path` by a synced temporary file and one rename.

    Args:
        path: its folder must be there.
        content: text is written as UTF-8.
        mode: of the file from its first moment, less the process's mask; 0o600 for secrets.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` keeps its old content.
    """
    if not path.name:  # such as "."
        raise IsADirectoryError(f"{path} is a folder")
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def claim(handle: int, *, wait: bool = False) -> None:
    """Hold an open file until it is closed or the process dies, however it dies (POSIX).

    Args:
        handle: descriptor of the file.
        wait: until another process gives it free, instead of raising.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut (POSIX; elsewhere nothing is done)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
