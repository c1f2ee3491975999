"""The `perennial` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..core.errors import PerennialError
from .commands_export import exports
from .commands_keys import keys
from .commands_releases import releases
from .commands_services import services
from .configs import File, Settings, settled, text_of

app = typer.Typer(
    name="perennial",
    help="Federated and continual learning: one shared adapter, improved where the data is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(services)
app.add_typer(exports)
app.add_typer(keys, name="keys")
app.add_typer(releases, name="releases")


def run() -> None:
    """Run the command line; faults become one message on stderr and an exit code."""
    try:
        app()
    except PerennialError as error:
        typer.secho(f"perennial: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that may not be written
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        typer.secho(f"perennial: {what}. What was done is kept.", err=True, fg="red")
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("perennial: interrupted", err=True)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"perennial {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated and continual learning: one shared adapter, improved where the data is."""


@app.command()
def check(file: File, settings: Settings = None) -> None:
    """Check a config, its plug-ins and its data, and train nothing."""
    from .checking import describe

    typer.echo(describe(settled(file, settings)))


@app.command()
def plan(
    file: File,
    ledger: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="A client's own folder: how many updates its ledger still holds."),
    ] = None,
    settings: Settings = None,
    json: Annotated[bool, typer.Option("--json", help="Show it as JSON.")] = False,
) -> None:
    """Say what a promise of privacy costs over a model's whole life, and train nothing."""
    from .planning import plan as show

    show(text_of(file, settings), ledger, as_json=json)


@app.command()
def simulate(
    file: Annotated[Optional[Path], typer.Argument(metavar="FILE")] = None,  # noqa: UP045
    settings: Settings = None,
    resume: Annotated[str, typer.Option(help="Go on with this run (a name or a folder).")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Show each event as a JSON line.")] = False,
) -> None:
    """Run a whole sequence of domain updates with simulated clients on this machine."""
    from .simulating import start

    if (file is None) == (not resume):
        raise typer.BadParameter("give a FILE, or --resume RUN, and not both")
    if resume and settings:
        raise typer.BadParameter("--set cannot change a run that has begun; start a new one")
    text = "" if file is None else settled(file, settings, quiet=quiet or json)
    start(text, resume, quiet=quiet, json=json)


@app.command()
def update(
    file: File,
    domain: Annotated[str, typer.Option(help="The domain to learn; the next one without.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try once more what was gated out before.")
    ] = False,
    settings: Settings = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing of the run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Show the summary as JSON.")] = False,
) -> None:
    """Learn the next domain over the release in service, and release it if it passes its gate.

    May be run by cron or a timer: where there is nothing to do it does nothing, and what was cut
    short goes on. Exit code 3: gated out, the release before stays in service.
    """
    from .updating import update as start

    text = text_of(file, settings)
    code = start(text, domain, dry_run=dry_run, again=again, quiet=quiet, as_json=json)
    if code:
        raise typer.Exit(code)


@app.command()
def audit(
    file: File,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer canaries and records.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Show the result as JSON.")] = False,
    settings: Settings = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045 - typer reads this form at run time
        typer.Option(min=0, help="Seed of all that is no secret; the config's without."),
    ] = None,
) -> None:
    """Put a config's privacy to the test: one training at a claimed epsilon of 1, and attacks."""
    from .auditing import audit as start

    changes = [*(settings or []), *([] if seed is None else [f"run.seed={seed}"])]
    if not start(settled(file, changes, quiet=json), quick=quick, json=json):
        raise typer.Exit(1)


@app.command()
def drift(
    file: File,
    new: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="New records (.csv, .jsonl, .parquet); the last domain's without."),
    ] = None,
    window: Annotated[
        Optional[int],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="Records of a window; by default what the run's `drift` says, or 100."),
    ] = None,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Cut windows as the records stand, as by time.")
    ] = False,
    page: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="Write an HTML page with a chart.", metavar="OUT.html"),
    ] = None,
    update: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="On an alarm, start this domain update.", metavar="UPDATE.toml"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Show the result as JSON.")] = False,
    settings: Settings = None,
) -> None:
    """Hold new records against those learnt from; exit code 4 where they look different."""
    from .drifting import ALARM, to_start
    from .drifting import drift as watch

    start = None if update is None else to_start(update, quiet=json)
    text = text_of(file, settings)
    if watch(text, new, window=window, in_order=in_order, json=json, page=page, update=start):
        raise typer.Exit(ALARM)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.", metavar="RUN")],
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Rebuild a run's report.json and report.html from its events, and show the result."""
    from .runs import rebuild

    rebuild(run, folder)


@app.command()
def runs(
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """List the runs with their state, accuracy and size."""
    from .runs import show

    show(folder)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Names or folders of runs.", metavar="RUN...")],
    page: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="Write the comparison as one HTML page, too."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Show it as JSON.")] = False,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Put runs side by side: what each knows after each domain, and what it forgot."""
    from .comparing import show

    show(runs, folder, page=page, as_json=json)


@app.command()
def withdraw(
    folder: Annotated[Path, typer.Argument(help="A client's own folder.", metavar="CLIENT_DIR")],
    id: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this form at run time
        typer.Option("--id", help="A record's id; may be repeated."),
    ] = None,
    ids: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option("--ids", help="A file of record ids, one a line."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All records of this client, present and to come.")
    ] = False,
) -> None:
    """Have a client forget records: from its memory now, from statistics when a domain ends.

    Says for each record whether this client held anything of it. The statistics lose it at the end
    of the next domain that this client takes part in.
    """
    from .withdrawing import withdraw as start

    if sum([bool(id), ids is not None, everything]) != 1:
        raise typer.BadParameter("give --ids FILE, or --id ID (repeatable), or --all, and only one")
    start(folder, id or [], ids, everything=everything)


@app.command()
def bundle(
    file: File,
    folder: Annotated[Path, typer.Argument(help="Where the bundle is written.", metavar="DIR")],
    settings: Settings = None,
) -> None:
    """Write the thin Flower app bundle of a config, for `flwr run DIR`."""
    from ..server.bundle import write_bundle

    path = write_bundle(folder, settled(file, settings))
    typer.echo(f"wrote {path}; run it with: flwr run {path}")
