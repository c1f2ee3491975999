"""The one session that a client may still reveal masks of, on its own disk.

A mask hides a vector once. So a session is sealed for one pact, one note and one content; when
another takes its place it is never sealed again; and it is revealed at most once, for one request.
All of it is one file, replaced before the client acts: a client that is killed at any moment
refuses afterwards what it would have refused before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..core.errors import RunError
from ..core.files import write_atomically
from .cards import is_key, is_node


@dataclass(frozen=True, slots=True)
class Session:
    """What was agreed on and done in the latest session.

    Attributes:
        session: its token.
        pact: digest of the pact, in hex.
        note: hash of the note that paired this node, in hex.
        content: hash of what was masked, in hex; empty where the caller gave none.
        neighbours: node id -> X25519 public key in hex.
        revealed: whether seeds were given away.
        request: hash of the request that they were given for, in hex; empty before.
        past: tokens of the sessions before it, of any run.
    """

    session: str
    pact: str
    note: str
    content: str
    neighbours: Mapping[int, str]
    revealed: bool = False
    request: str = ""
    past: tuple[str, ...] = ()


def latest(folder: Path) -> Session | None:
    """The latest session of the client with this folder; None before the first.

    Raises:
        RunError: the file is damaged.
    """
    path = _path(folder)
    try:
        return _read(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} must be as this client wrote it, since it says which masks are spent; "
            f"restore it, or remove the whole folder {path.parent} so that all masks are new"
        ) from error


def begin(folder: Path, wanted: Session) -> None:
    """Record `wanted` before its masks are used; a resend of the latest changes nothing.

    Raises:
        RunError: the masks of `wanted` were used for something else, or were revealed.
    """
    found = latest(folder)
    if found is None:
        _write(folder, wanted)
    elif found.session != wanted.session:
        past = (*found.past, found.session)
        if wanted.session in past:
            raise RunError(f"session {wanted.session} was sealed before; ask with a fresh one")
        _write(folder, replace(wanted, past=past))
    elif found.revealed:
        raise RunError(f"masks of session {wanted.session} were revealed; ask with a fresh one")
    else:
        for name in ("pact", "note", "content"):
            if getattr(found, name) != getattr(wanted, name):
                raise RunError(
                    f"session {wanted.session} was sealed with another {name}; a mask used twice "
                    "hides nothing. Ask with a fresh session."
                )


def spend(folder: Path, found: Session, request: str) -> None:
    """Mark the latest session as revealed for `request`, before the answer leaves.

    Raises:
        RunError: it was revealed for another request.
    """
    if not found.revealed:
        _write(folder, replace(found, revealed=True, request=request))
    # The very same request gets the very same answer: it tells nothing new, and a reply that got
    # lost would otherwise cost the round.
    elif found.request != request:
        raise RunError(f"session {found.session} was revealed already, for another request")


def _path(folder: Path) -> Path:
    return folder / "pairs" / "session.json"


def _write(folder: Path, session: Session) -> None:
    write_atomically(_path(folder), json.dumps(asdict(session)), 0o600)


def _read(values: Any) -> Session:
    if not isinstance(values, dict) or set(values) != {f.name for f in fields(Session)}:
        raise ValueError("a session has other fields")
    if not isinstance(values["neighbours"], dict) or not isinstance(values["past"], list):
        raise ValueError("a session has lists of neighbours and of past sessions")
    neighbours = {int(node): key for node, key in values["neighbours"].items()}
    if not all(is_node(node) and is_key(key) for node, key in neighbours.items()):
        raise ValueError("a session's neighbours are nodes and keys")
    if type(values["revealed"]) is not bool:
        raise ValueError("a session is revealed or not")
    return Session(**{**values, "neighbours": neighbours, "past": tuple(values["past"])})
