"""A fleet of `perennial init --loopback` as real processes, each party where faults can reach it.

Every party has a disk of its own (a small tmpfs, in a mount namespace of the test's own), a clock
of its own, and speaks to the others through a proxy. What dies is started again by the watch of
this process, as systemd would.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clock import Clock, compiled
from network import Line, Network
from recorded.bfv import RECORDS
from schedules import CLIENTS

from perennial.cli.fleet_up import _parties
from perennial.cli.provisioning import KEYHOLDER, SERVER
from perennial.core.fleet import read_client, read_server
from perennial.core.processes import Watch

COMMAND = [sys.executable, "-m", "perennial"]
HERE = Path(__file__).resolve().parent
PACKAGE = Path(__file__).resolve().parents[3]

_DISK_BYTES = {SERVER: 128 << 20, "client": 32 << 20}
_READY_S = 300.0
TEXT = """
[run]
name = "chaos"
seed = 5
[data]
name = "sample"
[shards]
split = "iid"
[model]
name = "tiny"
[train]
epochs = 1
batch_size = 16
lr = 2e-2
[round]
rounds = 2
weight = "uniform"
min_replies = 3
deadline_s = 60.0
[privacy]
name = "dp_sgd"
epsilon = 1000.0
delta = 1e-3
sample_rate = 0.5
noise_multiplier = 4.0
updates = 100
[secure_sum]
name = "recorded.bfv"
bits = 16
clip = 1.0
capacity = 16
[update]
min_accuracy = 0.0
min_gain = 0.0
max_loss = 100.0
"""


class Fleet:
    """The parties of a fleet, below `folder`.

    Attributes:
        home: as `init` made it.
        records: what each client sealed, written by itself where no fault reaches.
        lines: by the client's name, and `keyholder`.
        disks: parties whose disk can be filled; none where nothing may be mounted.
        clocks: by party; they stand still where there is no compiler.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.records = folder / "fleet", folder / "records"
        self.names = [f"client-{number + 1:02d}" for number in range(CLIENTS)]
        self.network, self.lines = Network(), dict[str, Line]()
        self.records.mkdir()
        (folder / "text.toml").write_text(TEXT)
        self._environment = {
            **os.environ,
            "PYTHONPATH": f"{PACKAGE}{os.pathsep}{HERE}",
            "OMP_NUM_THREADS": "1",
        }
        words = ("init", self.home, "--loopback", "--clients", CLIENTS, "--config")
        done = self.perennial(*words, folder / "text.toml")
        if done.returncode:
            raise RuntimeError(done.stderr)
        library = compiled(folder)
        self.can_jump = library is not None
        parties = (SERVER, KEYHOLDER, *self.names)
        self.clocks = {name: Clock(folder / f"{name}.clock", library) for name in parties}
        self.disks = self._mounted()
        self.server = read_server(self.home / SERVER / "server.toml")
        self._wire()
        self._watch: Watch | None = None
        self._over, self._thread = threading.Event(), None

    def _mounted(self) -> tuple[str, ...]:
        """A small disk of its own for each party whose state matters; its content stays."""
        mounted = []
        for name in (SERVER, *self.names):
            folder = self.home / name
            size = _DISK_BYTES.get(name, _DISK_BYTES["client"])
            aside = folder.with_name(f".{name}")
            folder.rename(aside)
            folder.mkdir(mode=0o700)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "disk", str(folder)]
            if not subprocess.run(mount, capture_output=True, check=False).returncode:
                mounted.append(name)
            for path in sorted(aside.iterdir()):
                subprocess.run(["mv", str(path), str(folder)], check=True)
            aside.rmdir()
        return tuple(mounted)

    def _wire(self) -> None:
        """Clients reach the server, and the server the key holder, through lines of the test."""
        port = int(self.server.address.rpartition(":")[2])
        for name in self.names:
            self.lines[name] = self.network.line(port)
            file = self.home / name / "client.toml"
            text = file.read_text().replace(f":{port}", f":{self.lines[name].port}")
            file.write_text(f'plugins = ["recorded.bfv"]\n{text}')
        self.update_text = (self.home / "update.toml").read_text()
        found = re.search(r'(?m)^address = "127.0.0.1:(\d+)"', self.update_text)
        line = self.lines[KEYHOLDER] = self.network.line(int(found[1]))
        self.update_text = self.update_text.replace(f":{found[1]}", f":{line.port}")

    def start(self) -> None:
        """Start all parties and wait until they serve."""
        programs = [
            replace(
                program,
                environment={
                    **self._environment,
                    **program.environment,
                    **self.clocks[program.name].environment,
                    RECORDS: str(self.records),
                },
            )
            for program in _parties(self.home)
        ]
        self._watch = Watch(programs, self.home / "logs")
        self._thread = threading.Thread(target=self._watch.run, args=(self._over.is_set,))
        self._thread.start()
        self.wait_ready()

    def stop(self) -> None:
        """Stop all parties."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.network.close()

    def perennial(self, *words, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command of the operator, outside of all faults but a full disk."""
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def update(self, file: Path, log: Path) -> subprocess.Popen:
        """Begin `perennial update` on the server's machine: its clock, its disk."""
        with log.open("w") as said:
            return subprocess.Popen(
                [*COMMAND, "update", str(file), "--json"],
                env={**self._environment, **self.clocks[SERVER].environment},
                cwd=self.home / SERVER,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float = _READY_S) -> None:
        """Until every service says that all its parts are up.

        Raises:
            TimeoutError: they did not come back.
        """
        clients = (read_client(self.home / name / "client.toml") for name in self.names)
        addresses = [self.server.status, *(client.status for client in clients)]
        end = time.monotonic() + seconds
        while not all(map(_is_ready, addresses)):
            if time.monotonic() > end:
                said = [f"{address}: {_is_ready(address)}" for address in addresses]
                raise TimeoutError(f"services must be ready again within {seconds:g} s: {said}")
            time.sleep(0.5)

    def processes(self, target: str) -> list[int]:
        """The processes of a target, as `schedules` names them."""
        word, _, name = target.partition(" ")
        wanted = _WORDS[word]
        found = []
        for process, line, folder in _running(self.home):
            mine = not name or name in line or f"/{name}/" in f"{folder}/"
            if mine and any(part in line for part in wanted):
                found.append(process)
        return found

    def all_processes(self) -> list[tuple[int, str]]:
        """Whatever runs for this fleet."""
        return [(process, line) for process, line, _ in _running(self.home)]

    def tell(self, target: str, sign: int) -> bool:
        """Send a signal to a target; whether there was one."""
        found = self.processes(target)
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, sign)
        return bool(found)

    def fill(self, name: str, spare: int) -> bool:
        """Leave only `spare` bytes of a party's disk; whether that can be done here."""
        if name not in self.disks:
            return False
        room = os.statvfs(self.home / name)
        size = max(room.f_bavail * room.f_frsize - spare, 0)
        with (self.home / name / ".filler").open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, size or 1)
        return True

    def free(self, name: str) -> None:
        """Give the disk back."""
        (self.home / name / ".filler").unlink(missing_ok=True)


_WORDS = {
    "superlink": ("perennial.server.superlink",),
    "executor": ("flower-superexec",),
    "serverapp": ("flwr-serverapp",),
    "server": ("-m perennial server ",),
    "keyholder": ("-m perennial keyholder ",),
    "node": ("flower-supernode",),
    "worker": ("-m perennial worker ",),
    "client": ("-m perennial client ",),
}


def _running(home: Path) -> Iterator[tuple[int, str, str]]:
    """Process, command line and folder of all that runs for the fleet in `home`."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            folder = os.readlink(path / "cwd")
            ours = str(home) in line or folder.startswith(str(home))
            if ours and int(path.name) != os.getpid():
                yield int(path.name), line, folder


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=2) as answer:
            return bool(json.loads(answer.read())["ready"])
    except (OSError, ValueError):
        return False


def resume(fleet: Fleet) -> None:
    """Nothing stays stopped, cut, full or on another time."""
    for process, _ in fleet.all_processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    for line in fleet.lines.values():
        fleet.network.tell(line, "")
    for name in fleet.disks:
        fleet.free(name)
    for clock in fleet.clocks.values():
        clock.jump(0.0)
