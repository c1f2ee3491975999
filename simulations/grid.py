"""A Flower Grid whose nodes live on this machine: the real ClientApp, real message records.

The server's code cannot tell it from a SuperLink. Nodes have seeded ids and contexts that last
for the run; what goes wrong is drawn by `faults` in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from ..core.config import Faults
from ..core.seeds import derive
from ..core.wire import FINISH, PEAK, TRAIN
from . import compat, faults
from .pool import Pool, load

# A domain's end is asked under numbers of rounds that are not trained: its faults are its own.
_BEFALLEN = frozenset({TRAIN, PEAK, FINISH})


@dataclass(frozen=True, slots=True)
class Nodes:
    """The simulated clients.

    Attributes:
        app: `module:attribute` of the ClientApp.
        count: number of clients, >= 1.
        seed: of node ids and faults.
        run_config: what every client finds in its context.
        folder: below it each client has a folder of its own; None for apps without a disk.
        key_file: the clients' half of the key for encrypted sums; None without.
    """

    app: str
    count: int
    seed: int
    run_config: Mapping[str, Any]
    folder: Path | None = None
    key_file: Path | None = None

    def contexts(self, run_id: int) -> dict[int, Context]:
        """A context per node id; ids depend on the seed and the client's index alone."""
        return {
            derive(self.seed, "node", index): Context(
                run_id,
                derive(self.seed, "node", index),
                self._node_config(index),
                RecordDict(),
                dict(self.run_config),
            )
            for index in range(self.count)
        }

    def _node_config(self, index: int) -> dict[str, Any]:
        config: dict[str, Any] = {"partition-id": index, "num-partitions": self.count}
        if self.folder is not None:
            config["state-folder"] = str(self.folder / f"{index:05d}")
            # Whatever the user's environment says is for real nodes.
            config |= {"key-file": str(self.key_file or ""), "identities": "", "virtual-time": 1}
        return config


class SimulatedGrid(Grid):
    """See the module; a context manager, because a pool of processes has an end.

    Args:
        nodes: who is simulated.
        workers: 0 runs clients in this process, more runs them in that many processes.
        strict_wire: send every message through its protobuf bytes in this process too.
        table: rates of faults in rounds of training, and in the two questions at a domain's end.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        workers: int = 0,
        strict_wire: bool = False,
        table: Faults = Faults(),  # noqa: B008 - frozen
    ) -> None:
        self._run = compat.empty_run(derive(nodes.seed, "run"))
        self._contexts = nodes.contexts(self._run.run_id)
        self._seed = nodes.seed
        self._table = table
        self._faulty = any(table.model_dump().values())
        self._strict = strict_wire
        self._pool = Pool(nodes.app, workers, self._contexts) if workers else None
        self._app = None if workers else load(nodes.app)
        self._waiting: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Take `run` as the run of this grid."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run of this grid."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        run_id = self._run.run_id
        return compat.instruction(
            run_id, content, message_type, dst_node_id, group_id, ttl or 3600.0
        )

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes, whatever befalls them."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; inline clients do their work when the reply is pulled."""
        ids = []
        for message in messages:
            self._sent += 1
            message_id = str(self._sent)
            compat.set_message_id(message, message_id)
            self._waiting[message_id] = message
            if self._pool is not None and self._fault(message) != faults.DROP:
                self._pool.submit(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies to `message_ids`, one at a time: memory does not grow with their number."""
        known = [message_id for message_id in message_ids if message_id in self._waiting]
        lost = [i for i in known if self._fault(self._waiting[i]) == faults.DROP]
        for message_id in lost:
            request = self._waiting.pop(message_id)
            yield compat.error_reply(request, compat.UNAVAILABLE, "dropped out")
        left = [message_id for message_id in known if message_id in self._waiting]
        for reply in self._replies(left):
            request = self._waiting.pop(reply.metadata.reply_to_message_id)
            fault = self._fault(request)
            index = self._index(request)
            yield faults.befall(fault, request, reply, self._seed, index)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies to `messages`, one at a time; time is virtual, so `timeout` is not used."""
        yield from self.pull_messages(self.push_messages(messages))

    def _replies(self, message_ids: list[str]) -> Iterator[Message]:
        if self._pool is not None:
            yield from self._pool.results(message_ids)
            return
        assert self._app is not None
        for message_id in message_ids:
            message = self._waiting[message_id]
            if self._strict:
                message = compat.from_bytes(compat.to_bytes(message))
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
            yield compat.from_bytes(compat.to_bytes(reply)) if self._strict else reply

    def _fault(self, message: Message) -> str:
        if not self._faulty or message.metadata.message_type not in _BEFALLEN:
            return faults.NONE
        group = message.metadata.group_id
        return faults.draw(self._table, self._seed, self._index(message), group)

    def _index(self, message: Message) -> int:
        context = self._contexts[message.metadata.dst_node_id]
        return int(context.node_config["partition-id"])

    def __enter__(self) -> SimulatedGrid:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()
