"""What one release has that another has not: settings, scores, files, and how far weights moved."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .releases import Release

_CONFIG = "config.toml"
_WEIGHTS = ".safetensors"


def differences(one: Release, other: Release) -> dict[str, Any]:
    """From `one` to `other`, as values that strict JSON can hold.

    `settings` maps a dotted key to [before, after], null where it is not; `accuracy` maps a domain
    to the same in 0..1; `epsilon` is [before, after]; `files` maps a name to `new`, `gone` or
    `changed`; `moved` maps a file of weights to the L2 distance of what both hold over the norm of
    the first's.
    """
    before, after = one.card["files"], other.card["files"]
    files = {
        name: "gone" if name not in after else "new" if name not in before else "changed"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    return {
        "from": one.number,
        "to": other.number,
        "settings": _pairs(_settings(one), _settings(other)),
        "accuracy": _pairs(_accuracy(one), _accuracy(other)),
        "epsilon": [one.card.get("epsilon"), other.card.get("epsilon")],
        "files": files,
        "moved": {
            name: moved
            for name, what in files.items()
            if what == "changed" and name.endswith(_WEIGHTS)
            and (moved := _moved(one, other, name)) is not None
        },
    }  # fmt: skip


def _accuracy(release: Release) -> dict[str, Any]:
    found = release.card.get("accuracy")
    return dict(found) if isinstance(found, Mapping) else {}


def _settings(release: Release) -> dict[str, Any]:
    path = release.folder / _CONFIG
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    return dict(flat(tree))


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Tables as (dotted key, value), tables in lists by their place in it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from flat(item, f"{place}.{i}")
    else:
        yield place, value


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [before.get(key), after.get(key)]
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key)
    }


def _moved(one: Release, other: Release, name: str) -> float | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        before, after = (load_file(release.folder / name) for release in (one, other))
    except (OSError, SafetensorError):
        return None
    far = norm = 0.0
    for key, value in before.items():
        base = value.astype(np.float64)
        norm += float(np.square(base).sum())
        moved = after.get(key)
        if moved is not None and moved.ndim == base.ndim:
            # A head gets rows for new labels: what both hold is compared.
            both = tuple(slice(0, min(a, b)) for a, b in zip(base.shape, moved.shape, strict=True))
            far += float(np.square(moved[both].astype(np.float64) - base[both]).sum())
    return float(np.sqrt(far / norm)) if norm else None
