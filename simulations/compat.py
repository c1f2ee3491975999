"""What Flower 1.41 does not offer in public: kept in this one file, under contract tests."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from flwr.app import Context, Error, Message, Metadata, RecordDict, UserConfig
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.run import Run

from ..core.errors import RunError

SERVER_NODE = 1
"""Node id of the server, as Flower's own runtimes number it."""

CLIENT_RAISED, TOO_LATE, UNAVAILABLE = 2, 4, 5
"""Flower's error codes: client app raised, no reply in time, node gone."""


def instruction(
    run_id: int, content: RecordDict, kind: str, node: int, group: str, ttl: float
) -> Message:
    """A message from the server to `node`, as a SuperLink would make it."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SERVER_NODE,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=ttl,
        message_type=kind,
    )
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


def set_message_id(message: Message, message_id: str) -> None:
    """Give `message` the id that a SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def error_reply(message: Message, code: int, reason: str) -> Message:
    """An error in place of a reply to `message`."""
    return Message(Error(code, reason), reply_to=message)


def to_bytes(message: Message) -> bytes:
    """The protobuf bytes of `message`."""
    return message_to_proto(message).SerializeToString()  # type: ignore[no-any-return]


def from_bytes(content: bytes) -> Message:
    """The message in protobuf bytes; the inverse of `to_bytes`."""
    return message_from_proto(ProtoMessage.FromString(content))


def packed(app: Path) -> bytes:
    """A bundle's folder as the one file that is sent; the same bytes wherever it is packed."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(app)


def empty_run(run_id: int) -> Run:
    """A run with nothing but an id, for a grid of our own."""
    return Run.create_empty(run_id)


def run_on_ray(bundle: Path, run_config: UserConfig, num_clients: int, num_cpus: int) -> None:
    """Run Perennial's apps on Flower's own simulation engine, which is Ray.

    Args:
        bundle: folder of an app bundle; its config is what the clients see.
        run_config: what the server sees.
        num_clients: number of simulated nodes.
        num_cpus: processor cores per client.

    Raises:
        RunError: the extra `ray` is not installed, or the engine gave up.
    """
    if importlib.util.find_spec("ray") is None:
        raise RunError(
            "backend = \"ray\" needs the extra `ray`: in the project's folder, pip install '.[ray]'"
        )
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.telemetry import EventType

    from ..server.app import app

    context = Context(
        run_id=0, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config=run_config
    )
    _run_simulation(
        num_supernodes=num_clients,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        server_app=app,
        client_app_attr="perennial.client.app:app",
        server_app_context=context,
        backend_name="ray",
        backend_config={
            "client_resources": {"num_cpus": num_cpus, "num_gpus": 0.0},
            # One set of actors per core; a dashboard would open a port of its own.
            "init_args": {"include_dashboard": False},
        },
        app_dir=str(bundle),
        is_app=True,
    )
