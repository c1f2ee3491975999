"""The section of the report page on the audit: what attacks on the training really reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from .drill_charts import drill_picture
from .events import number
from .report_parts import columns_table, figure, fold, rows_table
from .svg import escape
from .units import DASH

Audit: TypeAlias = Mapping[str, Any]

# Items of a list that are shown.
_MOST_ITEMS = 12


def audit_figure(audit: Audit | None) -> str:
    """The section, as markup.

    Args:
        audit: of a report: what `perennial audit` left; None without one.
    """
    heading = "Does the training keep its promise?"
    if audit is None:
        return figure(
            heading,
            "Not audited. The command perennial audit FILE attacks the training of this config "
            "with planted records; what it finds for a run of this name is kept beside this one's "
            "folder, and perennial report then shows it here.",
        )
    if "broken" in audit:
        why = f"audit.json in the folder of this run cannot be read: {audit['broken']}."
        return figure(heading, f"{why} Make it anew with perennial audit FILE.")
    after = _kinds(audit) + _drill(audit)
    if (picture := _picture(audit)) is not None:
        return figure(heading, _verdict(audit), picture, after)
    return figure(heading, _verdict(audit), after=after)


def _picture(audit: Audit) -> Callable[[float], str] | None:
    """The drill as a chart; None where there is none, or another version wrote it otherwise."""
    drill = audit.get("drill")
    try:
        if not isinstance(drill, Mapping) or not drill_picture(drill, 600.0):
            return None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return partial(drill_picture, drill)


def _verdict(audit: Audit) -> str:
    claimed, confidence = number(audit.get("claimed")), number(audit.get("confidence"))
    sure = "unknown" if confidence is None else f"{100.0 * confidence:g} %"
    end = "passed: no attack got above the claim" if audit.get("pass") else "FAILED: an attack did"
    if claimed is None:
        claim, end = "with nothing claimed", "what attacks reach is below"
    else:
        claim = f"at a claimed epsilon of {claimed:g}"
    return (
        "Records were planted at random in a training by the code that clients run, "
        f"{claim}, and guessed from what came out (Steinke, Nasr and Jagielski 2023): {end}. "
        f"Confidence {sure}. An audit can refute a claim and not prove it."
    )


def _kinds(audit: Audit) -> str:
    heads = ("canaries", "planted", "guesses", "right", "epsilon is at least", "verdict")
    rows = (
        (
            str(kind.get("kind", "")).replace("_", " "),
            *(_plain(kind.get(word)) for word in ("canaries", "guesses", "right")),
            _plain(kind.get("lower_bound")),
            "passed" if kind.get("pass") else "FAILED",
        )
        for kind in audit["kinds"]
    )
    return columns_table("What the audit found", heads, rows)


def _drill(audit: Audit) -> str:
    """Single figures as rows, lists of entries as tables of their own."""
    found = audit.get("drill")
    if not isinstance(found, Mapping):
        return ""
    lists = {key: value for key, value in found.items() if _is_table(value)}
    rest = {key: value for key, value in found.items() if key not in lists}
    rows = [(key, escape(value)) for key, value in _flat(rest)]
    tables = "".join(_entries(str(key), value) for key, value in lists.items())
    body = (rows_table("Attack drill", (), rows) if rows else "") + tables
    return fold("What attacks on recorded updates found", body)


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _entries(name: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """A table of what all entries have; points of curves are for report.json."""
    keys = [key for key in entries[0] if not isinstance(entries[0][key], list)]
    heads = [key.replace("_", " ") for key in keys]
    rows = [[_plain(entry.get(key)) for key in keys] for entry in entries]
    label = name.replace("_", " ")
    return f"<h3>{escape(label)}</h3>{columns_table(label, heads, rows)}" if keys else ""


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{above}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        elif isinstance(value, list):
            shown = ", ".join(_plain(item) for item in value[:_MOST_ITEMS])
            more = len(value) - _MOST_ITEMS
            yield name, f"{shown}, and {more:,} more" if more > 0 else shown
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return _plain(value.get("name"))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
