"""A client with a key of its own that misbehaves: `python hostile.py HOW client FILE`.

HOW is `forge` (signs with KEY of another node), `replay` (sends its first update again and again)
or `flood` (sends a body of 40 MB).
"""

import os
import sys
from dataclasses import replace

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from perennial.client import app as client_app
from perennial.client import service
from perennial.core import signed, wire


def turned(how):
    """The worker of this process misbehaves from its second round on."""
    train, kept = client_app._train, []
    assert callable(train)

    def hostile(site, client, task, message, context):
        answer = train(site, client, task, message, context)
        if how == "flood":
            body = bytes(40_000_000)
            array = Array("uint8", (len(body),), wire.SEALED, body)
            answer[wire.ARRAYS] = ArrayRecord({wire.BODY: array})
        if how == "replay":
            kept.append(answer)
            ticket = ConfigRecord(dict(answer[wire.TASK]))
            return RecordDict({**kept[0], wire.TASK: ticket})
        return answer

    sign, signatures = client_app._sign, []

    def replayed(answer, task, message, context):
        sign(answer, task, message, context)
        if message.metadata.message_type == wire.TRAIN:
            signatures.append(answer[signed.SIGNATURE])
            answer[signed.SIGNATURE] = signatures[0]

    client_app._train = hostile
    if how == "replay":
        client_app._sign = replayed
    # The app's functions were registered with the ones that they look up now.


def started(how):
    """The client of this process starts such a worker."""
    real = service.programs

    def programs(client, bundle):
        node, worker = real(client, bundle)
        environment = dict(worker.environment)
        if how == "forge":
            environment[signed.NODE_KEY] = os.environ["KEY"]
        words = list(worker.command)
        at = words.index("worker")
        command = [sys.executable, __file__, how, *words[at:]]
        return node, replace(worker, command=command, environment=environment)

    service.programs = programs


if __name__ == "__main__":
    how, rest = sys.argv[1], sys.argv[2:]
    turned(how) if rest[0] == "worker" else started(how)
    sys.argv = ["perennial", *rest]
    from perennial.cli.main import run

    run()
