"""Bugs planted on purpose, each run for real: which catcher stops it, and in what words.

The mutations are those of `tests/privacy/planted.py`; each is planted into the real code, and the
code as it is passes the same detector before. `--quick` leaves out whole runs and the audits. As
JSON a row's figure is 1 where the named catcher caught the bug and the clean code passed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy
sys.path.extend(
    str(Path(__file__).resolve().parent.parent / "tests" / room)
    for room in ("privacy", "client", "integration")
)

import torch
from planted import BUGS, Bug, caught, planted
from table import Row, progress

TITLE = "Planted bugs"
_MOST_WORDS = 110


def tried(bug: Bug) -> tuple[bool, str]:
    """Whether the clean code passes and the catcher speaks; what it says."""
    with tempfile.TemporaryDirectory() as folder:
        clean, broken = Path(folder) / "clean", Path(folder) / "broken"
        clean.mkdir()
        broken.mkdir()
        try:
            with planted(None):
                bug.detect(clean)
            return True, caught(bug, broken).replace(str(broken), "FOLDER")
        except Exception as error:  # whatever it is, the row is lost, and the others go on
            return False, f"{type(error).__name__}: {error}"


def short(words: str) -> str:
    """`words` for a cell of a table."""
    words = words.replace("|", "/").removeprefix("1 fault in the config: ")
    return words if len(words) <= _MOST_WORDS else words[: _MOST_WORDS - 3].rstrip() + "..."


def main() -> None:
    """Run every mutation, print the table; exit 1 when one is not caught."""
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="no whole runs and no audits")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started, found = time.monotonic(), []
    for bug in BUGS:
        if not (options.quick and bug.long):
            progress(bug.name)
            found.append((bug, *tried(bug)))
    if options.json:
        rows = [Row(f"{b.name}: {b.by}", float(held), "caught", 1.0, True) for b, held, _ in found]
        print(json.dumps([row.pack() for row in rows], indent=1))
    else:
        print(f"### {TITLE}\n")
        print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
        print("| mutation | caught by | how it is said |\n|---|---|---|")
        for bug, held, words in found:
            print(f"| {bug.name} | {bug.by if held else '**nothing**'} | {short(words)} |")
        counts = Counter(bug.by for bug, held, _ in found if held)
        by = ", ".join(f"{count} by a {name}" for name, count in counts.items())
        said = f"{sum(counts.values())} of {len(found)} caught: {by}"
        print(f"\n{said.replace('a audit', 'the audit')}. {time.monotonic() - started:.0f} s.")
    sys.exit(not all(held for _, held, _ in found))


if __name__ == "__main__":
    main()
