"""Names on the wire: what a task and an answer consist of, at both ends.

A task goes down as one record of arrays and one of settings; an answer comes up as one sealed
body, the ticket it answers to and plain numbers. Only flat vectors travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import RunError
from .values import Domain, Ticket

CONFIG_KEY = "config"
"""Flower run-config key that holds the whole TOML text."""

FOLDER_KEY = "folder"
"""Flower run-config key of the run folder; empty to make one under `run.folder`."""

KEYHOLDER_KEY = "keyholder"
"""Flower run-config key of a JSON object that replaces options of `[keyholder]`; may be empty."""

TRAIN, EVALUATE, FINISH = "train", "evaluate", "train.finish"
JOIN, REVEAL = "query.join", "query.reveal"
"""Message types."""

ARRAYS, TASK, METRICS, PACT = "arrays", "task", "metrics", "pact"
"""Record names."""

PARAMS, SUMMARY, BODY, NOTE = "params", "summary", "body", "note"
"""Array names: global parameters, summed knowledge of the last domain, one sealed update or
answer, what one node alone is told."""

_MOST_NAMES = 2**16

FLOAT32 = "perennial.float32"
SEALED = "perennial.sealed"
"""Array serialisation types: raw little-endian float32, and bytes that only a key opens."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the server asks of a client, besides the parameters.

    Attributes:
        ticket: names the round.
        rounds: rounds of this domain, for the learning-rate schedule.
        labels: all labels so far, in the order of the head.
        domain: the domain being learnt.
        seen: names of the domains so far, in order, the current one last.
        manifest: hash of the manifest of all trainable tensors.
        base: identity of the frozen base; the same adapter on another base means nothing.
    """

    ticket: Ticket
    rounds: int
    labels: tuple[str, ...]
    domain: Domain
    seen: tuple[str, ...]
    manifest: str
    base: str

    def pack(self) -> dict[str, Any]:
        """Plain values only: numbers, strings and lists of strings."""
        return {
            **asdict(self.ticket),
            "rounds": self.rounds,
            "labels": list(self.labels),
            "domain_name": self.domain.name,
            "domain_labels": list(self.domain.labels),
            "seen": list(self.seen),
            "full_manifest": self.manifest,
            "base": self.base,
        }

    @staticmethod
    def unpack(values: Mapping[str, Any]) -> Task:
        """The task in a peer's `values`, its types checked.

        Raises:
            RunError: a key is missing, so server and client differ in version, or a value is unfit.
        """
        try:
            return Task(
                ticket=Ticket(**{f.name: _of(f.type, values, f.name) for f in fields(Ticket)}),
                rounds=_of("int", values, "rounds"),
                labels=_names(values, "labels"),
                domain=Domain(_of("str", values, "domain_name"), _names(values, "domain_labels")),
                seen=_names(values, "seen"),
                manifest=_of("str", values, "full_manifest"),
                base=_of("str", values, "base"),
            )
        except KeyError as error:
            raise RunError(
                f"the server's task must hold {error}; it does not. Install the same version of "
                "perennial on the server and on every client."
            ) from error


def _of(kind: Any, values: Mapping[str, Any], key: str) -> Any:
    if type(values[key]).__name__ != kind:
        raise RunError(f"the task's {key} must be of type {kind}; got {type(values[key]).__name__}")
    return values[key]


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = values[key]
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise RunError(f"the task's {key} must be a list of names")
    # A label costs a row of the head, a domain an evaluation: far more than they cost the sender.
    if len(names) > _MOST_NAMES or len(set(names)) != len(names):
        raise RunError(f"the task's {key} must be at most {_MOST_NAMES}, each once")
    return tuple(names)
