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
        """The task in `values`.

        Raises:
            RunError: a key is missing; server and client differ in version.
        """
        try:
            return Task(
                ticket=Ticket(**{f.name: values[f.name] for f in fields(Ticket)}),
                rounds=int(values["rounds"]),
                labels=tuple(values["labels"]),
                domain=Domain(str(values["domain_name"]), tuple(values["domain_labels"])),
                seen=tuple(values["seen"]),
                manifest=str(values["full_manifest"]),
                base=str(values["base"]),
            )
        except KeyError as error:
            raise RunError(
                f"the server's task must hold {error}; it does not. Install the same version of "
                "perennial on the server and on every client."
            ) from error
