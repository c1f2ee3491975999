"""The run's numbers as TensorBoard scalars, while it goes on or afterwards.

Written with TensorBoard's own file writer, not torch's. The step of a scalar is the number of
rounds done over all domains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event as Proto
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from .events import Event, number, settle

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

    def __init__(self, folder: Path, rounds: int) -> None:
        """Open a new file in `folder`, made if missing.

        Args:
            folder: what `tensorboard --logdir` is given.
            rounds: rounds per domain, `config.round.rounds`: places a domain's rounds on the
                axis of steps.

        Raises:
            OSError: the folder cannot be written.
        """
        self._rounds = rounds
        # The writer's own queue flushes too rarely to be watched; `add` flushes instead.
        self._writer: Any = EventFileWriter(str(folder))
        self._spent: dict[str, float] = {}

    def add(self, event: Event) -> None:
        """Write the scalars of one event, if it has any, and make them visible at once.

        Raises:
            OSError: the disk is full, or the log is closed.
        """
        if event["event"] in ("reply", "statement"):
            self._hear(event)
        elif event["event"] == "round_finished":
            scalars = {tag: event.get(field) for field, tag in _ROUND.items()}
            self._write(event, {**scalars, **self._epsilons()}, done=1)
        elif event["event"] == "domain_finished":
            # What clients said at the domain's end belongs to its last round.
            self._write({**event, "round": self._rounds}, self._epsilons(), done=0)
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
        step = event["domain"] * self._rounds + event["round"] + done
        self._writer.add_event(Proto(wall_time=event["time"], step=step, **content))
        self._writer.flush()


def write_tensorboard(events: Iterable[Event], folder: Path) -> None:
    """Write the scalars of a whole run's events into a new file in `folder`.

    Raises:
        OSError: the folder cannot be written.
        RunError: an event without the integers that say where it belongs.
    """
    settled = settle(events)
    with ScalarLog(folder, _rounds(settled)) as log:
        for event in settled:
            log.add(event)


def _accuracies(event: Event) -> dict[str, Any]:
    found = event.get("accuracy")
    scores = found if isinstance(found, Mapping) else {}
    known = [value for score in scores.values() if (value := number(score)) is not None]
    mean = sum(known) / len(known) if known else None
    # The mean last: it stands even where a domain is called "mean".
    return {**{f"accuracy/{name}": score for name, score in scores.items()}, "accuracy/mean": mean}


def _rounds(events: Iterable[Event]) -> int:
    """Rounds per domain: the most that were done in one."""
    done = (event["round"] + 1 for event in events if event["event"] == "round_finished")
    return max(done, default=0)
