"""`--set table.key=value`: changes to a config's text before anything reads it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import tomli_w

from ..core.errors import ConfigError, Fault

_METHODS = ["continual", "methods"]


def override(text: str, settings: Sequence[str]) -> str:
    """`text` with each `table.key=value` written into it; unchanged without settings.

    A value is read as TOML (`0.5`, `true`, `["a", "b"]`); what is not TOML is taken as a string.
    In an array of tables a key is a place from 0, or the `name` that one of them alone has:
    `continual.methods.0.per_class=5` or `continual.methods.replay.per_class=5`.

    Raises:
        ConfigError: a setting has no `=`, goes through something that is not a table, names no
            table of an array, or the text is not valid TOML.
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
    own = tree.get(_METHODS[0], {})
    if keys[:2] == _METHODS and keys[2:] and isinstance(own, dict) and _METHODS[1] not in own:
        # Or a table would be made where an array must be.
        problem = "the file lists no [[continual.methods]]; write all that the run is to have"
        return [Fault("--set", f"{problem}; got {setting!r}")]
    at: Any = tree
    try:
        for key in keys[:-1]:
            at = _below(at, key)
        at[_place(at, keys[-1])] = _value(value.strip())
    except LookupError as error:
        return [Fault("--set", f"{error}; got {setting!r}")]
    return []


def _below(at: Any, key: str) -> Any:
    """The table or array at `key`; a table that is missing is made.

    Raises:
        LookupError: there is something else, or an array has no such place or name.
    """
    place = _place(at, key)
    found = at.setdefault(place, {}) if isinstance(at, dict) else at[place]
    if not isinstance(found, dict | list):
        raise LookupError(f"{key!r} is no table")
    return found


def _place(at: Any, key: str) -> Any:
    """`key` itself in a table; in an array the index that it is, or of the table that it names.

    Raises:
        LookupError: an array has no such place or name.
    """
    if isinstance(at, dict):
        return key
    if key.isdecimal() and int(key) < len(at):
        return int(key)
    names = [item.get("name") if isinstance(item, dict) else None for item in at]
    if names.count(key) == 1:
        return names.index(key)
    known = ", ".join(str(name) for name in names if name) or "no names"
    raise LookupError(
        f"{key!r} must be a place from 0, below {len(at)}, or the name that one table alone has; "
        f"there are {known}"
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
