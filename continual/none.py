"""No continual method: each domain is learnt as it comes, and earlier ones may be forgotten."""

from __future__ import annotations

from ..core.parts import Continual


def build() -> Continual:
    """The method that remembers nothing, adds nothing and masks nothing."""
    return Continual(start=lambda phase: (), private=True)
