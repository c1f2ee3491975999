"""Schedules one after another on one fleet: seeds in by lines, results out by lines.

    python runner.py FOLDER     (in a mount namespace of its own: unshare --user --mount ...)

A schedule's update begins a home of its own, or, for every other seed, goes on from the release
that the schedule before ended with. `perennial update` is repeated as a timer would, until it
releases or gates, at most `MOST_CALLS` times.
"""

import contextlib
import json
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import judge
import numpy as np
from faults import Storm
from parties import Fleet, resume
from schedules import Schedule, drawn

from perennial.cli.overrides import override
from perennial.server import checkpoint, releases

MOST_CALLS = 6
"""Calls of `perennial update` after which a schedule must have ended."""

PLANTED = "planted"
"""Asked in the place of a seed: whether the judge finds what is planted."""

CODES = {0: "released", 3: "gated out", 1: "named error", 2: "named error", 130: "stopped"}
"""Exit codes of the operator's guide."""

_CALL_S = 900.0  # a busy machine; a call that hangs is found all the same
_PAUSE_S = 3.0
_HEAD = '[continual]\nname = "analytic_head"\nform = "means"\nlayers = 1\n'
_TRAIN = '[continual]\nname = "none"\n'


@dataclass
class Result:
    """How a schedule ended.

    Attributes:
        outcome: `released`, `gated out`, or what the last call said.
        calls: exit code and seconds of each call of `perennial update`.
        faults: what does not hold; none where all does.
    """

    schedule: str
    outcome: str = ""
    calls: list = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Runner:
    """Schedules on the fleet in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder)
        self._folder = folder
        self._rounds: dict[str, int] = {}
        self._end: tuple[Path, int, np.ndarray] | None = None
        self._judged: tuple[Path, np.ndarray | None] | None = None

    def run(self, seed: int) -> Result:
        """One schedule, judged."""
        schedule, started = drawn(seed), time.monotonic()
        result = Result(str(schedule))
        say(f"--- {schedule}")
        goes_on = seed % 2 == 1 and self._end is not None and self._end[1] == seed - 1
        home = self._end[0] if goes_on else self.fleet.home / "server" / f"service-{seed:04d}"
        before = self._end[2] if goes_on else None
        file = self._job(schedule, home)
        number = len(releases.all_of(home)) if home.exists() else 0
        try:
            self._weather(schedule, file, home, number, result)
            resume(self.fleet)
            self.fleet.wait_ready()
            self._judge(result, schedule, home, number, before)
        except Exception:
            result.faults.append(traceback.format_exc())
            with contextlib.suppress(Exception):
                resume(self.fleet)
                self.fleet.wait_ready()
        result.seconds = round(time.monotonic() - started, 1)
        short = f"{result.outcome}, {len(result.calls)} calls, {result.seconds:.0f} s"
        say(f"    {short}; faults: {result.faults or 'none'}")
        return result

    def planted(self) -> dict[str, bool]:
        """Whether the judge finds what is planted in the records of the last release."""
        assert self._judged is not None, "no schedule ended with a release yet"
        run, before = self._judged
        token = f"{run.name}-{(run / 'token').read_text().strip()}"
        domain = checkpoint.newest(run / "checkpoints").state.domain - 1
        node = judge.opened(self.fleet, token, domain)[0]["nodes"][0]
        given = list(judge.records(self.fleet))
        # In all sessions that it was asked in: an answer that is sent again is the same.
        place = (token, 0, node)
        names = ("run", "round", "node")
        mine = [i for i, x in enumerate(given) if tuple(x[name] for name in names) == place]
        one = given[mine[0]]

        def sums(factor: float) -> bool:
            changed = list(given)
            for index in mine:
                delta = given[index]["delta"] * np.float32(factor)
                changed[index] = {**given[index], "delta": delta}
            return bool(list(judge.sums_of(self.fleet, run, before, changed)))

        # More than the charges that crashes left without an answer.
        more = (np.roll(one["delta"], number) for number in range(1, 100))
        unpaid = [*given, *({**one, "delta": delta} for delta in more)]
        return {
            "counted twice": sums(2.0),
            "lost": sums(0.0),
            "not charged": bool(list(judge.ledgers_of(self.fleet, self._rounds, unpaid))),
        }

    def _job(self, schedule: Schedule, home: Path) -> Path:
        text = self.fleet.update_text + (_HEAD if schedule.head else _TRAIN)
        changes = [
            f"update.home={json.dumps(str(home))}",
            # A line of releases keeps to one seed.
            f"run.seed={schedule.seed // 2 if schedule.head else 1000 + schedule.seed // 2}",
            f"round.rounds={1 if schedule.head else 2}",
        ]
        file = self._folder / f"job-{schedule.seed:04d}.toml"
        file.write_text(override(text, changes))
        return file

    def _weather(
        self, schedule: Schedule, file: Path, home: Path, number: int, result: Result
    ) -> None:
        """Call the update until it ends, with faults on the way."""
        storm = Storm(self.fleet, schedule)
        storm.begin()
        for call in range(MOST_CALLS):
            log = self._folder / f"call-{schedule.seed:04d}-{call}.log"
            began = time.monotonic()
            process = self.fleet.update(file, log)
            while process.poll() is None:
                storm.look(_log(home, number + 1), process)
                if time.monotonic() - began > _CALL_S:
                    process.kill()
                    process.wait()
                    result.faults.append(f"call {call + 1} did not end in {_CALL_S:g} s")
                time.sleep(0.1)
            code, text = process.returncode, log.read_text()
            result.calls.append((code, round(time.monotonic() - began, 1)))
            self._said(code, text, result)
            seconds = time.monotonic() - began
            say(f"    call {call + 1}: code {code}, {seconds:.0f} s: {text.strip()[-160:]!r}")
            if code in (0, 3):
                break
            if call + 2 == MOST_CALLS:  # the last one has good weather
                storm.end()
                resume(self.fleet)
                self.fleet.wait_ready()
            end = time.monotonic() + _PAUSE_S
            while time.monotonic() < end:
                storm.look(_log(home, number + 1), None)
                time.sleep(0.1)
        storm.end()
        result.told, result.missed = storm.told, storm.missed

    def _said(self, code: int, text: str, result: Result) -> None:
        """Whether a call ended as the guide says."""
        last = text.strip().splitlines()[-1] if text.strip() else ""
        if "Traceback" in text:
            result.faults.append(f"a traceback: {text[-1500:]}")
        if code == -9:
            result.outcome = "killed"
            return
        if code not in CODES:
            result.faults.append(f"code {code} is not in the guide: {text[-500:]}")
            return
        result.outcome = CODES[code]
        if code in (0, 3):
            if json.loads(last)["state"] != {0: "released", 3: "refused"}[code]:
                result.faults.append(f"code {code} with {last}")
        else:
            result.errors.append(text.strip()[-600:])
            if "perennial: " not in text:
                result.faults.append(f"an error without a name: {text[-500:]}")

    def _judge(self, result: Result, schedule: Schedule, home: Path, number: int, before) -> None:
        fleet = self.fleet
        for folder in sorted((home / "updates").glob("[0-9]*")):
            if (folder / "token").exists():
                token = f"{folder.name}-{(folder / 'token').read_text().strip()}"
                self._rounds[token] = 1 if schedule.head else 2
        given = list(judge.records(fleet))
        result.faults += judge.ledgers_of(fleet, self._rounds, given)
        there = releases.all_of(home) if home.exists() else []
        if result.outcome != "released":
            if len(there) != number:
                result.faults.append(f"{len(there) - number} releases without a word")
            return
        if len(there) != number + 1:
            result.faults.append(f"{len(there) - number} releases of one update")
        done = fleet.perennial("releases", "verify", "--home", home)
        if done.returncode:
            result.faults.append(f"verify: {done.stdout}{done.stderr}")
        present = releases.in_service(home)
        if present is None or present.number != number + 1:
            result.faults.append("the release is not in service")
        run = home / "updates" / str(there[-1].card["update"])
        result.faults += judge.sums_of(fleet, run, before, given)
        self._judged = (run, before)
        params = checkpoint.newest(run / "checkpoints").state.params
        self._end = (home, schedule.seed, params)


def _log(home: Path, number: int) -> Path | None:
    found = sorted((home / "updates").glob(f"{number:04d}-*/events.jsonl"))
    return found[-1] if found else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    runner, started = Runner(folder), time.monotonic()
    try:
        runner.fleet.start()
        say(f"the fleet is up after {time.monotonic() - started:.0f} s")
        can = {"disks": runner.fleet.disks, "clocks": runner.fleet.can_jump}
        print(json.dumps(can), flush=True)
        for line in sys.stdin:
            asked = line.strip()
            told = runner.planted() if asked == PLANTED else vars(runner.run(int(asked)))
            print(json.dumps(told), flush=True)
    finally:
        resume(runner.fleet)
        runner.fleet.stop()
        time.sleep(1.0)
        left = runner.fleet.all_processes()
        print(json.dumps({"left": left}), flush=True)


if __name__ == "__main__":
    main()
