"""A key holder inside the server's own process: for simulations, where nobody is apart anyway.

Server and key holder in one process can together read every sum, and without masks every update;
a deployment runs `perennial keyholder` elsewhere and names it as `service`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..core.errors import ConfigError, Fault
from ..core.parts import KeyHolder
from ..core.sums import Pact

if TYPE_CHECKING:
    from .holder import Holder


def build(
    *,
    keys: str = "",
    audit: str = "",
    min_clients: Annotated[int, Field(ge=3)] = 3,
    passphrase_file: str = "",
) -> KeyHolder:
    """The key holder of a key folder, opened when it is first asked.

    Args:
        keys: folder from `perennial keys init`.
        audit: its log; `audit.jsonl` in that folder when empty.
        min_clients: fewest clients of a sum.
        passphrase_file: holds the key's passphrase, which has no place in a config that is copied
            to clients and reports; what the environment names when empty.
    """
    return _InProcess(keys, audit, min_clients, passphrase_file)


class _InProcess:
    def __init__(self, keys: str, audit: str, min_clients: int, passphrase_file: str) -> None:
        self._keys, self._audit = keys, audit
        self._min_clients, self._passphrase_file = min_clients, passphrase_file
        self._holder: Holder | None = None
        self._lock = Lock()

    def fingerprint(self) -> str:
        """Of the key in the folder.

        Raises:
            ConfigError: no folder is named.
            DataError: the key cannot be opened.
        """
        return self._opened().fingerprint()

    def open(self, pact: Pact, nodes: Collection[int], body: bytes) -> bytes:
        """As `Holder.open`."""
        return self._opened().open(pact, nodes, body)

    def close(self) -> None:
        """Give the log free for another process."""
        with self._lock:
            if self._holder is not None:
                self._holder.close()
            self._holder = None

    def _opened(self) -> Holder:
        with self._lock:
            if self._holder is None:
                self._holder = self._load()
            return self._holder

    def _load(self) -> Holder:
        # SEAL is loaded where the key is, not where a config is checked.
        from .audit_log import AuditLog
        from .holder import Holder
        from .keys import PASSPHRASE_FILE, open_holder_key, passphrase_from

        if not self._keys:
            remedy = "make one with: perennial keys init CONFIG DIR"
            raise ConfigError([Fault("keyholder.keys", "must name a key folder", remedy)])
        folder = Path(self._keys)
        given = {PASSPHRASE_FILE: self._passphrase_file} if self._passphrase_file else os.environ
        card, secret = open_holder_key(folder, passphrase_from(given))
        log = AuditLog(Path(self._audit) if self._audit else folder / "audit.jsonl")
        return Holder(card, secret, self._min_clients, log)
