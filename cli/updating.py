"""`perennial update`: one more domain for the model in service, or nothing to do."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core import check
from ..core.config import Config, Update
from ..core.errors import ConfigError, DataError, Fault, RunError, StoppedError
from ..core.fleet import read_server
from ..core.log import logged
from .exporting import need_extra
from .overrides import override
from .releasing import signer
from .settling import planned_tables, settle

if TYPE_CHECKING:
    from ..data.stream import Stream
    from ..server.gate import Check
    from ..server.updates import Begun

GATED_OUT = 3
"""Exit code of an update that did not pass its gate: the release before stays in service."""

_NOTHING = "nothing"
_CUT_SHORT = "the call that released it was cut short before it could say so"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an update would do.

    Attributes:
        text: the config of its run.
        limits: `[update]`.
        home: of releases and updates.
        known: names of the domains that the release in service has learnt.
        new: names of those to be learnt; none where all of the data's are learnt.
        asked: what tells this request from others: the config and the records of the new domains.
    """

    text: str
    limits: Update
    home: Path
    known: Sequence[str]
    new: Sequence[str]
    asked: str


def update(
    text: str, domain: str, *, dry_run: bool, again: bool, quiet: bool, as_json: bool
) -> int:
    """Learn the next domain over the release in service; the exit code.

    0 where it was released or there was nothing to do, 3 where the gate kept the old release in
    service. A call that repeats one that was cut short goes on with it; one that repeats one that
    was gated out does nothing until config or data are others.

    Args:
        text: the config, with `[update]`.
        domain: its name; empty for that of the config, or for the first that is not learnt.
        dry_run: say what would be done and write nothing.
        again: try once more what was gated out before.
        quiet: show nothing of the run.
        as_json: print the summary as JSON.

    Raises:
        PerennialError: config, data or model are at fault, or the run cannot go on.
    """
    from ..server import updates

    config = check.read(settle(text, domains=1)[0])
    limits = _limits(config)
    home = _home(limits)
    with nullcontext() if dry_run else updates.only_one(home):
        mended = None if dry_run else updates.mend(home)
        if mended is not None and (domain or limits.domain) in ("", *mended.card["domains"]):
            plan = Plan(text, limits, home, updates.known(home), mended.card["domains"], "")
            return _tell(_summary(plan, mended.state, _CUT_SHORT, mended), as_json)
        plan = planned(text, config, limits, home, domain)
        if not plan.new:
            named = domain or limits.domain
            what = f"domain {named!r}" if named in plan.known else "every domain of the data"
            return _tell(_summary(plan, _NOTHING, f"{what} is learnt"), as_json)
        found = updates.earlier(home, plan.asked)
        if found is not None and found.state != updates.RUNNING and not again:
            was = "gated out" if found.state == updates.REFUSED else "released and taken back"
            why = f"{was} before in {found.folder}; --again tries once more"
            return _tell(_summary(plan, found.state, why, found), as_json)
        if dry_run:
            return _tell(_summary(plan, "planned", _words(plan), found), as_json)
        if found is None or found.state != updates.RUNNING:
            found = updates.begin(home, plan.text, plan.new, plan.asked)
        started = time.monotonic()
        _run(plan.text, found.folder, _runner(limits), quiet=quiet or as_json)
        also = exported(found.folder, plan.text) if limits.export else ()
        found, checks = updates.conclude(home, found, limits, signer(home), also)
    summary = _summary(plan, found.state, _outcome(checks), found)
    if limits.mlflow:
        _mirror(home, limits)
    return _tell(summary | {"seconds": round(time.monotonic() - started, 1)}, as_json)


def planned(text: str, config: Config, limits: Update, home: Path, domain: str) -> Plan:
    """What an update of `home` by the config in `text` would do.

    Raises:
        PerennialError: config, data or domain are at fault.
    """
    from ..server import origin, updates
    from .descent import need_descent

    _need_life(config)
    origin.need_sound(home)
    stream = _stream(config)
    known, there = updates.known(home), [d.name for d in stream.domains]
    new = _chosen(limits, domain or limits.domain, known, there)
    order = json.dumps([*known, *new])
    clients = json.dumps(str((home / "clients").resolve()))
    text = override(text, [f"domains.order={order}"])
    if not (limits.server or config.simulation.clients):  # what clients keep outlives a run
        text = override(text, [f"simulation.clients={clients}"])
    text, _ = settle(text)
    need_descent(check.read(text), home)
    return Plan(text, limits, home, known, new, _asked(text, stream, new))


def _limits(config: Config) -> Update:
    if config.update is None:
        remedy = 'add [update] with home = "service"'
        raise ConfigError([Fault("update", "must be given for an update", remedy)])
    return config.update


def _home(limits: Update) -> Path:
    try:
        home = Path(limits.home).expanduser()
        home.resolve()
        if home.exists() and not home.is_dir():
            raise NotADirectoryError("it is a file")
    except (OSError, ValueError, RuntimeError) as error:  # no such user, or no path at all
        fault = Fault("update.home", f"must be a folder; {limits.home!r} is none: {error}")
        raise ConfigError([fault]) from error
    return home


