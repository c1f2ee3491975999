"""Server apps for many edge clients: ours, and Flower's FedAvg, each with a line a round.

A line of the file in EDGE_OUT has the round's seconds, the replies that counted, those that did
not, and the process's resident MiB at its end.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from perennial.core import plugins, wire
from perennial.core.parts import SecureSum, Strategy
from perennial.core.sums import Pact
from perennial.core.values import Domain, ServerState, Ticket
from perennial.server.app import link
from perennial.server.link import Question
from perennial.server.round import Terms, close, collect, mean, opened_sum

ours = ServerApp()
stock = ServerApp()
SIZE, ROUNDS = int(os.environ.get("EDGE_SIZE", 0)), int(os.environ.get("EDGE_ROUNDS", 0))
CLIENTS = int(os.environ.get("EDGE_CLIENTS", 0))


@ours.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds by our own exchange: each reply is judged, added as it comes, and dropped."""
    plain = plugins.load("privacy", "plain", {}, SecureSum)
    rule = plugins.load("strategies", "fedavg", {}, Strategy)
    state, door = ServerState(0, 0, np.zeros(SIZE, np.float32)), link(grid)
    nodes = _there(grid)
    for number in range(ROUNDS):
        start = time.perf_counter()
        ticket = Ticket("edge", 0, number, 0, "m")
        task = wire.Task(ticket, ROUNDS, (), Domain("d"), ("d",), "m", "b")
        pact = Pact("edge", 0, number, 0, "m", "0" * 32, SIZE, 0.0, "")
        vectors = {wire.PARAMS: state.params, wire.SUMMARY: state.params[:0]}
        replies = door.ask(Question("train", task, vectors, pact), nodes, 3600.0)
        tally = collect(replies, Terms(ticket, pact, frozenset(nodes), 64.0, 1e6), plain)
        opened = opened_sum(tally, plain.close(tally.total, pact), pact, plain, {}, {})
        state = close(state, mean(opened).astype(np.float32), [slice(0, SIZE)], rule)
        _say(start, len(tally.accepted), len(nodes) - len(tally.accepted))


@stock.main()
def flowers(grid: Grid, context: Context) -> None:
    """The same rounds by Flower's FedAvg."""
    _there(grid)
    strategy = _Told(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    start = ArrayRecord({"w": Array(np.zeros(SIZE, np.float32))})
    strategy.start(grid=grid, initial_arrays=start, num_rounds=max(2, ROUNDS // 4), timeout=3600.0)


class _Told(FedAvg):
    """FedAvg that says how long a round took."""

    started = 0.0

    def configure_train(self, *words: Any, **named: Any) -> Any:
        self.started = time.perf_counter()
        return super().configure_train(*words, **named)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        whole = list(replies)
        sound = [reply for reply in whole if not reply.has_error()]
        found = super().aggregate_train(server_round, whole)
        _say(self.started, len(sound), CLIENTS - len(sound))
        return found


def _there(grid: Grid) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < CLIENTS:
        time.sleep(0.5)
    return nodes


def _say(start: float, accepted: int, failed: int) -> None:
    line = {
        "seconds": time.perf_counter() - start,
        "accepted": accepted,
        "failed": failed,
        "mib": _resident_mib(),
    }
    with open(os.environ["EDGE_OUT"], "a") as file:
        file.write(json.dumps(line) + "\n")


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
