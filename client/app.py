"""The Flower ClientApp: messages in, work done by the process's site, messages out."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from ..core import plugins, signed, wire
from ..core.errors import PerennialError, RunError
from ..core.log import placed
from ..core.signed import Signatures
from ..core.sums import Pact, Party
from ..core.values import Vector
from .parties import Client, Own, Sealing
from .site import Site, open_client, open_site

logger = logging.getLogger(__name__)

# Flower's own code for a client app that raised.
_CLIENT_RAISED = 2

FIGURES: dict[str, float] = {}
"""What this process can tell of its last round, to whoever watches this machine."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of training: the sealed update."""
    return _answer(message, context, "train", _train)


@app.train("finish")
def finish(message: Message, context: Context) -> Message:
    """The end of a domain: what the continual method adds up."""
    return _answer(message, context, "finish", _finish)


@app.train("peak")
def peak(message: Message, context: Context) -> Message:
    """How large the largest value is that `finish` will add up."""
    return _answer(message, context, "peak", _peak)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Scores of the client's own test shard."""
    return _answer(message, context, "evaluate", _evaluate)


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """The client's card for the sums of this run."""
    return _answer(message, context, "join", _join)


@app.query("reveal")
def reveal(message: Message, context: Context) -> Message:
    """What a sum needs of this client because others dropped out."""
    return _answer(message, context, "reveal", _reveal)


_Work = Callable[[Site, Client, wire.Task, Message, Context], RecordDict]


def _answer(message: Message, context: Context, stage: str, work: _Work) -> Message:
    started = time.monotonic()
    with ExitStack() as said:
        said.enter_context(placed(node=context.node_id))
        try:
            site, client = _who(context)
            task = wire.Task.unpack(_settings(message, wire.TASK))
            at = task.ticket
            said.enter_context(placed(run=at.run, domain=at.domain, round=at.round))
            answer = work(site, client, task, message, context)
            _need_in_time(started, site, message, context)
            _sign(answer, task, message, context)
            return Message(answer, reply_to=message)
        except PerennialError as error:  # says itself what is wrong and what to do
            logger.error("node %d: %s failed: %s", context.node_id, stage, error)
            return _failed(error, stage, message)
        except Exception as error:  # whatever went wrong, the server gets an answer
            logger.exception("node %d: %s failed", context.node_id, stage)
            return _failed(error, stage, message)


def _failed(error: Exception, stage: str, message: Message) -> Message:
    # Only the kind of error leaves the client: its text may quote a record.
    return Message(Error(_CLIENT_RAISED, f"{stage}: {type(error).__name__}"), reply_to=message)


def _who(context: Context) -> tuple[Site, Client]:
    text = str(context.run_config.get(wire.CONFIG_KEY, ""))
    if not text:
        raise RunError(f"the run config must hold the TOML text under {wire.CONFIG_KEY!r}")
    node = context.node_config
    data = tuple((k[5:], v) for k, v in sorted(node.items()) if k.startswith("data."))
    site = open_site(text, data, _terms(context))
    _need_all_partitions(site, int(node.get("num-partitions", 0)))
    index = int(node.get("partition-id", 0))
    default = Path(os.environ.get("PERENNIAL_STATE", "~/.perennial")).expanduser()
    # Not by the run's name, which is the server's: the ledger is for all runs of this client.
    folder = Path(str(node.get("state-folder") or default / f"{index:05d}"))
    return site, open_client(site, index, folder)


def _need_all_partitions(site: Site, there: int) -> None:
    table = site.config.shards
    if there and table.split != "local" and there != table.num_clients:
        raise RunError(
            f"[shards] num_clients = {table.num_clients} must be the number of nodes; this node "
            f"is one of {there}, so records would be left out in silence. Start "
            f"{table.num_clients} nodes, or write num_clients = {there}."
        )


