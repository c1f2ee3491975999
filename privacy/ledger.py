"""One client's account on its own disk: what its records and the client itself paid, for life.

An audit log of charges, each on disk before the records are used, and of what they paid for, once
it is about to leave. Beside it a small file says where the log ends: lines cut off, an older copy
or a deleted ledger are noticed.
Whoever takes both files away takes the account away: they belong to the backup of the client.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BudgetError, DataError, PrivacyError, RunError
from ..core.files import write_atomically
from ..core.private import EXAMPLE, LEDGER, USER, Statement
from ..core.private import Ledger as Ledger
from ..core.values import Spend
from .accounting import Account, accounts_of, checked_delta, most_repeats, worst
from .audit_log import AuditLog, Entry, entries_of

HEAD = "ledger.head"
"""File beside the ledger: whose it is, how many lines it has and the hash of the last."""

MOST_UPDATES = 9999
"""Where counting the updates that are left stops."""

CHARGE, RELEASED = "charge", "released"
"""Events of a ledger: what was paid, and that what it paid for is about to leave."""

_START = "0" * 64
_PATIENCE_S = 10.0
# Targets and sums in floating point: equal to this part is equal.
_TOLERANCE = 1e-9


def open_ledger(folder: Path, client: str, *, unit: str, epsilon: float, delta: float) -> Ledger:
    """The account of `client` for one unit; both units of a client share one file.

    Nothing is opened or made before the first charge.

    Args:
        folder: the client's own, which must be there.
        client: its id; a ledger of another one is refused.
        unit: `example` or `user`.
        epsilon: target that is never crossed, > 0.
        delta: in (0, 1).

    Raises:
        PrivacyError: unit, epsilon or delta are out of range.
    """
    if unit not in (EXAMPLE, USER):
        raise PrivacyError(f"a ledger is kept for {EXAMPLE!r} or {USER!r}; got {unit!r}")
    if not 0.0 < epsilon < math.inf:
        raise PrivacyError(f"the target epsilon must be above 0 and finite; got {epsilon:g}")
    return _Ledger(folder, client, unit, epsilon, checked_delta(delta))


@dataclass(frozen=True, slots=True)
class _Ledger:
    folder: Path
    client: str
    unit: str
    target: float
    delta: float

    def charge(self, place: Mapping[str, Any], spends: Sequence[Spend]) -> Statement:
        """As `core.private.Ledger.charge`."""
        if not spends:
            return self.statement()
        added = list(spends)
        accounts_of(added)  # refuses what is out of range before anything is opened
        with self._open() as (log, lines):
            self._need_promise(lines)
            paid, releases = _paid(lines, self.unit), _releases(lines, self.unit)
            again = self._is_open(lines, place, added)
            after = self._spent(paid if again else [*paid, *added])
            if after > self.target * (1.0 + _TOLERANCE):
                raise BudgetError(self._refusal(place, self._spent(paid), after))
            if not again:
                self._append(
                    log,
                    lines,
                    CHARGE,
                    place,
                    target=self.target,
                    delta=self.delta,
                    epsilon=after,
                    spends=[_plain(spend) for spend in added],
                )
        return Statement(self.unit, after, self.delta, self.target, releases + (not again))

    def released(self, place: Mapping[str, Any]) -> None:
        """As `core.private.Ledger.released`."""
        if not any((self.folder / name).exists() for name in (LEDGER, HEAD)):
            return  # nothing was ever charged, and asking makes nothing
        with self._open() as (log, lines):
            events = [line["event"] for line in _at(lines, self.unit, place)]
            if not events:
                return
            if events.count(CHARGE) <= events.count(RELEASED):
                raise PrivacyError(
                    f"{self.client} must charge before each answer that leaves; what was charged "
                    f"for {_words(place)} paid for one that left. One client runs once: stop the "
                    "other process; this answer is lost, and asking again charges again"
                )
            self._append(log, lines, RELEASED, place)

    def _is_open(
        self, lines: Sequence[Entry], place: Mapping[str, Any], spends: Sequence[Spend]
    ) -> bool:
        """Whether the last charge is this one, and nothing that it paid for was ever kept.

        A crash took that answer, and its noise, before anyone saw it: the one that is computed
        now is the first. Only where the place says all that the answer depends on.
        """
        if place.get("kind") != "train" or not place.get("salt"):
            return False
        ours = [line for line in lines if line["unit"] == self.unit]
        last = max((i for i, line in enumerate(ours) if line["event"] == CHARGE), default=-1)
        if last < 0 or RELEASED in (line["event"] for line in _at(ours[last:], self.unit, place)):
            return False
        # A tightened promise must be written down, by a charge of its own.
        asked = (dict(place), [_plain(spend) for spend in spends], self.target, self.delta)
        wrote = [ours[last][name] for name in ("place", "spends", "target", "delta")]
        return _canonical(asked) == _canonical(wrote)

    def statement(self, update: Sequence[Spend] = ()) -> Statement:
        """As `core.private.Ledger.statement`; writes nothing and waits for nobody."""
        lines = _lines_of(self.folder, self.client)
        self._need_promise(lines)
        accounts = accounts_of(_paid(lines, self.unit))
        spent, payer = worst(accounts.values(), self.delta)
        left = self._updates_left(payer, accounts_of(update)) if update else -1
        releases = _releases(lines, self.unit)
        return Statement(self.unit, spent, self.delta, self.target, releases, left)

    def _spent(self, spends: Iterable[Spend]) -> float:
        return worst(accounts_of(spends).values(), self.delta)[0]

    def _updates_left(self, payer: Account, update: Mapping[str, Account]) -> int:
        """How many more times the cohort that paid most can pay the dearest part of `update`."""
        target = self.target * (1.0 + _TOLERANCE)
        return min(
            most_repeats(payer, account, target, self.delta, MOST_UPDATES)
            for account in set(update.values())
        )

    @contextmanager
    def _open(self) -> Iterator[tuple[AuditLog, list[Entry]]]:
        """The log for this process alone, and its lines, found whole."""
        log = _opened(self.folder / LEDGER)
        try:
            head = _read_head(self.folder)
            lines = list(_sound(log.entries))
            _need_whole(self.folder, self.client, head, lines)
            if head is None or head["lines"] < len(lines):
                # The crash came between a line and its head; the line counts.
                _write_head(self.folder, self.client, lines)
            yield log, lines
        finally:
            log.close()

    def _append(
        self,
        log: AuditLog,
        lines: Sequence[Entry],
        event: str,
        place: Mapping[str, Any],
        **fields: Any,
    ) -> None:
        ours = {"client": self.client, "unit": self.unit, "place": dict(place)}
        before = "records are used" if event == CHARGE else "an answer is kept"
        try:
            entry = log.append(event, **ours, **fields)
        except RunError as error:
            raise PrivacyError(
                f"the line {event!r} must be on disk before {before}; {error}"
            ) from error
        _write_head(self.folder, self.client, [*lines, entry])

    def _need_promise(self, lines: Sequence[Entry]) -> None:
        """A promise once made may be tightened and never loosened."""
        ours = _charges(lines, self.unit)
        for name, now in (("target", self.target), ("delta", self.delta)):
            promised = min((line[name] for line in ours), default=now)
            if now > promised * (1.0 + _TOLERANCE):
                word = "epsilon" if name == "target" else name
                raise PrivacyError(
                    f"{self.client} promised {word} {promised:g} per {self.unit} in its ledger "
                    f"{self.folder / LEDGER}; got {word} {now:g}, which would break it. Keep "
                    f"{word} at {promised:g} or below; a ledger may be deleted only when all "
                    "that was released under it is withdrawn"
                )

    def _refusal(self, place: Mapping[str, Any], before: float, after: float) -> str:
        return (
            f"{self.client} must stay within epsilon {self.target:g} per {self.unit} at delta "
            f"{self.delta:g}: {before:.4g} is spent, and {_words(place)} would make it "
            f"{after:.4g}. Nothing was trained and nothing charged. Stop here, or plan more noise "
            "for the whole life of the model before it begins: perennial plan FILE"
        )


def client_of(folder: Path) -> str:
    """Whose ledger lies in `folder`.

    Raises:
        PrivacyError: the ledger is damaged, or there is none.
    """
    return str(_begun(folder)[0]["client"])


def statements_of(folder: Path) -> list[Statement]:
    """What the ledger in a client's folder says, per unit, at the tightest promise it holds.

    Args:
        folder: a client's own folder.

    Raises:
        PrivacyError: the ledger is damaged, or there is none.
    """
    lines, found = _begun(folder), []
    for unit in (EXAMPLE, USER):
        ours = _charges(lines, unit)
        if ours:
            target = min(line["target"] for line in ours)
            delta = min(line["delta"] for line in ours)
            found.append(_Ledger(folder, ours[0]["client"], unit, target, delta).statement())
    return found


def spends_of(folder: Path, unit: str) -> list[Spend]:
    """All that was ever charged to `unit` in a client's folder, in order; none without a ledger.

    Raises:
        PrivacyError: the ledger is damaged.
    """
    return _paid(_lines_of(folder, ""), unit)


def _begun(folder: Path) -> list[Entry]:
    lines = _lines_of(folder, "")
    if not lines:
        raise PrivacyError(
            f"{folder} must be a client's own folder and hold a ledger ({LEDGER}); it holds none. "
            "A simulation keeps them in clients/ of the run's folder"
        )
    return lines


def _opened(path: Path) -> AuditLog:
    """The log for this process alone; workers of a simulation take turns."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return AuditLog(path)
        except DataError as error:
            raise _damaged(error) from error
        except RunError as error:
            if time.monotonic() > until:
                raise PrivacyError(
                    f"the ledger {path} must be free to be charged; another process has held it "
                    f"for {_PATIENCE_S:g} s. One client runs once"
                ) from error
            time.sleep(0.02)


