"""Flower's SuperLink as this package runs it: its database waits for its turn.

    python -m perennial.server.superlink ARGUMENTS     (those of flower-superlink)

Stock, a statement that waits 5 s for another one's transaction fails, and with it the request of a
node or of the executor: with some dozens of nodes on a busy machine a reply is lost, or the
executor ends and the run with it. Neither limit is public; both are replaced here and nowhere else.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import flwr.supercore.sql_mixin

_WAIT_S = 60
"""Longest wait of a statement; a node gives a request 30 s, and asks again."""


def patient() -> None:
    """Have every database that is opened after this wait so long for a lock or a connection."""
    stores: Any = flwr.supercore.sql_mixin  # neither name is one that it exports
    waits = {"busy_timeout": str(1000 * _WAIT_S)}
    stores.SQLITE_PRAGMAS = tuple((n, waits.get(n, value)) for n, value in stores.SQLITE_PRAGMAS)
    stores.create_engine = partial(stores.create_engine, pool_timeout=_WAIT_S)


def main() -> None:
    """Run the SuperLink until it is stopped."""
    from flwr.superlink.cli import flower_superlink

    patient()
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
