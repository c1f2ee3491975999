"""A client's own disk: who it is, which base it serves, and the last answer it released.

Everything a client remembers between rounds and runs lies here, under a stable client id, in a
simulation as in a deployment.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import RunError
from ..core.files import sync_folder, write_atomically
from ..core.values import Ticket, Vector

_SCHEMA = 1
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was computed and released.

    Attributes:
        delta: flat change, float32 [n]; it never leaves the client but sealed.
        weight: of the delta.
        loss: mean training loss; nan when there is none.
        metrics: plain numbers that went with it.
        session: of the sum that the body was sealed for.
        body: the sealed delta, byte for byte as it was sent; empty where it hides nothing, and
            is made again from the delta.
        secret: 32 bytes from which the sealing draws its noise, the same each time.
    """

    delta: Vector
    weight: float
    loss: float
    metrics: Mapping[str, float]
    session: str = ""
    body: bytes = b""
    secret: bytes = b""


class ClientStore:
    """The folder of one client; `client` is its id, the same for life and no other's.

    Args:
        folder: made if missing.
        client: the client's stable id.
        base: identity of the frozen base; memories of another base mean nothing here.

    Raises:
        RunError: the folder belongs to another client, base or schema.
    """

    def __init__(self, folder: Path, client: str, base: str) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        card = folder / "client.json"
        mine = {"schema": _SCHEMA, "client": client, "base": base}
        if not card.exists():
            write_atomically(card, json.dumps({**mine, "token": secrets.token_hex(8)}))
        found = _card(card)
        # Indices repeat from machine to machine: the token tells one client's ledger from another's
        self.client = f"{client}-{found.pop('token', '')}"
        if found != mine:
            raise RunError(
                f"{folder} must be the folder of {mine}; it is that of {found}. Give this client "
                "a folder of its own, or the one it had."
            )

    def remember(self, ticket: Ticket, salt: str, kept: Kept, *, sync: bool) -> None:
        """Keep the answer to `ticket`, instead of the last one.

        Args:
            ticket: the round; its attempt does not count, a second attempt is the same round.
            salt: hash of what was asked, so that only the same question gets this answer.
            kept: the answer.
            sync: have it on disk before it is sent; an answer under a promise of privacy must
                never be computed twice, for then two would be out. Others may be lost in a power
                cut and computed again.
        """
        delta = np.ascontiguousarray(kept.delta, "<f4").tobytes()
        content = delta + kept.body
        head = {
            "key": _key(ticket, salt),
            "metrics": dict(kept.metrics),
            "weight": kept.weight,
            "loss": kept.loss,
            "session": kept.session,
            "secret": kept.secret.hex(),
            "delta_bytes": len(delta),
            "content": _digest(content),
        }
        packed = json.dumps(head).encode()
        temporary = self.folder / ".answer.new"
        temporary.unlink(missing_ok=True)
        # The update itself is in it: for nobody's eyes but this client's.
        with os.fdopen(os.open(temporary, _FRESH, 0o600), "wb") as file:
            file.write(len(packed).to_bytes(4, "big") + packed + content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, self.folder / "answer.bin")
        if sync:
            sync_folder(self.folder)

    def recall(self, ticket: Ticket, salt: str) -> Kept | None:
        """The answer to `ticket` as it was released, or None when it was never computed."""
        try:
            file = (self.folder / "answer.bin").read_bytes()
        except FileNotFoundError:
            return None
        end = 4 + int.from_bytes(file[:4], "big")
        content = file[end:]
        try:
            head = json.loads(file[4:end])
        except ValueError:  # cut off by a power cut: compute it again
            return None
        if (
            not isinstance(head, dict)
            or head.get("key") != _key(ticket, salt)
            or head.get("content") != _digest(content)
        ):
            return None
        split = head["delta_bytes"]
        return Kept(
            delta=np.frombuffer(content[:split], "<f4"),
            weight=head["weight"],
            loss=head["loss"],
            metrics=head["metrics"],
            session=head["session"],
            body=content[split:],
            secret=bytes.fromhex(head["secret"]),
        )


def _card(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        problem = "it holds no table"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise RunError(
        f"{path} must say whose folder this is; it does not: {problem}. Put it back from the "
        "backup of the whole folder: ledger and memory belong to it."
    )


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _key(ticket: Ticket, salt: str) -> list[str | int]:
    named = asdict(ticket)
    del named["attempt"]
    return [*named.values(), salt]
