"""The identities that a party lets in: a file of its own, so that no server can invent clients."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import ConfigError, Fault

_IDENTITY = re.compile(r"[0-9a-f]{64}")


def read_pins(path: str) -> frozenset[str]:
    """Ed25519 identities, 64 hex digits each, one a line; text after `#` is a comment.

    Args:
        path: the file; empty for no pins.

    Raises:
        ConfigError: the file cannot be read, names fewer than three, or a line is no identity.
    """
    if not path:
        return frozenset()
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(f"{path} must be a readable text file: {error}") from error
    found = [line.split("#")[0].strip() for line in lines]
    wrong = [i for i, name in enumerate(found, 1) if name and not _IDENTITY.fullmatch(name)]
    if wrong:
        raise _fault(f"{path}, line {wrong[0]}: must be 64 hex digits")
    pins = frozenset(name for name in found if name)
    if len(pins) < 3:
        raise _fault(f"{path} must name at least 3 identities; it names {len(pins)}")
    return pins


def _fault(problem: str) -> ConfigError:
    remedy = "each client prints its identity with: perennial keys identity FOLDER"
    return ConfigError([Fault("secure_sum.identities", problem, remedy)])
