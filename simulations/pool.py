"""A pool of processes that run a ClientApp; every client always lives in the same one.

Each worker holds the contexts and caches of its clients, answers one message at a time and ends
when its parent does. A worker that dies costs one error reply and is started again.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from flwr.app import Context, Message

from ..core.log import LOG_VARIABLE, logged
from . import compat

logger = logging.getLogger(__name__)

# How long all workers together may take to end what they are at before they are killed.
_PATIENCE_S = 5.0


class Pool:
    """`workers` processes; see the module.

    Args:
        app: `module:attribute` of the ClientApp.
        workers: number of processes, >= 1.
        contexts: by node id, sent to a worker when it starts.
    """

    def __init__(self, app: str, workers: int, contexts: Mapping[int, Context]) -> None:
        self._app = app
        self._contexts = contexts
        nodes = sorted(contexts, key=lambda node: int(contexts[node].node_config["partition-id"]))
        self._home = {node: position % workers for position, node in enumerate(nodes)}
        self._queues: list[deque[Message]] = [deque() for _ in range(workers)]
        self._busy: list[Message | None] = [None] * workers
        self._ready: dict[str, Message] = {}
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        for number in range(workers):
            self._workers.append(self._start(number))

    def submit(self, message: Message) -> None:
        """Queue `message` for the worker of its node."""
        number = self._home[message.metadata.dst_node_id]
        self._queues[number].append(message)
        self._feed(number)

    def results(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies to `message_ids` as they come; waits until all of them are there."""
        left = set(message_ids)
        while left:
            for message_id in left & self._ready.keys():
                left.discard(message_id)
                yield self._ready.pop(message_id)
            if left:
                self._wait()

    def close(self) -> None:
        """End all workers."""
        for _, pipe in self._workers:
            pipe.close()
        end = time.monotonic() + _PATIENCE_S
        for process, _ in self._workers:
            process.join(timeout=max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self, number: int) -> tuple[SpawnProcess, Connection]:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        mine = {n: c for n, c in self._contexts.items() if self._home[n] == number}
        plain = {n: (c.run_id, c.node_config, c.run_config) for n, c in mine.items()}
        args = (self._app, theirs, plain, len(self._queues))
        process = spawn.Process(target=_work, args=args, daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def _feed(self, number: int) -> None:
        if self._busy[number] is None and self._queues[number]:
            message = self._queues[number].popleft()
            self._busy[number] = message
            try:
                self._workers[number][1].send_bytes(compat.to_bytes(message))
            except OSError:
                self._died(number)

    def _wait(self) -> None:
        pipes = {self._workers[n][1]: n for n, busy in enumerate(self._busy) if busy is not None}
        for pipe in wait(list(pipes)):
            assert isinstance(pipe, Connection)
            number = pipes[pipe]
            try:
                reply = compat.from_bytes(pipe.recv_bytes())
            except (EOFError, OSError):
                self._died(number)
                continue
            self._ready[reply.metadata.reply_to_message_id] = reply
            self._busy[number] = None
            self._feed(number)

    def _died(self, number: int) -> None:
        message = self._busy[number]
        process, pipe = self._workers[number]
        pipe.close()
        process.join(timeout=5)
        logger.error("worker %d died with exit code %s; starting another", number, process.exitcode)
        self._workers[number] = self._start(number)
        self._busy[number] = None
        if message is not None:
            reply = compat.error_reply(message, compat.UNAVAILABLE, "client process died")
            self._ready[message.metadata.message_id] = reply
        self._feed(number)


_Plain = tuple[int, Any, Any]


def _work(app: str, pipe: Connection, contexts: Mapping[int, _Plain], workers: int) -> None:
    # Ctrl-C reaches the whole group; the parent answers it and ends us by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The cores are shared by the workers: one more thread each would only make them wait.
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // workers, 1))
    from flwr.app import RecordDict

    own = {
        node: Context(run_id, node, node_config, RecordDict(), run_config)
        for node, (run_id, node_config, run_config) in contexts.items()
    }
    with logged(os.environ.get(LOG_VARIABLE, "")):
        handle = load(app)
        while True:
            try:
                message = compat.from_bytes(pipe.recv_bytes())
            except (EOFError, OSError):  # the parent is gone
                return
            reply = handle(message, own[message.metadata.dst_node_id])
            try:
                pipe.send_bytes(compat.to_bytes(reply))
            except OSError:
                return


def load(app: str) -> Callable[[Message, Context], Message]:
    """The ClientApp at `module:attribute`."""
    module, _, attribute = app.partition(":")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
