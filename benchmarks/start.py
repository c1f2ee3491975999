"""How long a user waits for the command line: CPU seconds of whole processes, interleaved."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from table import Row, median, progress, run

BIN = Path(sys.executable).parent
COMMANDS = {
    "perennial --help": [BIN / "perennial", "--help"],
    "import perennial": [
        sys.executable,
        "-c",
        "import perennial, sys; assert 'torch' not in sys.modules",
    ],
    "flwr --help (peer)": [BIN / "flwr", "--help"],
    "python -c pass (limit)": [sys.executable, "-c", "pass"],
}


def cpu(command: list) -> float:
    """User and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "100"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(quick: bool) -> list[Row]:
    """Medians over the runs after the first."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(4 if quick else 12):
        for name, command in COMMANDS.items():
            seconds = cpu(command)
            if number:
                found[name].append(seconds)
        progress(f"run {number + 1}")
    bars = {"perennial --help": 0.7}
    return [Row(name, median(values), "CPU-s", bars.get(name)) for name, values in found.items()]


if __name__ == "__main__":
    run("Start of the command line", measure)
