"""Taking records back from a client: out of its memory now, out of its statistics at the next end.

It runs where the client's folder is; nothing is sent, and no server is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from ..client import withdrawn
from ..continual import memory, reference
from ..core.errors import DataError

_CARD = "client.json"


def withdraw(folder: Path, ids: Sequence[str], file: Path | None, *, everything: bool) -> None:
    """Note what is withdrawn in a client's folder, purge its memory, and say what was done.

    Args:
        folder: the client's own.
        ids: of records.
        file: of more ids, one a line.
        everything: all records of the client, present and to come.

    Raises:
        DataError: the folder is no client's, or the file holds no ids.
        RunError: the disk cannot be written, or the memory is damaged.
    """
    if not (folder / _CARD).is_file():
        raise DataError(f"{folder} must be a client's own folder; it has no {_CARD}.")
    named = frozenset([*ids, *(_listed(file) if file else ())])
    # The list first: whatever happens next, no update uses these records again.
    known = withdrawn.read(folder)
    after = withdrawn.write(folder, named, everything=everything)
    num_forgotten = memory.forget(folder, after.ids, everything=after.everything)
    num_compared = reference.forget(folder, after.ids, everything=after.everything)
    new = len(after.ids - known.ids)
    what = "all records of this client" if everything else f"{new} ids, {len(after.ids)} in all"
    typer.echo(f"withdrawn: {what}")
    typer.echo(f"memory: {num_forgotten} records taken out, and out of its index")
    typer.echo(f"drift: {num_compared} records taken out of what new records are held against")
    typer.echo(
        "statistics: what these records added to sums is subtracted in the client's next update, "
        "where its method can, and until then their features stay on this disk; weights that were "
        "trained on them stay as they are"
    )


def _listed(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must list record ids, one a line: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{file} must list record ids, one a line; it has none.")
    return found
