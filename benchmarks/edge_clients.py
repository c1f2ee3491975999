"""Many edge clients in one process, each with a key, a connection and Flower's own node protocol.

    python edge_clients.py ADDRESS CA KEY...

Each asks for messages as a stock SuperNode does, every three seconds, takes what a message holds
object by object, and answers at once with as many random values as it was sent: no two answers
share a byte, so that no store can keep one for many.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supernode.fleet_http_connection import http_request_response

from perennial.core import wire

_POLL_S = 3.0  # a SuperNode's own


def answer(message: Message, rng: np.random.Generator) -> Message:
    """A reply of random values: to our own server, or to one of Flower's strategies."""
    ours = wire.TASK in message.content
    if not ours:
        sent = next(iter(message.content.array_records.values()))["w"].numpy()
        arrays = ArrayRecord({"w": Array(_values(sent.size, rng))})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
    task = wire.Task.unpack(dict(message.content[wire.TASK]))
    size = len(message.content[wire.ARRAYS][wire.PARAMS].data) // 4
    body = _values(size, rng).tobytes()
    content = {
        wire.ARRAYS: ArrayRecord({wire.BODY: Array("uint8", (len(body),), wire.SEALED, body)}),
        wire.TASK: ConfigRecord(asdict(task.ticket)),
        wire.METRICS: MetricRecord({"weight": 1.0, "loss": 0.0, "seconds": 0.0}),
    }
    return Message(RecordDict(content), reply_to=message)


def _values(size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(size, np.float32)


def serve(address: str, ca: str, key: Path) -> None:
    """One client, for ever."""
    private: Any = load_ssh_private_key(key.read_bytes(), None)
    pair = (private, private.public_key())
    rng = np.random.default_rng(int.from_bytes(key.read_bytes()[-64:-56]))
    known: set[int] = set()
    while True:
        try:
            with http_request_response(address, False, ca, pair) as connection:
                _, receive, send, get_run, get_fab, pull, push, confirm = connection
                while True:
                    found = receive()
                    if found is None:
                        time.sleep(_POLL_S)
                        continue
                    message, tree = found
                    run = message.metadata.run_id
                    if run not in known:  # as a node does
                        get_fab(get_run(run).fab_hash, run)
                        known.add(run)
                    # Again and again, as a node does: a message is told before it is whole.
                    contents = pull_objects(_all(tree), partial(pull, run))
                    confirm(run, message.metadata.message_id)
                    whole: Any = inflate_object_from_contents(tree.object_id, contents)
                    whole.metadata.__dict__["_message_id"] = tree.object_id
                    _give(answer(whole, rng), send, push)
        except (Exception, SystemExit) as error:  # its border: it comes back, and says why
            print(f"{key.name}: {error!r}", file=sys.stderr, flush=True)
            time.sleep(_POLL_S)


def _all(tree: Any) -> list[str]:
    return list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))


def _give(reply: Message, send: Any, push: Any) -> None:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        wanted, session = send(remove_content_from_message(reply), tree, 0.0)
        for name in wanted:
            push(reply.metadata.run_id, session, name, objects[name].deflate())


def main() -> None:
    address, ca, *keys = sys.argv[1:]
    for key in keys:
        threading.Thread(target=serve, args=(address, ca, Path(key)), daemon=True).start()
        time.sleep(0.02)
    while sys.stdin.read(1):  # until whoever started it is gone
        pass


if __name__ == "__main__":
    main()
