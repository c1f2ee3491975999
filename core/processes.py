"""Programs that belong together: started in order, watched, started again, stopped in reverse.

A program that dies is started again, after a pause that doubles with each death. One that never
comes up is a fault of its config: its last words are shown and all are stopped. When the watcher
itself dies, its programs are told to stop (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import RunError

logger = logging.getLogger(__name__)

STARTING, UP, DOWN = "starting", "up", "down"
"""States of a program."""

_FIRST_S, _LONGEST_S = 0.5, 30.0  # pause before a program that died is started again
_GOOD_S = 60.0  # a program that was up so long begins with the first pause again
_LOOK_S = 0.2
_OFTEN_S = 5.0
_DEATHS = 3  # before a program that never came up is given up
_LAST_WORDS = 1500


@dataclass(frozen=True, slots=True)
class Program:
    """What is to run.

    Attributes:
        name: of its log file and in messages.
        command: with its arguments.
        ready: () -> whether it serves; quick, and asked again and again.
        folder: in which it runs.
        environment: on top of the watcher's own.
        start_s: how long it may take to be ready.
        stop_s: how long it may take to stop before it is killed.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    folder: Path = Path()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 90.0
    stop_s: float = 20.0


@dataclass(slots=True)
class _Life:
    """A program's present process, and what became of those before."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    again_at: float = 0.0
    pause_s: float = _FIRST_S
    left: int = 0
    deaths: int = 0
    was_up: bool = False
    state: str = DOWN


@dataclass(slots=True)
class Watch:
    """Programs under one eye; not for several threads but for `states` and `starts`.

    Attributes:
        logs: folder of one log file a program; made if missing.
    """

    programs: Sequence[Program]
    logs: Path
    _lives: list[_Life] = field(default_factory=list)
    _started: dict[str, int] = field(default_factory=dict)

    def run(
        self,
        stopped: Callable[[], bool],
        once: Callable[[], None] = lambda: None,
        often: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep the programs running until `stopped()`, then stop them, the last one first.

        Args:
            stopped: () -> whether to end; asked several times a second.
            once: called when all are up for the first time.
            often: called every few seconds after that, while all are up.

        Raises:
            RunError: a program never came up.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self._lives = [_Life(program) for program in self.programs]
        told, due = False, 0.0
        try:
            while not stopped():
                self._look()
                if time.monotonic() >= due and all(life.state == UP for life in self._lives):
                    (often if told else once)()
                    told, due = True, time.monotonic() + _OFTEN_S
                time.sleep(_LOOK_S)
        finally:
            for life in reversed(self._lives):
                self._stop(life)

    def states(self) -> dict[str, str]:
        """Program -> `starting`, `up` or `down`."""
        return {life.program.name: life.state for life in self._lives}

    def processes(self) -> dict[str, int]:
        """Program -> its process, of those that run."""
        alive = ((life.program.name, life.process) for life in self._lives)
        return {name: process.pid for name, process in alive if process is not None}

    def starts(self) -> dict[str, int]:
        """Program -> how often it was started."""
        return dict(self._started)

    def _look(self) -> None:
        for life in self._lives:
            if life.process is not None and life.process.poll() is not None:
                self._died(life, life.process.returncode)
            if life.process is None and time.monotonic() >= life.again_at:
                self._start(life)
            if life.state == STARTING:
                self._wait(life)
            if not life.was_up:
                return  # the next one stands on this one

    def _start(self, life: _Life) -> None:
        program = life.program
        _tell(life.left, signal.SIGKILL)  # it was told to stop when the program died
        life.left = 0
        with (self.logs / f"{program.name}.log").open("ab") as log:
            life.process = subprocess.Popen(
                list(program.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=program.folder,
                env={**os.environ, **program.environment},
                start_new_session=True,
                preexec_fn=_die_with_me,
            )
        life.since, life.state = time.monotonic(), STARTING
        self._started[program.name] = self._started.get(program.name, 0) + 1
        logger.info("%s: started, process %d", program.name, life.process.pid)

    def _wait(self, life: _Life) -> None:
        waited = time.monotonic() - life.since
        if life.program.ready():
            life.state, life.was_up = UP, True
            logger.info("%s: up after %.1f s", life.program.name, waited)
        elif waited > life.program.start_s:
            logger.error("%s: not up after %.0f s", life.program.name, waited)
            self._stop(life)
            self._died(life, -int(signal.SIGTERM))

    def _died(self, life: _Life, code: int) -> None:
        name, lived = life.program.name, time.monotonic() - life.since
        if life.process is not None:
            # What it had started itself would live on, and do its work beside the next one's.
            life.left = life.process.pid
            _tell(life.left, signal.SIGTERM)
        life.process, life.state = None, DOWN
        life.deaths += 1
        if not life.was_up and life.deaths >= _DEATHS:
            raise RunError(
                f"{name} must come up; it ended {life.deaths} times before, last with code {code}. "
                f"Its log, {self.logs / name}.log, ends with:\n{self._last_words(name)}"
            )
        life.pause_s = _FIRST_S if lived > _GOOD_S else min(2 * life.pause_s, _LONGEST_S)
        life.again_at = time.monotonic() + life.pause_s
        logger.warning(
            "%s: ended with code %d after %.0f s; starts again in %.1f s",
            name,
            code,
            lived,
            life.pause_s,
        )

    def _last_words(self, name: str) -> str:
        text = (self.logs / f"{name}.log").read_bytes()[-_LAST_WORDS:]
        return text.decode("utf-8", "replace")

    def _stop(self, life: _Life) -> None:
        process = life.process
        if process is None:
            _tell(life.left, signal.SIGKILL)
            return
        for sign, patience in ((signal.SIGTERM, life.program.stop_s), (signal.SIGKILL, 10.0)):
            _tell(process.pid, sign)
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                logger.warning("%s: did not stop in %.0f s", life.program.name, patience)
        _tell(process.pid, signal.SIGKILL)
        life.process, life.state = None, DOWN
        logger.info("%s: stopped", life.program.name)


def _tell(group: int, sign: int) -> None:
    """Send a signal to a program and all that it started; nothing where none of it is left."""
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, sign)


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_me() -> None:
    """In the child: be told to stop when the watcher's thread ends, however it ends (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
