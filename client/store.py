"""A client's own disk: who it is, which base it serves, and the last answer it released.

Everything a client remembers between rounds and runs lies here, under a stable client id, in a
simulation as in a deployment.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.values import Ticket

_SCHEMA = 1


class ClientStore:
    """The folder of one client.

    Args:
        folder: made if missing.
        client: the client's stable id.
        base: identity of the frozen base; memories of another base mean nothing here.

    Raises:
        RunError: the folder belongs to another client, base or schema.
    """

    def __init__(self, folder: Path, client: str, base: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "client.json"
        mine = {"schema": _SCHEMA, "client": client, "base": base}
        if not card.exists():
            write_atomically(card, json.dumps(mine))
            return
        found = json.loads(card.read_text(encoding="utf-8"))
        if found != mine:
            raise RunError(
                f"{folder} must be the folder of {mine}; it is that of {found}. Give this client "
                "a folder of its own, or the one it had."
            )

    def remember(self, ticket: Ticket, salt: str, body: bytes, metrics: dict[str, float]) -> None:
        """Keep the answer to `ticket`, instead of the last one.

        Args:
            ticket: the round; its attempt does not count, a second attempt is the same round.
            salt: hash of what was asked, so that only the same question gets this answer.
            body: the sealed update.
            metrics: plain numbers that went with it.
        """
        kept = {"key": _key(ticket, salt), "metrics": metrics, "body": _digest(body)}
        head = json.dumps(kept).encode()
        # No sync: an answer that a power cut takes away is computed again.
        temporary = self.folder / ".answer.new"
        temporary.write_bytes(len(head).to_bytes(4, "big") + head + body)
        os.replace(temporary, self.folder / "answer.bin")

    def recall(self, ticket: Ticket, salt: str) -> tuple[bytes, dict[str, float]] | None:
        """The answer to `ticket` as it was released, or None when it was never computed."""
        try:
            content = (self.folder / "answer.bin").read_bytes()
        except FileNotFoundError:
            return None
        end = 4 + int.from_bytes(content[:4], "big")
        body = content[end:]
        try:
            head = json.loads(content[4:end])
        except ValueError:  # cut off by a power cut: compute it again
            return None
        if head["key"] != _key(ticket, salt) or head.get("body") != _digest(body):
            return None
        return body, head["metrics"]


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _key(ticket: Ticket, salt: str) -> list[str | int]:
    named = asdict(ticket)
    del named["attempt"]
    return [*named.values(), salt]