def _need_life(config: Config) -> None:
    """Noise must be planned for all updates that are to come, not for those that have been."""
    for table in planned_tables(config):
        options = getattr(config, table).options
        if not options.get("updates"):
            raise ConfigError(
                [
                    Fault(
                        f"{table}.updates",
                        "must be given for an update",
                        "write how many domain updates one record or client may take part in "
                        "over the life of the model: its epsilon is spread over them",
                    )
                ]
            )


def _stream(config: Config) -> Stream:
    from ..data.stream import stream

    causal = config.model.name == "causal_lm"
    return stream(check.build(config, "data").read(), config.domains, causal=causal)


def _chosen(
    limits: Update, named: str, known: Sequence[str], there: Sequence[str]
) -> Sequence[str]:
    if not known and limits.begin:
        new: Sequence[str] = limits.begin
    elif named:
        new = () if named in known else (named,)
    else:
        new = [name for name in there if name not in known][:1]
    missing = [name for name in (*known, *new) if name not in there]
    if missing:
        raise DataError(
            f"the data must hold the domain {missing[0]!r}; it holds {', '.join(there)}. Its test "
            "records are what the gate looks at."
        )
    return new


def _asked(text: str, stream: Stream, new: Sequence[str]) -> str:
    """16 hex digits over config and the records of the new domains."""
    digest = hashlib.sha256(text.encode())
    for part in (stream.splits.train, stream.splits.validation, stream.splits.test):
        for row in zip(part.ids, part.texts, part.targets, part.domains, strict=True):
            if row[3] in new:
                digest.update("\0".join(row).encode())
    return digest.hexdigest()[:16]


def _runner(limits: Update) -> Callable[[str, Path], None]:
    """What has a config run in a folder: (text, folder)."""
    if limits.server:
        from .fleet_run import run_on

        return partial(run_on, read_server(Path(limits.server)))

    def simulated(text: str, folder: Path) -> None:
        from ..simulations.simulate import simulate

        simulate(text, folder)

    return simulated


def _run(text: str, folder: Path, runner: Callable[[str, Path], None], *, quiet: bool) -> None:
    from .display import Display
    from .simulating import mode_of

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with (
        logged(str(folder / "log.txt")),
        Display(folder / "events.jsonl", mode=mode_of(quiet=quiet), skip_old=True),
    ):
        try:
            runner(text, folder)
        except KeyboardInterrupt:
            raise StoppedError("stopped; the same command goes on with the update") from None
        except RunError as error:
            raise RunError(f"{error}\nDetails: {folder / 'log.txt'}") from error


def _mirror(home: Path, limits: Update) -> None:
    """Have the mirror follow; it is no reason to take a release back."""
    from ..server.mlflow_mirror import mirror

    try:
        mirror(home, limits.mlflow, limits.mlflow_model)
    except RunError as error:
        typer.echo(f"perennial: {error}. `perennial releases mirror` tries again.", err=True)


def exported(folder: Path, text: str) -> list[Check]:
    """The conditions of `[export]` on what the run in `folder` becomes; nothing is put in place.

    Raises:
        PerennialError: the model cannot be exported or measured at all.
    """
    need_extra()
    from ..export.exporting import export
    from ..export.merge import origin

    outcome = export(origin(folder, text, {"run": folder.name}), None, "", lambda said: None)
    return [replace(check, what=f"export: {check.what}") for check in outcome.checks]


def _words(plan: Plan) -> str:
    over = f"over {len(plan.known)} learnt domains" if plan.known else "as the first of all"
    return f"would learn {', '.join(plan.new)} {over}"


def _outcome(checks: Sequence[Check]) -> str:
    failed = [f"{check.what}: {check.words}" for check in checks if not check.holds]
    return "; ".join(failed) if failed else f"all {len(checks)} checks of the gate hold"


def _summary(plan: Plan, state: str, why: str, found: Begun | None = None) -> dict[str, Any]:
    from ..server import releases

    present = releases.in_service(plan.home)
    return {
        "state": state,
        "why": why,
        "domains": list(plan.new),
        "in_service": present.number if present else None,
        "accuracy": dict(present.card["accuracy"]) if present else {},
        "epsilon": present.card["epsilon"] if present else None,
        "update": str(found.folder) if found else None,
        "checks": list(found.card.get("checks", ())) if found else [],
    }


def _tell(summary: Mapping[str, Any], as_json: bool) -> int:
    from ..server.updates import REFUSED

    if as_json:
        typer.echo(json.dumps(dict(summary)))
    else:
        for item in summary["checks"]:
            mark = "holds" if item["holds"] else "FAILS"
            typer.echo(f"  {mark}  {item['what']}: {item['words']}")
        service = summary["in_service"]
        there = "no release is" if service is None else f"release {service:04d} is"
        typer.echo(f"update {summary['state']}: {summary['why']}; {there} in service")
    return GATED_OUT if summary["state"] == REFUSED else 0
