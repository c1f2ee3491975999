"""Plug-ins by name: a file of a folder, its keyword-only `build`, its options checked.

There is no registry: `strategies/fedavg.py` is the strategy `fedavg`, and a dotted name such
as `my_package.my_rule` is a module from outside with a `build` of the same shape.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from .config import suggest, wording
from .errors import ConfigError, Fault

ALLOWED = "PERENNIAL_PLUGINS"
"""Environment variable: the modules from outside, comma between, that this process may load. Where
it is not set, all: the config is the user's own. A client's worker, whose config is the server's,
has it set."""

_ROOT = Path(__file__).resolve().parent.parent
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def names(kind: str, part: Any = None) -> list[str]:
    """Names of the plug-ins in the folder `kind`, without importing them.

    Args:
        kind: the folder, such as `strategies`.
        part: only those whose `build` is annotated to return this (a folder may hold two).
    """
    return list(_names(kind, part if part is None else getattr(part, "__name__", str(part))))


@lru_cache(maxsize=64)
def _names(kind: str, part: str | None) -> tuple[str, ...]:
    found = []
    for path in sorted((_ROOT / kind).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name != "build":
                continue
            returns = ast.unparse(node.returns) if node.returns else ""
            if part in (None, returns):
                found.append(path.stem)
    return tuple(found)


def load(kind: str, name: str, options: Mapping[str, Any], part: Any, place: str = "") -> Any:
    """The plug-in `name` of folder `kind`, built with `options`.

    Args:
        kind: the folder, such as `strategies`.
        name: a file of that folder, or a dotted module path from outside.
        options: keyword arguments for its `build`, checked against its signature.
        part: what its `build` must be annotated to return, from `core.parts`.
        place: the config table to name in faults; `kind` when empty.

    Raises:
        ConfigError: no such plug-in, one of another part, or options that do not fit.
    """
    build = find(kind, name, part, place)
    return build(**_checked(build, options, place or kind))


def faults(
    kind: str, name: str, options: Mapping[str, Any], part: Any, place: str
) -> tuple[Fault, ...]:
    """What `load` would refuse, without building anything."""
    try:
        _checked(find(kind, name, part, place), options, place or kind)
    except ConfigError as error:
        return error.faults
    return ()


def find(kind: str, name: str, part: Any, place: str = "") -> Callable[..., Any]:
    """The `build` of a plug-in, not called.

    Raises:
        ConfigError: no such plug-in, or one of another part.
    """
    where = f"{place or kind}.name"
    known = names(kind, part)
    if name not in names(kind) and not _is_dotted(name):
        raise ConfigError([Fault(where, f"no {kind} plug-in {name!r}", suggest(name, known))])
    if "." in name and not _is_allowed(name):
        remedy = "whoever runs this client may add it to `plugins` in its file"
        raise ConfigError([Fault(where, f"{name!r} is not on this machine's list", remedy)])
    package = __package__.rpartition(".")[0]
    path = name if "." in name else f"{package}.{kind}.{name}"
    try:
        build = importlib.import_module(path).build
        returns = get_type_hints(build).get("return")
    # The last two: `build` is no function, or is annotated with a name that its file lacks.
    except (ImportError, AttributeError, SyntaxError, NameError, TypeError) as error:
        remedy = f"allowed: {', '.join(known)}"
        if "." in name:
            remedy += "; a module from outside must be installed or on PYTHONPATH"
        raise ConfigError([Fault(where, f"{name!r} cannot be loaded: {error}", remedy)]) from error
    if returns != part:
        wanted = getattr(part, "__name__", str(part))
        fault = Fault(where, f"{name!r} does not build a {wanted}", suggest(name, known))
        raise ConfigError([fault])
    return build  # type: ignore[no-any-return]


def _is_dotted(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _is_allowed(name: str) -> bool:
    listed = os.environ.get(ALLOWED)
    return listed is None or name in listed.split(",")


def _checked(build: Callable[..., Any], options: Mapping[str, Any], place: str) -> dict[str, Any]:
    hints = get_type_hints(build, include_extras=True)
    parameters = inspect.signature(build).parameters
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default)
        for name, p in parameters.items()
    }
    try:
        checked = create_model("Options", __config__=_STRICT, **fields)(**options)
    except ValidationError as error:
        raise ConfigError(_option_faults(error, hints, place, list(parameters))) from error
    return {name: getattr(checked, name) for name in parameters}


def _option_faults(
    error: ValidationError, hints: Mapping[str, Any], place: str, allowed: list[str]
) -> list[Fault]:
    # A value that fits no branch of a union gives one entry per branch: they are one fault.
    unions = {name for name, hint in hints.items() if get_origin(hint) in (Union, UnionType)}
    inner = {
        detail["loc"][:depth] for detail in error.errors() for depth in range(len(detail["loc"]))
    }
    # Items that are at fault are not counted either: that too few are left is no fault of its own.
    details = [d for d in error.errors() if d["type"] != "too_short" or d["loc"] not in inner]
    grouped = groupby(
        details, lambda detail: detail["loc"][:1] if detail["loc"][0] in unions else detail
    )
    return [_fault(list(details), place, allowed) for _, details in grouped]


def _fault(details: list[Any], place: str, allowed: list[str]) -> Fault:
    detail = details[0]
    key = ".".join(str(part) for part in detail["loc"][: 1 if details[1:] else None])
    if detail["type"] == "extra_forbidden":
        return Fault(f"{place}.{key}", "unknown option", suggest(key, allowed))
    if detail["type"] == "missing":
        return Fault(f"{place}.{key}", "must be given")
    problem = " or ".join(dict.fromkeys(wording(detail) for detail in details))
    return Fault(f"{place}.{key}", f"{problem}; got {detail['input']!r}")
