"""What the runs of a server came to so far, counted from their event logs, for those who watch it.

The process that serves the figures is not the one that runs: it follows the logs, so that no figure
is lost with a process. Updates copy the log of the run they go on from: an event is counted once.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .events import Event, number, parse_line
from .report_log import integer, table

RUNS = "PERENNIAL_RUNS"
"""Environment variable: a file to which each run's folder is added as it begins, a line each."""


def followed() -> bool:
    """Whether somebody follows this process."""
    return bool(os.environ.get(RUNS))


def announce(folder: Path) -> None:
    """Tell whoever follows this process where its run lies; nothing where nobody does."""
    where = os.environ.get(RUNS)
    if where:
        with Path(where).open("a", encoding="utf-8") as file:
            file.write(json.dumps(str(folder.resolve())) + "\n")


_PROMISES = (("example", "privacy"), ("user", "user_privacy"))


@dataclass(slots=True)
class Tally:
    """Follows the logs of all runs that were announced; not for several threads.

    Attributes:
        runs: the file of `announce`.
        rounds: rounds that were finished.
        failures: attempts that gave nothing.
        replies: answers that counted.
        rejected: cause -> answers that did not.
        bytes_up: from clients.
        bytes_down: to clients.
        seconds: of finished rounds, together.
        epsilon: unit -> the largest that a client said it has spent.
        promised: unit -> the epsilon that the newest run promises.
        accuracy: domain -> its newest, 0..1.
        state: `domain`, `round`, `loss` of the newest round, and `finished`, 0 or 1.
    """

    runs: Path
    rounds: int = 0
    failures: int = 0
    replies: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    epsilon: dict[str, float] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    state: dict[str, float] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)
    _since: dict[Path, float] = field(default_factory=dict)
    _newest: float = -math.inf

    def follow(self) -> None:
        """Take in what was written since the last call; logs that are gone are passed over."""
        for folder in _folders(self.runs):
            path = folder / "events.jsonl"
            try:
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    new = file.read()
            except OSError:
                continue
            whole = new.rfind(b"\n") + 1  # the last line may be half written
            self._read[path] = self._read.get(path, 0) + whole
            # A log that goes on from another one begins with a copy of it.
            since = self._since.setdefault(path, self._newest)
            for line in new[:whole].splitlines():
                event = parse_line(line)
                if event is not None and (time := float(event["time"])) > since:
                    self._newest = max(self._newest, time)
                    self._take(event)

    def _take(self, event: Event) -> None:
        act = _ACTS.get(event["event"])
        if act is not None:
            act(self, event)

    def _reply(self, event: Event) -> None:
        self.bytes_up += integer(event.get("bytes_up"))
        if event.get("ok"):
            self.replies += 1
        else:
            self.rejected[str(event.get("cause") or "unknown")] += 1
        _largest(self.epsilon, event.get("epsilon"))

    def _statement(self, event: Event) -> None:
        _largest(self.epsilon, event.get("epsilon"))

    def _started(self, event: Event) -> None:
        self.bytes_down += integer(event.get("bytes_down"))
        self.state |= {"domain": event.get("domain", 0), "round": event.get("round", 0)}

    def _round(self, event: Event) -> None:
        self.rounds += 1
        self.seconds += number(event.get("seconds")) or 0.0
        loss = number(event.get("loss"))
        self.state |= {} if loss is None else {"loss": loss}

    def _failed(self, event: Event) -> None:
        self.failures += 1

    def _evaluated(self, event: Event) -> None:
        for name, value in table(event.get("accuracy")).items():
            if (rate := number(value)) is not None:
                self.accuracy[str(name)] = rate

    def _begun(self, event: Event) -> None:
        self.state["finished"] = 0.0
        if event["event"] != "run_started":
            return
        config = table(event.get("config"))
        found = {unit: number(table(config.get(name)).get("epsilon")) for unit, name in _PROMISES}
        self.promised = {unit: epsilon for unit, epsilon in found.items() if epsilon is not None}

    def _over(self, event: Event) -> None:
        self.state["finished"] = 1.0


_ACTS = {
    "reply": Tally._reply,
    "statement": Tally._statement,
    "round_started": Tally._started,
    "round_finished": Tally._round,
    "round_failed": Tally._failed,
    "evaluated": Tally._evaluated,
    "run_started": Tally._begun,
    "run_resumed": Tally._begun,
    "run_finished": Tally._over,
}


def _largest(found: dict[str, float], told: Any) -> None:
    spent: Mapping[str, Any] = table(told)
    for unit, value in spent.items():
        if (epsilon := number(value)) is not None:
            found[str(unit)] = max(found.get(str(unit), 0.0), epsilon)


def _folders(runs: Path) -> list[Path]:
    """The folders that were announced, each once, in order."""
    try:
        lines = runs.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Path(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return list(dict.fromkeys(found))
