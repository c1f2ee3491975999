"""Under which cohort each record pays, for life: whatever a run calls its domains.

A server names domains, joins and regroups them; a record that paid under one name and then under
another would have two accounts, each below the target. So the first name stays, on the client's
own disk, under a salted hash of the record's id.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..core.errors import PrivacyError
from ..core.files import write_atomically

FILE = "cohorts.json"
_SCHEMA = 1


class Cohorts:
    """The names in the folder of one client.

    Args:
        folder: of the client.
        begun: whether its ledger holds charges, which need these names.

    Raises:
        PrivacyError: the file is damaged, or is missing though records have paid.
    """

    def __init__(self, folder: Path, *, begun: bool) -> None:
        self._path = folder / FILE
        self._salt, self._names = secrets.token_hex(16), dict[str, str]()
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {found['schema']}")
            self._salt = str(found["salt"])
            for name, hashes in found["cohorts"].items():
                self._names |= dict.fromkeys(hashes, name)
        except FileNotFoundError:
            if begun:
                raise PrivacyError(
                    f"{self._path} must say under which cohort each record paid; it is missing, "
                    "and the ledger beside it holds charges. Put it back from the backup of both."
                ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PrivacyError(
                f"{self._path} must be what this client wrote; it is not: {error}. Put it back "
                "from the backup of the ledger."
            ) from error

    def named(self, records: Iterable[tuple[str, str]]) -> list[str]:
        """The cohort of each of `records`, (id, name if it is new); new names are not kept yet."""
        return [self._names.get(self._hash(id_), name) for id_, name in records]

    def keep(self, records: Mapping[str, str]) -> None:
        """Write down, synced, the cohort of each id that has none yet."""
        fresh = {self._hash(id_): name for id_, name in records.items()}
        fresh = {key: name for key, name in fresh.items() if key not in self._names}
        if not fresh and self._path.exists():
            return
        self._names |= fresh
        cohorts: dict[str, list[str]] = {}
        for key, name in self._names.items():
            cohorts.setdefault(name, []).append(key)
        content = {"schema": _SCHEMA, "salt": self._salt, "cohorts": cohorts}
        write_atomically(self._path, json.dumps(content, separators=(",", ":")), 0o600)

    def _hash(self, id_: str) -> str:
        return hashlib.blake2b(f"{self._salt}{id_}".encode(), digest_size=8).hexdigest()
