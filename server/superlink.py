"""Flower's SuperLink as this package runs it: its database waits for its turn, and is asked less.

    python -m perennial.server.superlink ARGUMENTS     (those of flower-superlink)

Stock, a statement that waits 5 s for another one's transaction fails, and with it the request of a
node or of the executor: with some dozens of nodes on a busy machine a reply is lost, or the
executor ends and the run with it. Each request writes, a node's for one part of a message too, and
SQLite has writers sleep and try again, longer and longer, which is most of a round's time with a
hundred nodes. Here writers of a database queue up before they ask it, overdue tasks are looked for
once a second and not at each request, and readers have connections to spare. Nothing of this is
public; it is replaced here and nowhere else.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import flwr.supercore.sql_mixin
import sqlalchemy
from flwr.supercore.corestate.sql_corestate import SqlCoreState

_WAIT_S = 60
"""Longest wait of a statement; a node gives a request 30 s, and asks again."""
_EVERY_S = 1.0
"""Pause between looks for overdue tasks, which have 30 or 60 s."""
_CONNECTIONS = 48
"""Of a database: one for each of the 40 threads that requests run in, and some."""
_MEMORY = {"cache_size": "-2000", "mmap_size": "0"}
"""2 MB of pages for each connection. Stock, each may keep 64 MB, and map the file as well."""
_WRITES = re.compile(r"\s*(WITH\b.*\b)?(INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE | re.DOTALL)
_TURN = "perennial.turn"


def patient() -> None:
    """Have every database that is opened after this wait for its turn, so long if it must."""
    stores: Any = flwr.supercore.sql_mixin  # neither name is one that it exports
    ours = {"busy_timeout": str(1000 * _WAIT_S), **_MEMORY}
    stores.SQLITE_PRAGMAS = tuple((n, ours.get(n, value)) for n, value in stores.SQLITE_PRAGMAS)
    stores.create_engine = opened
    tasks: Any = SqlCoreState
    tasks._cleanup_expired_task_tokens = seldom(tasks._cleanup_expired_task_tokens)


def opened(url: str, **options: Any) -> sqlalchemy.Engine:
    """An engine with connections to spare, whose writers queue up."""
    if "poolclass" not in options:  # a database in memory has one connection for all
        options |= {"pool_size": _CONNECTIONS, "pool_timeout": _WAIT_S}
    engine = sqlalchemy.create_engine(url, **options)
    Turns.of(url).watch(engine)
    return engine


class Turns:
    """Who may write to a database: one connection at a time, from its first write to its end.

    A connection that has waited in vain, or whose thread writes by another one already, asks the
    database all the same, which decides as ever.
    """

    _all: dict[str, Turns] = {}  # noqa: RUF012 - one for each database of this process
    _new = threading.Lock()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0

    @classmethod
    def of(cls, url: str) -> Turns:
        """Those of the database at `url`."""
        with cls._new:
            return cls._all.setdefault(url, cls())

    def watch(self, engine: sqlalchemy.Engine) -> None:
        """Have the connections of `engine` take turns."""
        sqlalchemy.event.listen(engine, "before_cursor_execute", self._take)
        for end in ("checkin", "invalidate"):
            sqlalchemy.event.listen(engine, end, self._leave)

    def _take(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        known, mine = connection.connection.info, threading.get_ident()
        if _TURN in known or self._holder == mine or not _WRITES.match(statement):
            return
        if self._lock.acquire(timeout=_WAIT_S):
            self._holder, known[_TURN] = mine, True

    def _leave(self, connection: Any, record: Any, *rest: Any) -> None:
        if record.info.pop(_TURN, False):
            self._holder = 0
            self._lock.release()


def seldom(act: Callable[[Any], None], pause_s: float = _EVERY_S) -> Callable[[Any], None]:
    """`act` on a store, at most once in `pause_s` seconds for all stores of this process."""
    turn, due = threading.Lock(), 0.0

    def now_and_then(store: Any) -> None:
        nonlocal due
        with turn:
            if time.monotonic() < due:
                return
            due = time.monotonic() + pause_s
        act(store)

    return now_and_then


def main() -> None:
    """Run the SuperLink until it is stopped."""
    from flwr.superlink.cli import flower_superlink

    patient()
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
