"""The run's numbers as TensorBoard scalars, while it goes on or afterwards.

Written with TensorBoard's own file writer, not torch's. The step of a scalar is the number of
rounds done over all domains; a domain without rounds counts as one step. Tags `accuracy_head` are
what a continual method answers in the place of the adapter's own head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event as Proto
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ..core import metrics
from .events import Event, number
from .report_accuracy import scores_of
from .report_events import HEAD, answered_by, settled

_ROUND = {
    "loss": "train/loss",
    "bytes_up": "bytes/up",
    "bytes_down": "bytes/down",
    "seconds": "seconds/round",
}
"""Field of round_finished -> tag."""


class ScalarLog:
    """An open TensorBoard file in a folder: takes events as they come, closes.

    A resumed run opens another file in the same folder. Its run_resumed event tells TensorBoard
    to forget the steps that were made void.
    """

    def __init__(self, folder: Path, rounds: int, past: Iterable[Event] = ()) -> None:
        """Open a new file in `folder`, made if missing.

        Args:
            folder: what `tensorboard --logdir` is given.
            rounds: rounds per domain: places a domain's rounds on the axis of steps. Where the
                run's start tells how many there are with those that the continual layer adds,
                that counts.
            past: what the run's log holds already: of a resumed run, earlier domains, without
                which what was forgotten since cannot be told. Nothing of it is written again.

        Raises:
            OSError: the folder cannot be written.
            RunError: an event of the past without the integers that say where it belongs.
        """
        self._rounds = rounds
        self._ends: dict[int, Event] = {}
        self._names: list[str] = []
        self._baseline: Mapping[str, Any] = {}
        # The writer's own queue flushes too rarely to be watched; `add` flushes instead.
        self._writer: Any = EventFileWriter(str(folder))
        self._spent: dict[str, float] = {}
        for event in settled(past):
            self._remember(event)

    def add(self, event: Event) -> None:
        """Write the scalars of one event, if it has any, and make them visible at once.

        Raises:
            OSError: the disk is full, or the log is closed.
        """
        self._remember(event)
        if event["event"] == "round_finished":
            scalars = {tag: event.get(field) for field, tag in _ROUND.items()}
            self._write(event, {**scalars, **self._epsilons()}, done=1)
        elif event["event"] == "domain_finished":
            # What clients said at the domain's end belongs to its last round.
            self._write({**event, "round": self._rounds}, self._epsilons(), done=0)
            self._write(self._end(event), self._kept(event["domain"]), done=0)
        elif event["event"] == "learnt":
            self._write(self._end(event), _learnt(event), done=0)
        elif event["event"] == "evaluated":
            self._write(event, _accuracies(event), done=0)
        elif event["event"] == "run_resumed":
            self._forget(event)

    def close(self) -> None:
        """Write what is left and close the file; a second call does nothing."""
        self._writer.close()

    def __enter__(self) -> ScalarLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _remember(self, event: Event) -> None:
        """Keep what later scalars need."""
        if event["event"] in ("reply", "statement"):
            self._hear(event)
        elif event["event"] == "run_started":
            self._names = [str(domain.get("name")) for domain in event.get("domains") or []]
            self._rounds = int(number(event.get("rounds")) or self._rounds)
        elif event["event"] == "baseline":
            self._baseline = event
        elif event["event"] == "evaluated":
            before = self._ends.get(event["domain"], {})
            # A method's head outranks the adapter's own, which may be all that looked ahead.
            if answered_by(before) != HEAD or answered_by(event) == HEAD:
                ahead = event.get("ahead") or before.get("ahead")
                self._ends[event["domain"]] = {**event, "ahead": ahead}
        elif event["event"] == "run_resumed":
            place = event["domain"], event["round"]
            self._ends = {
                domain: end for domain, end in self._ends.items() if (domain, end["round"]) <= place
            }

    def _end(self, event: Event) -> Event:
        """`event` as one of its domain's end, at the step of the domain's evaluation."""
        end = self._ends.get(event["domain"])
        return {**event, "round": end["round"] if end else self._rounds}

    def _kept(self, domain: int) -> dict[str, float]:
        """What is known and forgotten after a domain, where all domains so far were measured."""
        if any(i not in self._ends for i in range(domain + 1)) or domain >= len(self._names):
            return {}
        names = self._names[: domain + 1]
        A = np.stack([scores_of(self._ends[i].get("accuracy"), names) for i in range(domain + 1)])
        ahead = A.copy()
        for j in range(1, domain + 1):
            ahead[j - 1, j] = scores_of(self._ends[j - 1].get("ahead"), names)[j]
        baseline = scores_of(self._baseline.get("accuracy"), names)
        return {
            "continual/average_accuracy": metrics.average_accuracy(A)[-1],
            "continual/forgetting": metrics.forgetting(A)[-1],
            "continual/backward_transfer": metrics.backward_transfer(A),
            "continual/forward_transfer": metrics.forward_transfer(ahead, baseline),
            "continual/learning_accuracy": metrics.learning_accuracy(A),
        }

    def _hear(self, event: Event) -> None:
        """Keep the largest epsilon that a client said, per unit: ledgers only grow."""
        said = event.get("epsilon")
        for unit, value in (said if isinstance(said, Mapping) else {}).items():
            spent = number(value)
            if spent is not None:
                self._spent[unit] = max(spent, self._spent.get(unit, 0.0))

    def _epsilons(self) -> dict[str, float]:
        return {f"privacy/epsilon_{unit}": value for unit, value in self._spent.items()}

    def _write(self, event: Event, scalars: Mapping[str, Any], done: int) -> None:
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, found in scalars.items()
            if (value := number(found)) is not None
        ]
        if values:
            self._emit(event, done, summary=Summary(value=values))

    def _forget(self, event: Event) -> None:
        # TensorBoard drops all steps >= that of a session's start. Rounds are counted from 0 and
        # `round` rounds are done, so the first void step is one further.
        self._emit(event, done=1, session_log=SessionLog(status=SessionLog.START))

    def _emit(self, event: Event, done: int, **content: Any) -> None:
        step = event["domain"] * max(1, self._rounds) + event["round"] + done
        self._writer.add_event(Proto(wall_time=event["time"], step=step, **content))
        self._writer.flush()


def write_tensorboard(events: Iterable[Event], folder: Path) -> None:
    """Write the scalars of a whole run's events into a new file in `folder`.

    Raises:
        OSError: the folder cannot be written.
        RunError: an event without the integers that say where it belongs.
    """
    found = settled(events)
    with ScalarLog(folder, _rounds(found)) as log:
        for event in found:
            log.add(event)


def _accuracies(event: Event) -> dict[str, Any]:
    found = event.get("accuracy")
    scores = found if isinstance(found, Mapping) else {}
    known = [value for score in scores.values() if (value := number(score)) is not None]
    mean = sum(known) / len(known) if known else None
    tag = "accuracy_head" if answered_by(event) == HEAD else "accuracy"
    # The mean last: it stands even where a domain is called "mean".
    return {**{f"{tag}/{name}": score for name, score in scores.items()}, f"{tag}/mean": mean}


def _learnt(event: Event) -> dict[str, Any]:
    """What the sum at a domain's end cost, and the methods' own numbers."""
    facts = event.get("facts")
    told = facts.items() if isinstance(facts, Mapping) else ()
    return {
        "bytes/up_at_end": event.get("bytes_up"),
        "seconds/end": event.get("seconds"),
        **{f"facts/{name}": value for name, value in told},
    }


def _rounds(events: Iterable[Event]) -> int:
    """Rounds per domain: the most that were done in one, or that the run's start tells."""
    most = 0
    for event in events:
        if event["event"] == "round_finished":
            most = max(most, event["round"] + 1)
        elif event["event"] == "run_started":
            most = max(most, int(number(event.get("rounds")) or 0))
    return most
