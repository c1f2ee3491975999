"""A run: the sequence of domain updates, round by round, checkpointed and recorded.

The state that passes from round to round is one value; everything else here is opened once and
only read. A run that is killed at any point goes on from its last checkpoint with the same bits.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..core import check
from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.values import ServerState, Vector
from ..core.wire import TRAIN
from . import checkpoint, lessons, nodes, scores
from .checkpoint import Saved
from .events import EventLog, read_events
from .exchange import Outcome, exchange
from .knowledge import Knowledge
from .link import Link
from .report import write_report
from .room import Room, descent, older_descents, open_room, stamp
from .round import close, mean
from .sums import quorum
from .tensorboard import ScalarLog

logger = logging.getLogger(__name__)

LINE = "line"
"""File, in the run's folder, that names the line of runs that it is of."""


def run(
    link: Link, text: str, folder: Path, keyholder: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Run, or go on with, the whole sequence of domains of the config in `text`.

    Args:
        link: reaches the clients.
        text: the TOML text.
        folder: the run folder; made if missing. When it holds a checkpoint, the run goes on.
        keyholder: replaces options of `[keyholder]`.

    Raises:
        PerennialError: config, data or model are at fault, or the run cannot go on.
    """
    config = check.read(text)
    # All that can be at fault is opened before anything is written.
    room_with = open_room(config, folder, link, keyholder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.toml").exists():
        write_atomically(folder / "config.toml", text)
    begun = any(_past(folder))
    with (
        ScalarLog(folder / "tensorboard", config.round.rounds, past=_past(folder)) as scalars,
        EventLog(folder / "events.jsonl", also=scalars.add) as log,
    ):
        token = _token(folder)
        room = room_with(log=log, token=token, line=_line(folder, token))
        saved = checkpoint.newest(folder / "checkpoints")
        try:
            state = _first(room, begun=begun) if saved is None else _again(room, saved)
            _domains(room, state, lessons.load(room, state.domain))
        finally:
            if room.holder is not None:
                room.holder.close()
    write_report(folder)


def _past(folder: Path) -> Iterable[dict[str, Any]]:
    path = folder / "events.jsonl"
    return read_events(path) if path.exists() else ()


def _token(folder: Path) -> str:
    path = folder / "token"
    if not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()


def _line(folder: Path, token: str) -> str:
    path = folder / LINE
    if not path.exists():
        write_atomically(path, f"{folder.name}-{token}")
    return path.read_text(encoding="utf-8").strip()


def _first(room: Room, *, begun: bool) -> ServerState:
    if begun:  # by a process that died before its first checkpoint: what it had been told is void
        room.log.emit("run_resumed", domain=0, round=0)
    there = nodes.wait(room.link.nodes, quorum(room, 1), room.config.round.deadline_s)
    room.model.fit_labels(room.labels(0))
    _say(room, len(there))
    return ServerState(round=0, domain=0, params=room.model.vector())


def _say(room: Room, clients: int) -> None:
    """What this run is, for all who read its log."""
    room.log.emit(
        "run_started",
        run=room.folder.name,
        version=version("perennial-fl"),
        config=room.config.model_dump(mode="json"),
        model={
            "name": room.config.model.name,
            "identity": room.model.identity(),
            "trainable": room.model.manifest.size,
            "tensors": len(room.model.manifest.names),
        },
        domains=[{"name": d.name, "labels": list(d.labels)} for d in room.stream.domains],
        clients=clients,
        rounds=room.rounds,
        methods=check.methods(room.config),
        sealing=_sealing(room, clients),
        privacy={part.unit: dict(part.terms) for part in (room.privatizer, room.user) if part.unit},
    )


def _sealing(room: Room, clients: int) -> dict[str, Any]:
    """How updates are hidden, for the report and for people."""
    sums = room.secure_sum
    words = sums.describe(min(room.config.round.cohort or clients, clients))
    logger.info("updates: %s", words)
    return {
        "words": words,
        "hidden": not sums.single_updates,
        "masks": sums.pairwise,
        "scheme": sums.scheme.pack() if sums.scheme else None,
        "key": room.holder.fingerprint() if room.holder else "",
        "keyholder": room.config.keyholder.name if room.holder else "",
    }


def _again(room: Room, saved: Saved) -> ServerState:
    state = saved.state
    fitted = state.domain if state.round else max(state.domain - 1, 0)
    room.model.fit_labels(room.labels(fitted))
    same = stamp(room) == saved.stamp
    if not same and not _goes_on(room, saved):
        raise RunError(
            f"the checkpoint's stamp must be {stamp(room)}, a hash of config, base and domains; "
            f"got {saved.stamp}. Resume with the config, data and version that the run was started "
            "with."
        )
    there = nodes.wait(room.link.nodes, quorum(room, 1), room.config.round.deadline_s)
    if not same:
        _say(room, len(there))
    room.log.emit("run_resumed", domain=state.domain, round=state.round)
    logger.info("resumed at domain %d, round %d", state.domain, state.round)
    return state


def _goes_on(room: Room, saved: Saved) -> bool:
    """Whether the state is the end of a domain from which this run learns others."""
    state = saved.state
    if room.config.update is None or state.round:
        return False
    wanted = older_descents(room, state.domain) | {descent(room, state.domain)}
    return saved.descent in wanted


def _domains(room: Room, state: ServerState, known: Knowledge) -> None:
    started = time.monotonic()
    for index in range(state.domain, len(room.stream.domains)):
        state, known = _domain(room, state, known, index)
    _save_adapter(room, state, room.folder / "adapter")
    room.log.emit(
        "run_finished",
        adapter_hash=adapter_hash(state.params),
        seconds=time.monotonic() - started,
    )


def adapter_hash(params: Vector) -> str:
    """16 hex digits over the bytes of a parameter vector."""
    return hashlib.sha256(np.ascontiguousarray(params, "<f4").tobytes()).hexdigest()[:16]


def _domain(
    room: Room, state: ServerState, known: Knowledge, index: int
) -> tuple[ServerState, Knowledge]:
    started = time.monotonic()
    domain, rounds = room.stream.domains[index], room.rounds
    if not state.round:
        state, known = lessons.begin(room, state, known, index)
        if not index:
            scores.baseline(room, state)
    else:
        room.model.fit_labels(room.labels(index))
    _need_bound(room)
    room.log.emit("domain_started", domain=index, name=domain.name, labels=len(room.labels(index)))
    if state.round and scores.due(room, state) and not scores.evaluated(room, state):
        _evaluate(room, state)  # an earlier process died between the two
    while state.round < rounds:
        state = _round(room, state)
        # First of all: a sum that is noised again after a crash must not have been looked at.
        checkpoint.save(room.folder / "checkpoints", state, stamp(room))
        if scores.due(room, state):
            _evaluate(room, state)
    state, known = lessons.finish(room, state, known)
    if state.head.size or not rounds:
        scores.evaluate(room, state, scores.HEAD_OF_METHOD if state.head.size else scores.MODEL)
    _save_adapter(room, state, room.folder / "adapters" / _folder_of(index, domain.name))
    room.log.emit(
        "domain_finished", domain=index, name=domain.name, seconds=time.monotonic() - started
    )
    state = replace(state, round=0, domain=index + 1)
    checkpoint.save(room.folder / "checkpoints", state, stamp(room), descent(room, index + 1))
    write_report(room.folder)
    return state, known


def _evaluate(room: Room, state: ServerState) -> None:
    scores.evaluate(room, state, scores.MODEL, ahead=state.round == room.rounds)


def _need_bound(room: Room) -> None:
    """Whether the sums of this size bound what one client adds, before any client is asked."""
    noise, manifest = room.user.noise, room.model.manifest
    if noise is None:
        return
    for round_ in range(room.rounds):
        size = manifest.only(room.strategy.trainable(manifest, round_)).size
        try:
            room.secure_sum.sensitivity(noise.clip, size)
        except ValueError as error:
            raise RunError(str(error)) from error


def _folder_of(index: int, name: str) -> str:
    """The name of a domain's adapter folder: `name` comes from the data and may be anything."""
    # 48 letters are at most 192 bytes; file systems allow 255.
    safe = re.sub(r"[^\w .-]", "_", name)[:48].rstrip(" .")
    return f"{index:02d}-{safe}"


def _round(room: Room, state: ServerState) -> ServerState:
    manifest = room.model.manifest
    travels = room.strategy.trainable(manifest, state.round)
    up = manifest.only(travels)
    outcome = exchange(room, state, TRAIN, up.hash, up.size)
    if outcome.lost:
        return _lost(room, state, outcome)
    if room.strategy.combine is not None:
        ordered = [outcome.updates[node] for node in sorted(outcome.updates)]
        moved: Vector = room.strategy.combine(ordered)
    else:
        moved = mean(outcome.opened).astype(np.float32)
    after = close(state, moved, manifest.slices(travels), room.strategy)
    if not np.isfinite(after.params).all():
        raise RunError(
            f"the parameters must stay finite; after round {state.round} of domain "
            f"{state.domain} they are not. Lower [train] lr or [round] max_change."
        )
    peak = np.float32(outcome.opened.peak)
    first = peak if not state.round else state.peaks[0]
    return replace(after, peaks=np.array([first, peak], np.float32))


def _lost(room: Room, state: ServerState, outcome: Outcome) -> ServerState:
    """The state after a round that cannot be had: nothing moved."""
    place = {"domain": state.domain, "round": state.round, "attempt": outcome.attempt}
    room.log.emit("round_failed", **place, reason=f"given up: {outcome.lost}")
    logger.error("domain %d round %d is given up: %s", state.domain, state.round, outcome.lost)
    return replace(state, round=state.round + 1)


def _save_adapter(room: Room, state: ServerState, folder: Path) -> None:
    """Write the adapter beside its place first, so that a reader sees all of it or the old one."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    room.model.load(state.params)
    room.model.save(fresh)
    if state.head.size:  # what answers in the place of the adapter's own head
        np.save(fresh / "answer.npy", state.head)
    for path in fresh.iterdir():
        # Some writers make files for their owner alone: give what the folder gives.
        path.chmod(fresh.stat().st_mode & 0o666)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
