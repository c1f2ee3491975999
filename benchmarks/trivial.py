"""A client that only answers, and a server that only adds: what is left is the framework."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from perennial.core import plugins, wire
from perennial.core.parts import SecureSum, Strategy
from perennial.core.sums import Pact
from perennial.core.values import Domain, ServerState, Ticket
from perennial.server.app import link
from perennial.server.link import Question
from perennial.server.round import Terms, close, collect, mean, opened_sum

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the change 1 in every value."""
    task = wire.Task.unpack(dict(message.content[wire.TASK]))
    size = len(message.content[wire.ARRAYS][wire.PARAMS].data) // 4
    body = np.full(size, context.node_config["partition-id"] % 7, np.float32).tobytes()
    array = Array("uint8", (len(body),), wire.SEALED, body)
    return Message(
        RecordDict(
            {
                wire.ARRAYS: ArrayRecord({wire.BODY: array}),
                wire.TASK: ConfigRecord(asdict(task.ticket)),
                wire.METRICS: MetricRecord({"weight": 1.0, "loss": 0.0, "seconds": 0.0}),
            }
        ),
        reply_to=message,
    )


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of federated averaging; seconds a round go to the file in TRIVIAL_OUT."""
    size, rounds = int(os.environ["TRIVIAL_SIZE"]), int(os.environ["TRIVIAL_ROUNDS"])
    plain = plugins.load("privacy", "plain", {}, SecureSum)
    rule = plugins.load("strategies", "fedavg", {}, Strategy)
    state = ServerState(0, 0, np.zeros(size, np.float32))
    ours, seconds = link(grid), []
    wanted = int(os.environ["TRIVIAL_CLIENTS"])
    while len(nodes := list(ours.nodes())) < wanted:
        time.sleep(0.05)
    for number in range(rounds):
        start = time.perf_counter()
        ticket = Ticket("trivial", 0, number, 0, "m")
        task = wire.Task(ticket, rounds, (), Domain("d"), ("d",), "m", "b")
        pact = Pact("trivial", 0, number, 0, "m", "0" * 32, size, 0.0, "")
        terms = Terms(ticket, pact, frozenset(nodes), 64.0, 1e6)
        vectors = {wire.PARAMS: state.params, wire.SUMMARY: state.params[:0]}
        question = Question("train", task, vectors, pact)
        tally = collect(ours.ask(question, nodes, 600.0), terms, plain)
        assert len(tally.accepted) == len(nodes), tally.rejected
        opened = opened_sum(tally, plain.close(tally.total, pact), pact, plain, {}, {})
        moved = mean(opened).astype(np.float32)
        state = close(state, moved, [slice(0, size)], rule)
        seconds.append(time.perf_counter() - start)
    with open(os.environ["TRIVIAL_OUT"], "w") as file:
        json.dump({"seconds": seconds, "ended": time.time()}, file)
