"""Taking records back from a client: out of its memory now, out of its statistics at the next end.

It runs where the client's folder is; nothing is sent, and no server is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from ..client import withdrawn
from ..continual import contributions, memory, reference
from ..core.errors import DataError, RunError
from ..server.units import count

_CARD = "client.json"
_T = TypeVar("_T")


def withdraw(folder: Path, ids: Sequence[str], file: Path | None, *, everything: bool) -> None:
    """Note what is withdrawn in a client's folder, purge its memory, and say what was done.

    For each record that is named, it says whether this client held anything of it; the statistics
    lose it at the end of the next domain.

    Args:
        folder: the client's own.
        ids: of records.
        file: of more ids, one a line.
        everything: all records of the client, present and to come.

    Raises:
        DataError: the folder is no client's, or the file holds no ids.
        RunError: the disk cannot be written, or a file of the client's is damaged; the list of the
            withdrawn is written and the other files are purged all the same.
    """
    if not (folder / _CARD).is_file():
        raise DataError(f"{folder} must be a client's own folder; it has no {_CARD}.")
    if not all(name.strip() for name in ids):  # such as of a shell variable that is not set
        raise DataError("a record's id must not be empty; one is. Name the records to withdraw.")
    named = frozenset([*ids, *(_listed(file) if file else ())])
    # The list first: whatever happens next, no update uses these records again.
    known = withdrawn.read(folder)
    after = withdrawn.write(folder, named, everything=everything)
    faults: list[RunError] = []  # one file that cannot be purged keeps none of the others
    left, all_ = after.ids, after.everything
    forgotten = _tried(faults, lambda: memory.forget(folder, left, everything=all_))
    compared = _tried(faults, lambda: reference.forget(folder, left, everything=all_))
    summed = _tried(faults, lambda: contributions.held(folder))
    new = len(after.ids - known.ids)
    what = "all records of this client" if everything else f"{new} ids, {len(after.ids)} in all"
    typer.echo(f"withdrawn: {what}")
    if forgotten is not None:
        typer.echo(f"memory: {len(forgotten)} records taken out, and out of its index")
    if compared is not None:
        typer.echo(f"drift: {len(compared)} records taken out of what new records are held against")
    if summed is not None:
        gone = frozenset(summed) if after.everything else after.ids & frozenset(summed)
        typer.echo(f"statistics: {_when(len(gone), sum(summed[name] for name in gone))}")
    if faults:
        said = "\n".join(str(fault) for fault in faults)
        raise RunError(
            f"{said}\nNo update uses these records from now on, but they may still be in what is "
            "named above. Mend that, then withdraw the same records again."
        )
    for name in sorted(named):
        typer.echo(f"  {name}: {_found(name, forgotten or (), compared or (), summed or {})}")


def _tried(faults: list[RunError], act: Callable[[], _T]) -> _T | None:
    """What `act` gives; None where it fails, with the error among `faults`."""
    try:
        return act()
    except RunError as error:
        faults.append(error)
        return None


def _when(num_held: int, num_given: int) -> str:
    """When the statistics lose records whose features a client holds.

    Args:
        num_held: how many.
        num_given: how many of them were already given to the server to subtract.
    """
    # The features stay until then: they alone say what these records added, and only what was
    # added can be subtracted, once, in the sum of the next end. Nothing could be without them.
    words = (
        "nothing of these records is on this disk to subtract by; sums that are taken anew lose "
        "them at the next domain's end"
    )
    if num_held:
        words = (
            f"{count(num_held, 'record')} to subtract at the end of the next domain that this "
            "client takes part in; the features stay on this disk, to subtract by, until the next "
            "round that it takes part in after the server has counted that"
        )
    if num_given:
        words += f" ({num_given} given already)"
    return (
        f"{words}. What was summed with noise or in a Fisher, and weights that were trained on "
        "these records, stay as they are"
    )


def _found(
    name: str, forgotten: Collection[str], compared: Collection[str], summed: Mapping[str, bool]
) -> str:
    """Where this client held something of the record `name`."""
    words = ["was in the memory, gone now"] * (name in forgotten)
    words += ["was compared with for drift, gone now"] * (name in compared)
    if name in summed:
        given = "given to subtract, off this disk in the next round after the server counted it"
        words.append(given if summed[name] else "in the statistics until the next domain's end")
    # Nothing here is no fault: it may be of a domain to come, and is then not used.
    return "; ".join(words) or "nothing of it on this disk"


def _listed(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must list record ids, one a line: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{file} must list record ids, one a line; it has none.")
    return found
