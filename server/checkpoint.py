"""Checkpoints: the whole server state after every round, written atomically, read back checked."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import RunError
from ..core.files import DAMAGED, write_atomically
from ..core.values import ServerState

_KEPT = 2  # the newest, and one more should the newest be damaged on disk


@dataclass(frozen=True, slots=True)
class Saved:
    """A state as it was saved.

    Attributes:
        state: all of it.
        stamp: of what it belongs to.
        descent: of what a run must share to go on from it with another domain.
    """

    state: ServerState
    stamp: str
    descent: str


def save(folder: Path, state: ServerState, stamp: str, descent: str = "") -> Path:
    """Write `state` below `folder` and drop all but the newest two; the file's path.

    Args:
        folder: made if missing.
        state: all of it is written.
        stamp: a hash of what the state belongs to; `newest` gives it back.
        descent: the same for runs that go on from this state with another domain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The slots' names too: a member whose name is damaged would go missing without a word.
    names = sorted(state.slots)
    fields = {"domain": state.domain, "round": state.round, "slots": names}
    head = json.dumps({**fields, "stamp": stamp, "descent": descent})
    slots = {f"slot.{name}": values for name, values in state.slots.items()}
    buffer = io.BytesIO()
    arrays = {
        "head": np.array(head),
        "params": state.params,
        "summary": state.summary,
        "answer": state.head,
        "peaks": state.peaks,
        **slots,
    }
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    path = folder / f"{state.domain:04d}-{state.round:05d}.npz"
    write_atomically(path, buffer.getvalue())
    for old in sorted(folder.glob("*.npz"))[:-_KEPT]:
        old.unlink()
    return path


def newest(folder: Path) -> Saved | None:
    """The newest state that can be read; None when there is no file.

    Raises:
        RunError: there are files, and none can be read.
    """
    files = sorted(folder.glob("*.npz"), reverse=True)
    for path in files:
        try:
            return _read(path)
        except DAMAGED:
            continue
    if files:
        raise RunError(
            f"{folder} must hold a readable checkpoint; none of {len(files)} files is. Restore the "
            "folder from a backup, or start the run anew."
        )
    return None


def _read(path: Path) -> Saved:
    with np.load(path, allow_pickle=False) as file:
        head = json.loads(str(file["head"]))
        slots = {n.removeprefix("slot."): file[n] for n in file.files if n.startswith("slot.")}
        numbers = (head["round"], head["domain"], file["params"])
        if sorted(slots) != head["slots"]:
            raise ValueError(f"the slots must be {head['slots']}; got {sorted(slots)}")
        told = {
            n: file[k] for n, k in (("summary", "summary"), ("head", "answer"), ("peaks", "peaks"))
        }
        state = ServerState(*numbers, slots=slots, **told)
    return Saved(state, str(head["stamp"]), str(head.get("descent", "")))
