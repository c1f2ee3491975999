"""No export: the release is the adapter folder as training left it, in PEFT's own format."""

from __future__ import annotations

from pathlib import Path

from ..core.parts import Export


def build() -> Export:
    """The export that hands the adapter folder on unchanged."""

    def write(adapter: Path, folder: Path) -> Path:
        return adapter

    return Export(write=write)
