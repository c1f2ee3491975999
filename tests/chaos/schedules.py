"""Faults drawn from a seed: what happens to whom, when, and for how long."""

import random
from dataclasses import dataclass

CLIENTS = 4
KILL, PAUSE, NETWORK, DISK, CLOCK = "kill", "pause", "network", "disk", "clock"
KINDS = (KILL, PAUSE, NETWORK, DISK, CLOCK)

_NAMES = tuple(f"client-{number + 1:02d}" for number in range(CLIENTS))
_OF_SERVER = ("superlink", "executor", "serverapp", "server", "keyholder")
_OF_CLIENT = ("node", "worker", "client")
_WEIGHTS = (5, 3, 3, 2, 2)
_LAST_EVENT = 20
_JUMPS_S = (30.0, 400.0, 3600.0, 86400.0)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: of `KINDS`.
        target: `superlink`, `worker client-02`, `line client-01`, `disk server`, ...
        after: so many events of the update's log come first.
        pause_s: and so many seconds more.
        for_s: how long it lasts; 0 for what is over at once.
        how: of the network `cut`, `stall` or `reset`; of a clock by how many seconds.
    """

    kind: str
    target: str
    after: int
    pause_s: float
    for_s: float = 0.0
    how: str = ""

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        how = f" ({self.how})" if self.how else ""
        when = f"after event {self.after} + {self.pause_s:.1f} s"
        return f"{self.kind} {self.target}{how}{lasts}, {when}"


@dataclass(frozen=True)
class Schedule:
    """1 to 4 faults, in the order of their moments.

    Attributes:
        seed: gives all of it.
        head: whether the update is of noisy statistics too, and not of training alone.
    """

    seed: int
    head: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        what = "one round and statistics" if self.head else "two rounds"
        return f"seed {self.seed} ({what}): " + "; ".join(map(str, self.faults))


def drawn(seed: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(f"chaos {seed}")
    faults = [_fault(rng) for _ in range(rng.randint(1, 4))]
    faults.sort(key=lambda fault: (fault.after, fault.pause_s))
    return Schedule(seed, bool(seed // 2 % 2), tuple(faults))


def _fault(rng: random.Random) -> Fault:
    kind = rng.choices(KINDS, _WEIGHTS)[0]
    after, pause_s = rng.randint(0, _LAST_EVENT), round(rng.uniform(0.0, 3.0), 1)
    some_s = round(rng.uniform(2.0, 12.0), 1)
    if kind == KILL:
        return Fault(kind, _process(rng, ("update",)), after, pause_s)
    if kind == PAUSE:
        return Fault(kind, _process(rng), after, pause_s, some_s)
    if kind == NETWORK:
        lines = (*_NAMES, "clients", "keyholder")
        how = rng.choice(("cut", "stall", "reset"))
        return Fault(
            kind, rng.choice(lines), after, pause_s, some_s if how != "reset" else 0.0, how
        )
    if kind == DISK:
        return Fault(kind, rng.choice(("server", "server", *_NAMES)), after, pause_s, some_s)
    seconds = rng.choice(_JUMPS_S) * rng.choice((1.0, -1.0))
    who = rng.choice(("server", "keyholder", "all", *_NAMES))
    return Fault(kind, who, after, pause_s, some_s, f"{seconds:+g} s")


def _process(rng: random.Random, more: tuple[str, ...] = ()) -> str:
    name = rng.choice((*_OF_SERVER, *_OF_CLIENT, *more))
    return f"{name} {rng.choice(_NAMES)}" if name in _OF_CLIENT else name
