"""The run's one record: an append-only file of JSON lines, from which all else is rebuilt.

One event is one line with at least `event` (its name) and `time` (unix seconds). A process that
dies while it writes leaves a torn last line; readers pass over it, the next writer cuts it off.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ..core.errors import RunError
from ..core.files import claim

Event: TypeAlias = dict[str, Any]
"""One line of the log: `event`, `time` and the fields of that event."""

PLACES: Mapping[str, tuple[str, ...]] = {
    "run_started": (),
    "run_resumed": ("domain", "round"),
    "domain_started": ("domain",),
    "round_started": ("domain", "round", "attempt"),
    "reply": ("domain", "round", "attempt", "node"),
    "sum_opened": ("domain", "round", "attempt"),
    "noised": ("domain", "round", "attempt"),
    "round_finished": ("domain", "round", "attempt"),
    "round_failed": ("domain", "round", "attempt"),
    "evaluated": ("domain", "round"),
    "statement": ("domain", "node"),
    "domain_finished": ("domain",),
    "run_finished": (),
}
"""Event -> the fields, all integers, that say where it belongs; a repeat has them all equal."""


# Of a domain's end, whatever the round.
_LAST = ("statement", "domain_finished")


class EventLog:
    """An open event log: opens or continues a file, appends lines, closes.

    Not for use from several threads or processes at once.
    """

    def __init__(self, path: Path, also: Callable[[Event], None] | None = None) -> None:
        """Open `path` for appending, cutting off a torn last line.

        Args:
            path: the file; made if it is not there, its folder must be.
            also: called with each event after it was written (a `ScalarLog.add`, say).

        Raises:
            OSError: the file cannot be opened.
            RunError: another process has it open: the run goes on there.
        """
        self._file: BinaryIO = path.open("ab")
        try:
            _lock(self._file, path)
            _mend(path)
        except BaseException:
            self._file.close()
            raise
        self._also = also

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event, with the time of now, as one write of one line.

        Numbers that are not finite become null, numpy numbers and arrays plain ones.

        Raises:
            OSError: the disk is full or the file is closed (ValueError).
            TypeError: a field that JSON cannot say.
        """
        line = plain({"event": event, "time": time.time(), **fields})
        self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._also is not None:
            self._also(line)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_events(path: Path) -> list[Event]:
    """Every event of the file in order; a torn last line is passed over.

    Raises:
        OSError: the file cannot be read.
        RunError: a broken line before the last, named by file and number.
    """
    lines = path.read_bytes().split(b"\n")
    filled = [index for index, line in enumerate(lines) if line.strip()]
    events = []
    for index in filled:
        event = parse_line(lines[index])
        if event is not None:
            events.append(event)
        elif index != filled[-1]:
            raise RunError(
                f"{path}, line {index + 1}: must be a JSON object with 'event' and 'time'; got "
                f"{lines[index][:60]!r}; mend or remove the line"
            )
    return events


def parse_line(line: bytes) -> Event | None:
    """The event in one line; None when the line is torn or no event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if number(event.get("time")) is not None else None


def settle(events: Iterable[Event]) -> list[Event]:
    """The events that hold, in order: what a resume made void is gone, of repeats the last stays.

    A `run_resumed` at (domain d, round r) voids what came before it of rounds >= r in domain d
    and of later domains. An `evaluated` counts rounds done, so that of round r is kept: it
    measured the very state that is resumed. Events of unknown names are dropped.

    Law: `settle(settle(events))` equals `settle(events)`, and repeating a part of the log after
    a resume changes nothing but the repeated events' times.

    Raises:
        RunError: an event without the integers that say where it belongs.
    """
    kept: dict[tuple[Any, ...], Event] = {}
    for event in events:
        name = event["event"]
        if name not in PLACES:
            continue
        place = tuple(_integer(event, field) for field in PLACES[name])
        if name == "run_resumed":
            kept = {key: old for key, old in kept.items() if not _void(key, *place)}
            continue
        kept.pop((name, *place), None)
        kept[name, *place] = event
    return list(kept.values())


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else (null, text, true, nan)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float
        return None


def plain(value: Any) -> Any:
    """`value` as strict JSON can say it: nan and infinity as None, numpy as Python's own.

    Raises:
        TypeError: a value of another kind.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"an event holds JSON values; got {type(value).__name__}: {value!r}")


def _void(key: tuple[Any, ...], domain: int, round_: int) -> bool:
    name, *place = key
    if not place:
        return bool(name == "run_finished")
    if place[0] != domain or name in _LAST:
        return bool(place[0] > domain or (name in _LAST and place[0] == domain))
    if name == "domain_started":
        return False
    return bool(place[1] > round_ if name == "evaluated" else place[1] >= round_)


def _integer(event: Event, field: str) -> int:
    value = event.get(field)
    # bool is a kind of int; Flower's node ids are the only integers that may be below 0.
    if isinstance(value, int) and not isinstance(value, bool) and (value >= 0 or field == "node"):
        return value
    raise RunError(
        f"the event {event['event']!r} must have an integer {field!r}, 0 or more; got {value!r}"
    )


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        claim(file.fileno())
    except BlockingIOError as error:
        raise RunError(
            f"{path} must belong to one process; another one is running this run. "
            "Wait for it to end, or stop it, and try again."
        ) from error
    except OSError:  # a file system without locks
        return


def _mend(path: Path) -> None:
    """Cut a torn last line off, or end a whole one that lacks its newline."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        start, line = _last_line(file)
        if line.strip() and parse_line(line) is None:
            file.truncate(start)
        elif not line.endswith(b"\n"):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _last_line(file: BinaryIO, block: int = 1 << 16) -> tuple[int, bytes]:
    """Where the last line starts, and the line with its newline if it has one."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < end:
        step = min(block, end - len(tail))
        file.seek(end - len(tail) - step)
        tail = file.read(step) + tail
        cut = tail.rfind(b"\n", 0, len(tail) - 1)
        if cut >= 0:
            return end - len(tail) + cut + 1, tail[cut + 1 :]
    return 0, tail
