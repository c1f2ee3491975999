"""A ClientApp for tests of the pool: counts its calls, and dies when it is told to."""

import os
import signal
import time

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    task = message.content["task"]
    if task.get("die") == context.node_config["partition-id"]:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(task.get("sleep", 0.0)))
    calls = context.state.setdefault("calls", MetricRecord({"count": 0}))
    calls["count"] += 1
    metrics = {"count": calls["count"], "pid": os.getpid()}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
