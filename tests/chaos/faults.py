"""Faults as they happen to a fleet: begun at their moment, ended after their time."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from parties import Fleet
from schedules import CLOCK, DISK, KILL, NETWORK, PAUSE, Fault, Schedule

_SPARE_BYTES = 24 << 10  # a full disk has room for some files, and not for others
_LATE_S = 90.0  # a fault whose event does not come happens all the same
_FIND_S = 30.0  # how long the process that a fault is for may be missing


@dataclass
class Storm:
    """The faults of one schedule, driven by the log of the update.

    Attributes:
        told: what was done, for people.
        missed: faults that found nothing to happen to, or came after the end.
    """

    fleet: Fleet
    schedule: Schedule
    told: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    _due: list[tuple[float, Fault]] = field(default_factory=list)
    _left: list[Fault] = field(default_factory=list)
    _under_way: list[tuple[float, Fault]] = field(default_factory=list)
    _began: float = 0.0
    _last: float = 0.0

    def begin(self) -> None:
        """The first call of the update is made now."""
        self._left = list(self.schedule.faults)
        self._began = self._last = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether every fault has been and gone."""
        return not (self._left or self._due or self._under_way)

    def look(self, log: Path | None, call: subprocess.Popen | None) -> None:
        """Do what is due; called several times a second.

        Args:
            log: events of the update; None where it has none yet.
            call: the update's own process, if it runs.
        """
        now = time.monotonic()
        count = log.read_bytes().count(b"\n") if log is not None and log.exists() else 0
        while self._left and (count >= self._left[0].after or now > self._last + _LATE_S):
            fault = self._left.pop(0)
            self._due.append((now + fault.pause_s, fault))
            self._last = now
        for due in [entry for entry in self._due if entry[0] <= now]:
            if self._apply(due[1], call):
                self._due.remove(due)
                self.told.append(f"{now - self._began:.1f} s: {due[1]}")
                if due[1].for_s:
                    self._under_way.append((now + due[1].for_s, due[1]))
            elif now > due[0] + _FIND_S:
                self._due.remove(due)
                self.missed.append(str(due[1]))
        for entry in [entry for entry in self._under_way if entry[0] <= now]:
            self._under_way.remove(entry)
            self._undo(entry[1])

    def end(self) -> None:
        """The run is over: what did not happen by now does not."""
        self.missed += [str(fault) for fault in (*self._left, *(f for _, f in self._due))]
        for _, fault in self._under_way:
            self._undo(fault)
        self._left, self._due, self._under_way = [], [], []

    def _apply(self, fault: Fault, call: subprocess.Popen | None) -> bool:
        fleet, target = self.fleet, fault.target
        if target == "update":
            if call is None or call.poll() is not None:
                return False
            os.kill(call.pid, signal.SIGKILL)
            return True
        if fault.kind in (KILL, PAUSE):
            return fleet.tell(target, signal.SIGKILL if fault.kind == KILL else signal.SIGSTOP)
        if fault.kind == NETWORK:
            for line in self._lines(target):
                if fault.how == "reset":
                    fleet.network.reset(line)
                else:
                    fleet.network.tell(line, fault.how)
            return True
        if fault.kind == DISK:
            return fleet.fill(target, _SPARE_BYTES)
        self._jump(target, float(fault.how.split()[0]))
        return fleet.can_jump

    def _undo(self, fault: Fault) -> None:
        if fault.kind == PAUSE:
            self.fleet.tell(fault.target, signal.SIGCONT)
        elif fault.kind == NETWORK:
            for line in self._lines(fault.target):
                self.fleet.network.tell(line, "")
        elif fault.kind == DISK:
            self.fleet.free(fault.target)
        elif fault.kind == CLOCK:
            self._jump(fault.target, 0.0)

    def _lines(self, target: str) -> list:
        names = self.fleet.names if target == "clients" else [target]
        return [self.fleet.lines[name] for name in names]

    def _jump(self, target: str, seconds: float) -> None:
        names = self.fleet.clocks if target == "all" else [target]
        for name in names:
            self.fleet.clocks[name].jump(seconds)
