"""Names on the wire: what a task and an answer consist of, at both ends.

A task goes down as one record of arrays and one of settings; an answer comes up as one sealed
body, the ticket it answers to and plain numbers. Only flat vectors travel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import RunError
from .values import Domain, Ticket, Vector

CONFIG_KEY = "config"
"""Flower run-config key that holds the whole TOML text."""

FOLDER_KEY = "folder"
"""Flower run-config key of the run folder; empty to make one under `run.folder`."""

KEYHOLDER_KEY = "keyholder"
"""Flower run-config key of a JSON object that replaces options of `[keyholder]`; may be empty."""

TRAIN, EVALUATE, PEAK, FINISH = "train", "evaluate", "train.peak", "train.finish"
JOIN, REVEAL = "query.join", "query.reveal"
"""Message types."""

ARRAYS, TASK, METRICS, PACT = "arrays", "task", "metrics", "pact"
"""Record names."""

PARAMS, SUMMARY, HEAD, BODY, NOTE = "params", "summary", "head", "body", "note"
"""Array names: global parameters, what the continual method tells the clients, its head, one
sealed update or answer, what one node alone is told."""

PEAKS = 161
"""Number of half octaves, 2**-40 to 2**40, in which the largest value of a summary may lie."""
_LOWEST = -80
_PLACE = r"(?:\d{1,3}|n)"
_SUMMARY = re.compile(rf"summary-(\d{{1,12}})(?:-(peak|{_PLACE}(?:\.{_PLACE}){{0,63}}))?")


def summary_name(size: int, places: Sequence[int | None] = ()) -> str:
    """What travels at the end of a domain: `size` values in parts whose peaks are known."""
    if not places:
        return f"summary-{size}"
    return f"summary-{size}-" + ".".join("n" if p is None else str(p) for p in places)


def peak_name(size: int) -> str:
    """What is asked before `size` values travel: in which half octaves their peaks are."""
    return f"summary-{size}-peak"


def summary_parts(name: str) -> tuple[int, tuple[float, ...]]:
    """Number of values, and the unit of each part, above which no value of a client is.

    A unit is 0 where all values of a part are; there are none where peaks are not known.

    Raises:
        RunError: this is not the name of a summary.
    """
    found = _SUMMARY.fullmatch(name)
    if found is None:
        raise RunError(f"the end of a domain must be asked for a summary; got {name[:40]!r}")
    if found[2] in (None, "peak"):
        return int(found[1]), ()
    return int(found[1]), tuple(_unit(place) for place in found[2].split("."))


def _unit(place: str) -> float:
    return 0.0 if place == "n" else 2.0 ** ((min(int(place), PEAKS - 1) + _LOWEST) / 2)


def in_units(
    vector: npt.NDArray[Any], lengths: Sequence[int], factors: Sequence[float]
) -> npt.NDArray[Any]:
    """`vector` with each part of the given lengths times its factor."""
    return np.concatenate(
        [part * factor for part, factor in zip(split(vector, lengths), factors, strict=True)]
    ).astype(vector.dtype, copy=False)


def peaks_of(vector: Vector, lengths: Sequence[int]) -> list[int | None]:
    """The half octave of the largest value of each part; None where all are 0."""
    parts = split(vector, lengths)
    return [peak_of(float(np.abs(part).max(initial=0.0))) for part in parts]


def split(vector: npt.NDArray[Any], lengths: Sequence[int]) -> list[npt.NDArray[Any]]:
    """The parts of `vector` of the given lengths."""
    return np.split(vector, np.cumsum(lengths)[:-1])


def peak_of(largest: float) -> int | None:
    """The place of the half octave that ends above `largest`; None for 0."""
    if not largest > 0.0:
        return None
    # A hair above, so that a value on the border is not cut by the last bit of a float.
    place = math.ceil(2.0 * math.log2(largest) + 1e-5) - _LOWEST
    return min(max(place, 0), PEAKS - 1)


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
        counted: indices of the domains at whose end the server counted the node that is asked.
        line: of which run, and those that went on from it, the indices of domains are.
    """

    ticket: Ticket
    rounds: int
    labels: tuple[str, ...]
    domain: Domain
    seen: tuple[str, ...]
    manifest: str
    base: str
    counted: tuple[int, ...] = ()
    line: str = ""

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
            "counted": list(self.counted),
            "line": self.line,
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
                counted=_whole(values, "counted"),
                line=_of("str", values, "line"),
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


def _whole(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    numbers = values[key]
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise RunError(f"the task's {key} must be a list of whole numbers")
    return tuple(numbers)


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = values[key]
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise RunError(f"the task's {key} must be a list of names")
    # A label costs a row of the head, a domain an evaluation: far more than they cost the sender.
    if len(names) > _MOST_NAMES or len(set(names)) != len(names):
        raise RunError(f"the task's {key} must be at most {_MOST_NAMES}, each once")
    return tuple(names)
