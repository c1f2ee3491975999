"""How the updates of a run were hidden, and what that cost: the block `sums` of report.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .events import Event, number
from .report_log import Log, integer, is_given_up, table
from .units import DASH, digits

FLOAT_BYTES = 4
"""Bytes of a value in the clear, float32."""

MOST_SATURATED = 0.01
"""Share of values that may be cut before a larger clip is advised."""

_SECONDS = ("seal_seconds", "add_seconds", "open_seconds")


def sums(
    log: Log, start: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """How updates were hidden; None where the log does not say.

    `hidden` is false where the server sees every update; `rounds` is empty then. Bytes up are those
    of all clients and attempts, as in the report's `rounds`; seconds of sealing are a mean over the
    clients that were counted, those of adding and opening the server's own, in `totals` over
    all rounds. Rates are 0..1. What was not measured, or cannot be, is None.

    Args:
        log: settled events by name.
        start: the event run_started; empty when unknown.
        rounds: entries of the report's `rounds`.

    Law: a log without `sealing` and without an opened sum has no such block.
    """
    sealing, opened = table(start.get("sealing")), log["sum_opened"]
    if not sealing and not opened:
        return None
    scheme = table(sealing.get("scheme"))
    sent = {(entry["domain"], entry["round"]): entry["bytes_up"] for entry in rounds}
    ordered = sorted(opened, key=lambda event: (event["domain"], event["round"]))
    entries = [_round(event, sent.get((event["domain"], event["round"]))) for event in ordered]
    return {
        "hidden": bool(sealing.get("hidden", opened)),
        "words": _text(sealing.get("words")),
        "masks": bool(sealing["masks"]) if "masks" in sealing else None,
        "scheme": _text(scheme.get("name")),
        "key_model": _text(scheme.get("model")),
        "keys": _keys([sealing, *ordered]),
        "keyholder": _text(sealing.get("keyholder")),
        "totals": _totals(entries, log),
        "rounds": entries,
    }


def saturation(report: Mapping[str, Any]) -> str:
    """What to do where too many values were cut; empty where that is not so."""
    block = report["sums"]
    rate = block["totals"]["saturated_rate"] if block else None
    if rate is None or rate <= MOST_SATURATED:
        return ""
    clip = number(table(table(report["config"]).get("secure_sum")).get("clip"))
    now = "" if clip is None else f" (now {clip:g})"
    return f"{share(rate)} of all values were cut; raise [secure_sum] clip{now}"


def share(rate: float | None) -> str:
    """A rate 0..1 as `0 %`, `0.25 %` or `3.1 %`; what is too small to be shown is not called 0."""
    if rate is None:
        return DASH
    return "< 0.01 %" if 0.0 < rate < 0.00005 else f"{digits(100 * rate)} %"


def in_brief(opened: Event, *, told: bool = True) -> str:
    """Bytes per value and values cut of a `sum_opened`; empty where nothing travelled.

    Args:
        opened: the event.
        told: whether clients say how many values they cut: not where a sum is private to users.
    """
    each, rate = number(opened.get("bytes_per_value")), _rate(opened)
    if not each or rate is None:
        return ""
    cut = f", saturated {share(rate)}" if told else ""
    return f"{digits(each)} B/value{cut}"


def _rate(event: Event) -> float | None:
    """Share of the values that were cut, 0..1; None where there were none."""
    values, cut = number(event.get("values")), number(event.get("saturated"))
    return cut / values if values and cut is not None else None


def _round(event: Event, bytes_up: int | None) -> dict[str, Any]:
    each = number(event.get("bytes_per_value")) or None
    return {
        **{key: event[key] for key in ("domain", "round", "attempt")},
        **{key: integer(event.get(key)) for key in ("counted", "dropped", "revealed", "values")},
        "saturated": integer(event.get("saturated")),
        "saturated_rate": _rate(event),
        # 0 says that nothing travelled, or that the sum has no scale.
        "scale": number(event.get("scale")) or None,
        "peak": number(event.get("peak")),
        "bytes_per_value": each,
        "ratio_to_float32": each / FLOAT_BYTES if each else None,
        "bytes_up": bytes_up,
        **{key: number(event.get(key)) for key in _SECONDS},
        "key": _text(event.get("key")),
    }


def _totals(entries: Sequence[Mapping[str, Any]], log: Log) -> dict[str, Any]:
    counts = {
        key: sum(entry[key] for entry in entries)
        for key in ("values", "saturated", "dropped", "revealed")
    }
    each = _mean((entry["bytes_per_value"], entry["values"]) for entry in entries)
    return {
        "rounds": len(entries),
        "given_up": sum(map(is_given_up, log["round_failed"])),
        **counts,
        "saturated_rate": counts["saturated"] / counts["values"] if counts["values"] else None,
        "bytes_per_value": each,
        "ratio_to_float32": each / FLOAT_BYTES if each else None,
        "bytes_up": sum(entry["bytes_up"] or 0 for entry in entries),
        "seal_seconds": _mean((entry["seal_seconds"], entry["counted"]) for entry in entries),
        "add_seconds": sum(entry["add_seconds"] or 0.0 for entry in entries),
        "open_seconds": sum(entry["open_seconds"] or 0.0 for entry in entries),
    }


def _mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """The weighted mean of (value, weight), where there are values."""
    known = [(value, weight) for value, weight in pairs if value is not None]
    weight = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weight if weight else None


def _keys(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fingerprints that were seen, each once, in order."""
    return list(dict.fromkeys(key for event in events if (key := _text(event.get("key")))))


def _text(value: Any) -> str | None:
    return str(value) if value else None
