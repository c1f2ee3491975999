"""The errors a user meets: each says what must hold, what was got and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PerennialError(Exception):
    """An error with a message for the user and an exit code for the shell.

    Attributes:
        exit_code: 1 for a run that failed, 2 for faults of the config or the data. (4, no error,
            says that `perennial drift` found drift.)
    """

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a config: its place, what was got and what is allowed.

    Attributes:
        place: `table.key` as in the TOML file; empty when the file as a whole is meant.
        problem: what must hold and what was got.
        remedy: what to write instead; may be empty.
    """

    place: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        place = f"[{self.place}] " if self.place else ""
        return f"{place}{self.problem}" + (f"; {self.remedy}" if self.remedy else "")


class ConfigError(PerennialError):
    """Every fault of one config at once."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        head = f"{count} fault{'s' if count != 1 else ''} in the config:"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in self.faults)]))


class DataError(PerennialError):
    """Data that cannot be read as the config says."""

    exit_code = 2


class ModelError(PerennialError):
    """A model or adapter that cannot be loaded or does not fit."""

    exit_code = 2


class RunError(PerennialError):
    """A run that cannot go on; its last checkpoint is kept."""


class RefusedError(RunError):
    """A peer could do what it was asked, and will not; asking again changes nothing."""


class StoppedError(RunError):
    """A run that the user stopped; the exit code is a shell's for Ctrl-C."""

    exit_code = 130


class PrivacyError(RunError):
    """A promise of privacy that cannot be kept; nothing left the client."""


class BudgetError(PrivacyError):
    """A charge that would cross the epsilon that was promised; nothing was trained."""