def _train(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> RecordDict:
    sealing = _sealing(site, client, task, message, context)
    answer = _sealed(task, *site.train(client, task, *_vectors(message), sealing))
    FIGURES["gradient_norm"] = site.gradient_norm
    return answer


def _finish(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> RecordDict:
    sealing = _sealing(site, client, task, message, context)
    return _sealed(task, *site.finish(client, task, *_vectors(message), sealing))


def _peak(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> RecordDict:
    sealing = _sealing(site, client, task, message, context)
    return _sealed(task, *site.peak(client, task, *_vectors(message), sealing))


def _join(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> RecordDict:
    return _sealed(task, site.join(_sealing(site, client, task, message, context)), {})


def _reveal(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> RecordDict:
    return _sealed(task, site.reveal(_sealing(site, client, task, message, context)), {})


def _evaluate(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> RecordDict:
    params, head = _vectors(message, wire.HEAD)
    metrics = site.evaluate(client, task, params, head)
    return RecordDict({wire.TASK: _ticket(task), wire.METRICS: MetricRecord(dict(metrics))})


def _sealing(
    site: Site, client: Client, task: wire.Task, message: Message, context: Context
) -> Sealing:
    pact, ticket = Pact.unpack(_settings(message, wire.PACT)), task.ticket
    named = (pact.domain, pact.round, pact.attempt, pact.manifest)
    if named != (ticket.domain, ticket.round, ticket.attempt, ticket.manifest):
        raise RunError(f"the pact must be for {ticket}; it is for {named}")
    note = _arrays(message).get(wire.NOTE)
    key = _own(context, "key-file")
    if key and site.secure_sum.single_updates:
        raise RunError(
            "a client with a key file sends nothing in the clear; the server's config asks for "
            "that. Take the key away from this node's config if it is meant."
        )
    party = Party(context.node_id, client.store.folder, Path(key) if key else None)
    return Sealing(pact, note.data if note is not None else b"", party)


def _terms(context: Context) -> Own:
    return Own(
        _own(context, "identities"), _limit(context, "max-epsilon"), _limit(context, "max-delta")
    )


def _limit(context: Context, name: str) -> float:
    most = _own(context, name)
    try:
        limit = float(most or 0.0)
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit >= 0.0) or (most and not limit):
        raise RunError(f"the node's {name} must be a number above 0; got {most!r}")
    return limit


def _own(context: Context, name: str) -> str:
    """What this node's operator says, by node config or environment; never the server's word."""
    if name in context.node_config:
        return str(context.node_config[name])
    return os.environ.get("PERENNIAL_" + name.upper().replace("-", "_"), "")


def _need_in_time(started: float, site: Site, message: Message, context: Context) -> None:
    # Neighbours may have revealed this client's masks by now: its body must not leave any more.
    waited = time.monotonic() - started
    real = not context.node_config.get("virtual-time")
    if real and site.secure_sum.pairwise and waited > message.metadata.ttl:
        raise RunError(
            f"an answer must be ready within {message.metadata.ttl:g} s; it took {waited:.0f} s. "
            "Raise [round] deadline_s."
        )


def _sealed(task: wire.Task, body: bytes, metrics: dict[str, float]) -> RecordDict:
    array = Array("uint8", (len(body),), wire.SEALED, body)
    return RecordDict(
        {
            wire.ARRAYS: ArrayRecord({wire.BODY: array}),
            wire.TASK: _ticket(task),
            wire.METRICS: MetricRecord(dict(metrics)),
        }
    )


def _sign(answer: RecordDict, task: wire.Task, message: Message, context: Context) -> None:
    """Add the node's signature, where its operator gave it a key to sign with."""
    key = os.environ.get(signed.NODE_KEY, "")
    if not key:
        return
    pact = message.content.get(wire.PACT)
    session = str(pact["session"]) if isinstance(pact, ConfigRecord) else ""
    arrays = answer.get(wire.ARRAYS)
    body = arrays[wire.BODY].data if isinstance(arrays, ArrayRecord) else b""
    kind, numbers = message.metadata.message_type, answer[wire.METRICS]
    assert isinstance(numbers, MetricRecord)
    text = signed.statement(kind, context.node_id, task.ticket, session, body, numbers)
    answer[signed.SIGNATURE] = ConfigRecord({signed.VALUE: _signer(key).sign(text)})


@lru_cache(maxsize=1)
def _signer(key: str) -> Signatures:
    return plugins.load("privacy", "node_keys", {"key": key}, Signatures)  # type: ignore[no-any-return]


def _ticket(task: wire.Task) -> ConfigRecord:
    ticket = task.ticket
    return ConfigRecord(
        {
            "run": ticket.run,
            "domain": ticket.domain,
            "round": ticket.round,
            "attempt": ticket.attempt,
            "manifest": ticket.manifest,
        }
    )


def _settings(message: Message, name: str) -> dict[str, Any]:
    record = message.content.get(name)
    if not isinstance(record, ConfigRecord):
        raise RunError(f"the server's message must have settings {name!r}; it has none")
    return dict(record)


def _arrays(message: Message) -> ArrayRecord:
    arrays = message.content.get(wire.ARRAYS)
    if not isinstance(arrays, ArrayRecord):
        raise RunError(f"the server's record {wire.ARRAYS!r} must hold arrays")
    return arrays


def _vectors(message: Message, beside: str = wire.SUMMARY) -> tuple[Vector, Vector]:
    arrays, found = _arrays(message), []
    for name in (wire.PARAMS, beside):
        array = arrays.get(name)
        if array is None or array.stype != wire.FLOAT32 or len(array.data) % 4:
            raise RunError(f"array {name!r} must come as {wire.FLOAT32}; it does not")
        found.append(np.frombuffer(array.data, "<f4"))
    return found[0], found[1]
