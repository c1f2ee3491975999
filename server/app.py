"""The Flower ServerApp: a grid in, a run out; the only file here that speaks Flower."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from ..core import check, flower, plugins, signed, wire
from ..core.errors import PerennialError, RunError
from ..core.log import logged, placed
from ..core.parts import Reply
from ..core.signed import Signatures
from ..core.values import Vector
from .fetch import fetching
from .link import Link, Question
from .tally import announce, followed

logger = logging.getLogger(__name__)

# Replies fetched at a time: bounds the server's memory whatever the number of clients.
_AT_ONCE = 16
_POLL_S = 0.2
# Bytes of a reply beside its values, and for each of them: no scheme seals one into more.
_SPARE, _MOST_BYTES = 16 << 20, 256
# Letters kept of what a client says went wrong.
_REASON = 200

LOG = "log.txt"
"""File, in the run's folder, of what was logged."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the config that stands in the run config, on the clients of `grid`.

    Raises:
        PerennialError: as `server.run.run`.
    """
    text = str(context.run_config.get(wire.CONFIG_KEY, ""))
    if not text:
        raise RunError(f"the run config must hold the TOML text under {wire.CONFIG_KEY!r}")
    # Torch comes with this import: a grid and a link alone must start at once.
    from .run import run

    folder = _folder(text, str(context.run_config.get(wire.FOLDER_KEY, "")))
    announce(folder)
    if flower.run_of(folder) == "":  # whoever asked for this run does not know its id, or died
        flower.note_run(folder, str(context.run_id))
    keyholder = json.loads(str(context.run_config.get(wire.KEYHOLDER_KEY, "")) or "{}")
    if followed():
        folder.mkdir(parents=True, exist_ok=True)
    # As a service nobody else keeps the run's log.
    with logged(str(folder / LOG) if followed() else ""), placed(run=folder.name):
        try:
            run(link(grid, _signatures()), text, folder, keyholder)
        except PerennialError as error:
            logger.error("%s", error)
            raise


def _signatures() -> Signatures | None:
    nodes = os.environ.get(signed.NODES, "")
    if not nodes:
        return None
    return plugins.load("privacy", "node_keys", {"nodes": nodes}, Signatures)  # type: ignore[no-any-return]


def _folder(text: str, given: str) -> Path:
    if given:
        return Path(given)
    table = check.read(text).run
    return Path(table.folder).expanduser() / f"{table.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def link(grid: Grid, signatures: Signatures | None = None) -> Link:
    """The server's link over any Flower grid; replies are yielded as they come.

    Args:
        grid: Flower's.
        signatures: of the nodes, whose answers count only if they are signed; None where none sign.
    """

    def ask(question: Question, nodes: Sequence[int], deadline_s: float) -> Iterator[Reply]:
        ticket, shared = question.task.ticket, _arrays(question.vectors)
        group = f"{ticket.domain}.{ticket.round}.{ticket.attempt}"
        messages = [
            grid.create_message(
                _content(question, shared, node), question.kind, node, group, ttl=deadline_s
            )
            for node in nodes
        ]
        size = question.pact.size if question.pact is not None else 0
        for message in exchange(grid, messages, deadline_s, _SPARE + _MOST_BYTES * size):
            found = reply(message)
            yield found if signatures is None else proven(found, message, question, signatures)

    return Link(nodes=grid.get_node_ids, ask=ask)


def exchange(
    grid: Grid, messages: Sequence[Message], deadline_s: float, most_bytes: int = _SPARE
) -> Iterator[Message]:
    """Replies to `messages` as they come; those that miss the deadline are left out.

    Args:
        grid: Flower's.
        messages: one a node.
        deadline_s: from now.
        most_bytes: of one reply; a larger one is an error of its node.
    """
    end = time.monotonic() + deadline_s
    # A grid gives no id for a message that it could not send.
    asked = [message.metadata.dst_node_id for message in messages]
    ids = grid.push_messages(messages)
    waiting = {id_: node for id_, node in zip(ids, asked, strict=True) if id_}
    with fetching(grid, most_bytes) as fetch:
        while waiting:
            left = list(waiting)
            for start in range(0, len(left), _AT_ONCE):
                for message in fetch(left[start : start + _AT_ONCE]):
                    node = waiting.pop(message.metadata.reply_to_message_id, None)
                    if node is not None:
                        if message.has_error():  # it may be the SuperLink's own, on the node
                            message.metadata.__dict__["_src_node_id"] = node
                        yield message
            if waiting and time.monotonic() >= end:
                return
            if len(waiting) == len(left):
                time.sleep(_POLL_S)


def _arrays(vectors: Mapping[str, Vector]) -> dict[str, Array]:
    return {
        name: Array("float32", (vector.size,), wire.FLOAT32, vector.astype("<f4").tobytes())
        for name, vector in vectors.items()
    }


def _content(question: Question, shared: Mapping[str, Array], node: int) -> RecordDict:
    arrays = dict(shared)
    note = question.notes.get(node)
    if note is not None:
        arrays[wire.NOTE] = Array("uint8", (len(note),), wire.SEALED, note)
    task = replace(question.task, counted=question.counted.get(node, ()))
    content = RecordDict({wire.ARRAYS: ArrayRecord(arrays), wire.TASK: ConfigRecord(task.pack())})
    if question.pact is not None:
        content[wire.PACT] = ConfigRecord(question.pact.pack())
    return content


def reply(message: Message) -> Reply:
    """A Flower message as a plain reply; whatever is missing or odd is left for the judge."""
    node = message.metadata.src_node_id
    if message.has_error():
        return Reply(node, error=_reason(message.error.reason) or f"error {message.error.code}")
    content = message.content
    task, metrics = content.get(wire.TASK), content.get(wire.METRICS)
    return Reply(
        node,
        body=_body(content),
        ticket=dict(task) if isinstance(task, ConfigRecord) else None,
        metrics=dict(metrics) if hasattr(metrics, "items") else None,  # type: ignore[arg-type]
    )


def proven(found: Reply, message: Message, question: Question, signatures: Signatures) -> Reply:
    """`found`, or why it does not count: it must bear the signature of the node that it is from.

    An answer to another question is left for the judge, which refuses it by that name.
    """
    ticket = question.task.ticket
    if found.error or found.ticket != asdict(ticket):
        return found
    record = message.content.get(signed.SIGNATURE)
    value = record.get(signed.VALUE) if isinstance(record, ConfigRecord) else None
    if not isinstance(value, bytes):
        return Reply(found.node, error="not signed")
    session = question.pact.session if question.pact is not None else ""
    text = signed.statement(
        question.kind, found.node, ticket, session, found.body, found.metrics or {}
    )
    if not signatures.holds(found.node, value, text):
        logger.warning("node %d: an answer that it did not sign", found.node)
        return Reply(found.node, error="signature of another")
    return found


def _reason(text: str | None) -> str:
    """The client's own words as one short line: they stand in the log, the report and messages."""
    return "".join(c if c.isprintable() else " " for c in (text or "")[:_REASON]).strip()


def _body(content: RecordDict) -> bytes:
    arrays = content.get(wire.ARRAYS)
    array = arrays.get(wire.BODY) if isinstance(arrays, ArrayRecord) else None
    return array.data if array is not None and array.stype == wire.SEALED else b""
