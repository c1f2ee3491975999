"""`--set table.key=value`: changes to a config's text before anything reads it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import tomli_w

from ..core.errors import ConfigError, Fault


def override(text: str, settings: Sequence[str]) -> str:
    """`text` with each `table.key=value` written into it; unchanged without settings.

    A value is read as TOML (`0.5`, `true`, `["a", "b"]`); what is not TOML is taken as a string.

    Raises:
        ConfigError: a setting has no `=`, goes through something that is not a table, or the
            text is not valid TOML.
    """
    if not settings:
        return text
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Fault("", f"the file is not valid TOML: {error}")]) from error
    faults = [fault for setting in settings for fault in _write(tree, setting)]
    if faults:
        raise ConfigError(faults)
    return tomli_w.dumps(tree)


def _write(tree: dict[str, Any], setting: str) -> list[Fault]:
    path, equals, value = setting.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        return [Fault("--set", f"must be table.key=value; got {setting!r}")]
    table: Any = tree
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return [Fault("--set", f"{key!r} is no table; got {setting!r}")]
    table[keys[-1]] = _value(value.strip())
    return []


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
