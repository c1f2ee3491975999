"""Domain updates of a model in service: one folder each, begun from a release, ended in one.

`updates/NNNN-domain/` is a run folder. It begins as a copy of what the run behind the release in
service left: state, knowledge and log, so that one more domain is learnt where the last one ended;
its clients know the two as one line. An update that fails its gate, or that nobody finishes,
leaves the release and its run as they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import Update
from ..core.errors import DataError, RunError
from ..core.files import claim, sync_folder, write_atomically
from . import releases
from .gate import Check, accuracy, gate, learnt
from .lessons import FOLDER as KNOWLEDGE
from .origin import COPIED, FOLDER, behind, need_newest, report_of
from .releases import Release, Signer
from .report import write_report

CARD = "update.json"
RUNNING, RELEASED, REFUSED = "running", "released", "refused"
"""States of an update."""

_REPORTS = ("report.json", "report.html", "config.toml")


@dataclass(frozen=True, slots=True)
class Begun:
    """An update as it lies on disk.

    Attributes:
        folder: of its run.
        card: what `update.json` says: `domains` it learns, `parent`, `asked`, `state`, and, once
            over, `checks` and `release`.
    """

    folder: Path
    card: Mapping[str, Any]

    @property
    def state(self) -> str:
        """`running`, `released` or `refused`."""
        return str(self.card["state"])


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """One update of a home at a time.

    Raises:
        RunError: another one is under way.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".update-lock").open("a+b") as file:
        try:
            claim(file.fileno())
        except BlockingIOError as error:
            raise RunError(
                f"{home} is being updated by another process; wait for it to end, or stop it"
            ) from error
        yield


def earlier(home: Path, asked: str) -> Begun | None:
    """The newest update that was asked for in the same words over the same release."""
    present = releases.in_service(home)
    parent = present.number if present else None
    for begun in reversed(_all(home)):
        if begun.card["asked"] == asked and begun.card["parent"] == parent:
            return begun
    return None