def _lines_of(folder: Path, client: str) -> list[Entry]:
    """The lines of the ledger in `folder`, found whole; none where no ledger was begun."""
    path = folder / LEDGER
    while True:
        # The head first: whoever appends meanwhile is ahead of it, never behind.
        head = _read_head(folder)
        lines = _sound(lambda: entries_of(path)) if path.exists() else []
        if head == _read_head(folder):
            break
    _need_whole(folder, client, head, lines)
    return lines


def _sound(read: Any) -> list[Entry]:
    try:
        lines = list(read())
    except DataError as error:
        raise _damaged(error) from error
    for number, line in enumerate(lines, 1):
        if not _well_formed(line):
            raise PrivacyError(
                f"line {number} of a ledger must be a charge, or say what left; got {dict(line)!r}"
            )
    return lines


def _well_formed(line: Entry) -> bool:
    try:
        known = line["unit"] in (EXAMPLE, USER) and bool(line["client"])
        if line["event"] == RELEASED:
            return known and isinstance(line["place"], dict)
        accounts_of(_paid([line], line["unit"]))
        checked_delta(line["delta"])
        return known and line["event"] == CHARGE and line["target"] > 0.0
    except (KeyError, TypeError, ValueError, PrivacyError):
        return False


def _need_whole(
    folder: Path, client: str, head: Mapping[str, Any] | None, lines: Sequence[Entry]
) -> None:
    """Refuse a ledger of another client, and one that lost lines.

    Args:
        folder: where it is.
        client: whose it must be; empty for whoever's it is.
        head: what `ledger.head` says; None where there is none.
        lines: of the ledger.
    """
    owners = {line["client"] for line in lines} | ({head["client"]} if head else set())
    if len(owners) > 1 or (client and owners - {client}):
        raise PrivacyError(
            f"the ledger in {folder} must be of {client or 'one client'}; it is of "
            f"{', '.join(sorted(owners))}. Give each client the folder that is its own"
        )
    said = head["lines"] if head else 0
    hashes = [_START, *(line["hash"] for line in lines)]
    # A crash between a line and its head leaves one line more; nothing leaves fewer.
    whole = said <= len(lines) <= said + 1 and hashes[said] == (head["hash"] if head else _START)
    if not whole:
        raise PrivacyError(
            f"the ledger in {folder} must hold what {HEAD} says was written ({said} lines); it "
            f"holds {len(lines)}, or others. Lines were cut off, an older copy was put back, or "
            f"{HEAD if len(lines) > said else LEDGER} was deleted: put both files back as they "
            "were; without them no one knows what was spent"
        )


