"""A sum that waits for the key holder, kept on disk: a server that dies asks for the same again.

A key holder opens each round once. Without this file a server that was killed after the opening
and before its checkpoint could never finish the round. It holds ciphertexts and the seeds that
clients revealed for this sum, which lift the masks of the clients that dropped out: for the server
alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.sums import Pact
from .round import Verdict

_NAME = "pending.bin"


@dataclass(frozen=True, slots=True)
class Pending:
    """One closed sum and all that is needed to read it once it is opened.

    Attributes:
        pact: of the sum.
        asked: number of clients that were asked.
        verdicts: on every reply.
        asks: what was asked of the clients because others dropped out.
        reveals: what they answered.
        body: what the key holder gets.
        figures: times and bytes for the log.
    """

    pact: Pact
    asked: int
    verdicts: tuple[Verdict, ...]
    asks: Mapping[int, bytes]
    reveals: Mapping[int, bytes]
    body: bytes
    figures: Mapping[str, float]

    @property
    def counted(self) -> list[int]:
        """Nodes whose bodies were added, in rising order."""
        return sorted(verdict.node for verdict in self.verdicts if not verdict.cause)


def save(folder: Path, pending: Pending) -> None:
    """Write `pending` below `folder`, in place of the last one, synced.

    Raises:
        RunError: it cannot be written.
    """
    head = {
        "pact": pending.pact.pack(),
        "asked": pending.asked,
        "verdicts": [asdict(verdict) for verdict in pending.verdicts],
        "asks": _text(pending.asks),
        "reveals": _text(pending.reveals),
        "figures": dict(pending.figures),
        "body": hashlib.sha256(pending.body).hexdigest(),
    }
    packed = json.dumps(head).encode()
    content = len(packed).to_bytes(4, "big") + packed + pending.body
    try:
        write_atomically(folder / _NAME, content, 0o600)
    except OSError as error:
        raise RunError(
            f"{folder / _NAME} must be written before a sum is opened; it cannot: {error}"
        ) from error


def drop(folder: Path) -> None:
    """Forget the sum that waits, if there is one: it will not be opened."""
    (folder / _NAME).unlink(missing_ok=True)


def load(folder: Path, run: str, domain: int, round: int, manifest: str) -> Pending | None:
    """The sum of this very round, if one was closed before the server stopped.

    Raises:
        RunError: the file is damaged.
    """
    try:
        content = (folder / _NAME).read_bytes()
    except FileNotFoundError:
        return None
    try:
        end = 4 + int.from_bytes(content[:4], "big")
        head = json.loads(content[4:end])
        pact, body = Pact.unpack(head["pact"]), content[end:]
        if hashlib.sha256(body).hexdigest() != head["body"]:
            raise ValueError("the sum is damaged")
        if (pact.run, pact.domain, pact.round, pact.manifest) != (run, domain, round, manifest):
            return None
        return Pending(
            pact=pact,
            asked=head["asked"],
            verdicts=tuple(Verdict(**verdict) for verdict in head["verdicts"]),
            asks=_bytes(head["asks"]),
            reveals=_bytes(head["reveals"]),
            body=body,
            figures=head["figures"],
        )
    except (ValueError, KeyError, TypeError, RunError) as error:
        raise RunError(
            f"{folder / _NAME} must hold a sum that waits for the key holder; it is damaged: "
            f"{error}. Restore it from a backup, or start the run anew."
        ) from error


def _text(notes: Mapping[int, bytes]) -> dict[str, str]:
    return {str(node): base64.b64encode(note).decode() for node, note in notes.items()}


def _bytes(notes: Mapping[str, Any]) -> dict[int, bytes]:
    return {int(node): base64.b64decode(note, validate=True) for node, note in notes.items()}
