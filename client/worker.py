"""The long-lived worker of a node: takes its tasks one by one, with model and data kept loaded.

Flower's own executor starts a fresh process for each message, which loads torch, the base model
and the data again (some 20 s a round). A worker asks the SuperNode for tasks itself, as that
executor does (`--isolation process`), and answers them in its own process. It runs the client app
of the installed package alone: a bundle is never unpacked, and one whose hash is not on the
allow-list is refused. What Flower offers for this is not public; all of it is used here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from flwr.app import Context, Error, Message
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from ..core.errors import RunError
from ..core.files import write_atomically
from .app import FIGURES, app
from .site import loads

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""Between two questions for a task, which go no further than this machine."""

_STALLED_S = 120.0  # a node asks a server that is away again and again in that time
_BACKOFF_S = 2.0  # after a SuperNode that does not answer
_COMPONENT = "flwr-clientapp"  # whose version the SuperNode compares with its own
_PROTECTED = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_REFUSED = 7  # Flower's code for a bundle that is not as it must be
_COMPLETED, _FAILED = "completed", "failed"


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a worker gets its tasks.

    Attributes:
        address: host:port of the SuperNode's runtime API, on loopback.
        secret: that the SuperNode asks of whoever takes tasks; empty where it asks for none.
        allowed: SHA-256 of the bundles that may be run, 64 hex digits each.
    """

    address: str
    secret: bytes
    allowed: frozenset[str]


@dataclass(slots=True)
class Done:
    """What a worker did so far, for those who watch it.

    Attributes:
        path: of the file that says so; None for none.
        tasks: kind of message -> outcome -> how many.
        seconds: kind of message -> together.
    """

    path: Path | None = None
    tasks: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, outcome: str, seconds: float) -> None:
        """One more task; the file is written anew."""
        counts = self.tasks.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        if self.path is None:
            return
        told = {"tasks": self.tasks, "seconds": self.seconds, "loads": loads(), **FIGURES}
        told["gpu_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        try:
            write_atomically(self.path, json.dumps(told))
        except OSError as error:  # no reason to stop working
            logger.warning("%s cannot be written: %s", self.path, error)


def work(
    desk: Desk, stopped: Callable[[], bool], ready: Path | None = None, done: Path | None = None
) -> None:
    """Take tasks and answer them until `stopped()`; a task that fails is answered, too.

    Args:
        desk: where the tasks are.
        stopped: () -> whether to end; asked between tasks.
        ready: a file that is there while the SuperNode answers this worker.
        done: a file that says what this worker did.
    """
    count = Done(done)
    client = _client(desk, *_secrets(desk))
    asked = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    try:
        while not stopped():
            try:
                found = client.AcquireTask(asked)
            except httpx.HTTPError as error:
                _show(ready, there=False)
                logger.warning("the node does not answer: %s", type(error).__name__)
                time.sleep(_BACKOFF_S)
                continue
            _show(ready, there=True)
            if found.HasField("task") and found.token:
                started = time.monotonic()
                kind, outcome = _answer(desk, found.token)
                count.add(kind, outcome, time.monotonic() - started)
            else:
                time.sleep(POLL_S)
    finally:
        _show(ready, there=False)
        client.close()


def _show(ready: Path | None, *, there: bool) -> None:
    if ready is None:
        return
    ready.touch() if there else ready.unlink(missing_ok=True)


def _secrets(desk: Desk) -> Iterator[ProtobufClientInterceptor]:
    if desk.secret:
        yield SuperExecAuthHttpInterceptor(master_secret=desk.secret, protected_methods=_PROTECTED)


def _client(desk: Desk, *interceptors: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=desk.address,
        insecure=True,  # loopback: the SuperNode and its worker are one machine
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=_COMPONENT), *interceptors],
        retry_invoker=make_simple_http_retry_invoker(),
    )


def _answer(desk: Desk, token: str) -> tuple[str, str]:
    """One task from its input to its reply: its kind, and how it ended.

    What goes wrong is logged, and the worker lives on.
    """
    kind = "unknown"
    client = _client(desk, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(_beat(client))
    heartbeat.start()
    context: Context | None = None
    outcome, details = _FAILED, "the task's input could not be had"
    try:
        message, context, _, bundle = pull_task_input(_Impatient(client))  # type: ignore[arg-type]
        kind = message.metadata.message_type
        reply, outcome, details = _reply(desk, message, context, bundle)
        push_message(client, reply, context)
    except Exception as error:  # the border: the next task must find the worker alive
        logger.exception("a task could not be answered")
        outcome, details = _FAILED, f"the worker raised {type(error).__name__}"
    finally:
        try:
            push_task_output(client, context, outcome, details)
        except Exception:  # the same border
            logger.exception("the end of a task could not be told")
        if heartbeat.is_running:
            heartbeat.stop()
        client.close()
    return kind, outcome


class _Impatient:
    """A node's client that gives up a message of which no more comes.

    A node that loses its server while it takes a message, or whose run ends then, leaves a task
    behind that has no whole message and never will. Flower's own reader waits for it for ever, and
    the node with it, which takes no other message meanwhile.
    """

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client, self._since = client, time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        """As the client's own; RunError where the node has had nothing new for a while."""
        found = self._client.PullObject(request)
        if found.object_available:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _STALLED_S:
            raise RunError(f"a message must come whole; nothing of it came for {_STALLED_S:g} s")
        return found


def _reply(desk: Desk, message: Message, context: Context, bundle: Fab) -> tuple[Message, str, str]:
    found = hashlib.sha256(bundle.content).hexdigest()
    if found not in desk.allowed:
        logger.error("refused: the bundle %s is not on this node's list", found)
        reason = f"bundle {found} is not on this node's list"
        return Message(Error(_REFUSED, reason), reply_to=message), _FAILED, reason
    reply = app(message, context)
    return reply, _FAILED if reply.has_error() else _COMPLETED, ""


def _beat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Says that the task lives; one that the SuperNode gave up goes on to its end all the same."""
    asked = SendTaskHeartbeatRequest()

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(asked)
        except httpx.HTTPError:
            return False
        return True

    return beat
