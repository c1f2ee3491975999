"""Clocks of single parties that jump: a library loaded before libc, compiled here.

A time namespace moves the monotonic clock and never the time of day, and setting the machine's own
clock would disturb all else on it. See `clock.c` for what is moved and what is not.
"""

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
_NANOSECONDS = 1_000_000_000


def compiled(folder: Path) -> Path | None:
    """The library, built into `folder`; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    path = folder / "clock.so"
    command = [compiler, "-O2", "-Wall", "-shared", "-fPIC", str(SOURCE), "-o", str(path), "-ldl"]
    subprocess.run(command, check=True)
    return path


class Clock:
    """The clock of one party, in a file that its processes have mapped."""

    def __init__(self, path: Path, library: Path | None) -> None:
        self.path, self._library = path, library
        path.write_bytes(struct.pack("<q", 0))

    @property
    def environment(self) -> dict[str, str]:
        """What a party's processes are started with."""
        if self._library is None:
            return {}
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self.path)}

    def jump(self, seconds: float) -> None:
        """From now on the time of day is so far from the machine's."""
        with self.path.open("r+b") as file:
            file.write(struct.pack("<q", round(seconds * _NANOSECONDS)))