def _read_head(folder: Path) -> dict[str, Any] | None:
    path = folder / HEAD
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        return {
            "client": str(head["client"]),
            "lines": int(head["lines"]),
            "hash": str(head["hash"]),
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"{path} must say where the ledger ends; it cannot be read: {error}. Put it back as "
            "it was"
        ) from error


def _write_head(folder: Path, client: str, lines: Sequence[Entry]) -> None:
    if not lines:
        return
    head = {"client": client, "lines": len(lines), "hash": lines[-1]["hash"]}
    try:
        write_atomically(folder / HEAD, json.dumps(head) + "\n", mode=0o600)
    except OSError as error:
        raise PrivacyError(
            f"{folder / HEAD} must be written before records are used; it cannot be: "
            f"{error.strerror}. Nothing was trained"
        ) from error


def _charges(lines: Iterable[Entry], unit: str) -> list[Entry]:
    return [line for line in lines if line["unit"] == unit and line["event"] == CHARGE]


def _paid(lines: Iterable[Entry], unit: str) -> list[Spend]:
    return [Spend(**spend) for line in _charges(lines, unit) for spend in line["spends"]]


def _releases(lines: Iterable[Entry], unit: str) -> int:
    return len(_charges(lines, unit))


def _at(lines: Iterable[Entry], unit: str, place: Mapping[str, Any]) -> list[Entry]:
    """The lines of `unit` that are for `place`."""
    here = _canonical(dict(place))
    return [x for x in lines if x["unit"] == unit and _canonical(x.get("place")) == here]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _words(place: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in place.items()) or "this use"


def _plain(spend: Spend) -> dict[str, Any]:
    return {
        "cohort": spend.cohort,
        "sample_rate": float(spend.sample_rate),
        "noise_multiplier": float(spend.noise_multiplier),
        "steps": int(spend.steps),
        "mechanism": spend.mechanism,
    }


def _damaged(error: DataError) -> PrivacyError:
    return PrivacyError(f"the ledger must be whole and a file that can be written: {error}")