def begin(home: Path, text: str, domains: Sequence[str], asked: str) -> Begun:
    """A new update over the release in service.

    Args:
        home: with releases and updates.
        text: the config of its run, in which the new domains come last.
        domains: names of the new ones.
        asked: what tells this request from others.

    Raises:
        DataError: the run behind the release in service is not there any more.
    """
    parent = releases.in_service(home)
    updates = home / FOLDER
    updates.mkdir(parents=True, exist_ok=True)
    for left in updates.glob(".new-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    number = 1 + max((int(path.name[:4]) for path in _folders(home)), default=0)
    safe = re.sub(r"[^\w.-]", "_", domains[-1])[:40].strip("._")
    folder = updates / f"{number:04d}-{safe or 'domain'}"
    fresh = updates / f".new-{secrets.token_hex(4)}"
    try:
        fresh.mkdir()
        if parent is not None:
            need_newest(home, parent)
            _inherit(*behind(home, parent), fresh)
        write_atomically(fresh / "config.toml", text)
        _write_card(
            fresh,
            {
                "domains": list(domains),
                "parent": parent.number if parent else None,
                "asked": asked,
                "id": secrets.token_hex(8),
                "state": RUNNING,
            },
        )
        releases.sync(fresh)
        os.rename(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(updates)
    return _read(folder)


def conclude(
    home: Path, begun: Begun, limits: Update, signer: Signer, also: Sequence[Check] = ()
) -> tuple[Begun, list[Check]]:
    """Hold a finished run against its gate, and release it or leave the old one in service.

    A call that was cut short may be repeated: nothing is released twice.

    Args:
        home: with releases and updates.
        begun: whose run has ended.
        limits: of the gate.
        signer: signs the release.
        also: conditions beside the gate's own, such as those of what the model becomes.
    """
    report = write_report(begun.folder)
    origin = begun.card["parent"]
    number = begun.card.get("release") or _released(home, begun)
    _need_present(home, origin, number)
    before = None if origin is None else report_of(releases.read(home, origin))
    checks = [*gate(report, before, limits), *also]
    state, told = REFUSED, {}
    if all(check.holds for check in checks):
        number = number or _cut(home, begun, report, checks, signer).number
        present = releases.in_service(home)
        if present is None or present.number != number:
            releases.promote(home, number, f"update {begun.folder.name}")
        state, told = RELEASED, {"release": number}
    packed = [check.pack() for check in checks]
    _write_card(begun.folder, {**begun.card, **told, "state": state, "checks": packed})
    return _read(begun.folder), checks


def mend(home: Path) -> Begun | None:
    """Have updates that died between their promotion and their card say that they were released.

    The one behind the release in service, where that was such an update; else None.
    """
    present = releases.in_service(home)
    number = present.number if present else None
    were = {number, *(change["to"] for change in releases.history(home))}
    found = None
    for begun in _all(home):
        own = _released(home, begun) if begun.state == RUNNING else None
        if own is None or own not in were:
            continue
        told = {"release": own, "checks": releases.read(home, own).card["checks"]}
        _write_card(begun.folder, {**begun.card, **told, "state": RELEASED})
        found = _read(begun.folder) if own == number else found
    return found


def known(home: Path) -> list[str]:
    """Names of the domains that the release in service has learnt, in order."""
    present = releases.in_service(home)
    return [str(name) for name in present.card["domains"]] if present else []


def _inherit(run: Path, domain: int, fresh: Path) -> None:
    """What the run behind a release left, for a run that goes on from it."""
    (fresh / "checkpoints").mkdir()
    (fresh / KNOWLEDGE).mkdir()
    _linked(run / "checkpoints" / f"{domain:04d}-00000.npz", fresh / "checkpoints")
    _linked(run / KNOWLEDGE / f"{domain:04d}.npz", fresh / KNOWLEDGE)
    for name in COPIED:
        shutil.copyfile(run / name, fresh / name)


def _linked(path: Path, folder: Path) -> None:
    """The same file in another folder: such files are replaced, never changed."""
    try:
        os.link(path, folder / path.name)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; put it back from a backup") from error
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, folder / path.name)


def _cut(
    home: Path,
    begun: Begun,
    report: Mapping[str, Any],
    checks: Sequence[Check],
    signer: Signer,
) -> Release:
    adapter = begun.folder / "adapter"
    files = {f"adapter/{path.name}": path for path in sorted(adapter.iterdir())}
    files |= {name: begun.folder / name for name in _REPORTS}
    block = report["privacy"]
    spent = [unit["epsilon"] for unit in block["units"]] if block else []
    card = {
        "update": begun.folder.name,
        "update_id": begun.card["id"],
        "version": report["version"],
        "domain": begun.card["domains"][-1],
        "domains": learnt(report),
        "labels": sum(len(domain["labels"]) for domain in report["domains"]),
        "base": report["model"].get("identity"),
        "adapter_hash": report["adapter_hash"],
        "accuracy": accuracy(report),
        "epsilon": max(spent) if spent and None not in spent else None,
        "clients": report["num_clients"],
        "took_part": [client["node"] for client in report["clients"] if client["rounds"]],
        "records": _records(report),
        "checks": [check.pack() for check in checks],
    }
    return releases.cut(home, files, card, signer, begun.card["parent"])


def _records(report: Mapping[str, Any]) -> float | None:
    """Training records of the last round, where clients tell theirs."""
    told = [client["records"] for client in report["clients"] if client["rounds"]]
    return sum(told) if told and None not in told else None


def _released(home: Path, begun: Begun) -> int | None:
    """The release that an update was cut as before it could say so."""
    mine = begun.card["id"]
    found = [r.number for r in releases.all_of(home) if r.card.get("update_id") == mine]
    return found[-1] if found else None


def _need_present(home: Path, origin: int | None, own: int | None) -> None:
    """Whether what is in service is what the update began from, or its own release.

    Raises:
        RunError: somebody put another one in service meanwhile; it stays there.
    """
    present = releases.in_service(home)
    found = present.number if present else None
    if found not in (origin, own):
        names = ["none" if number is None else f"{number:04d}" for number in (found, origin)]
        raise RunError(
            f"release {names[0]} was put in service while this update went on from "
            f"{names[1]}; it stays there, and the update is "
            "not released. Put back the other one and repeat the command, or begin anew."
        )


def _all(home: Path) -> list[Begun]:
    found = []
    for folder in _folders(home):
        with contextlib.suppress(DataError):  # one damaged card must not stop the next update
            found.append(_read(folder))
    return found


def _folders(home: Path) -> list[Path]:
    updates = home / FOLDER
    there = updates.iterdir() if updates.is_dir() else ()
    return sorted(path for path in there if re.match(r"\d{4}-", path.name))


def _read(folder: Path) -> Begun:
    try:
        card = json.loads((folder / CARD).read_bytes())
        complete = {"domains", "parent", "asked", "id", "state"} <= set(card)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / CARD} cannot be read: {error}") from error
    if not complete:
        raise DataError(f"{folder / CARD} is damaged; put it back from a backup")
    return Begun(folder, card)


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    write_atomically(folder / CARD, json.dumps(card, indent=1, allow_nan=False) + "\n")
