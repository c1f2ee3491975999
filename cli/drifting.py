"""`perennial drift`: do new records look like those that were learnt, and if not, learn them."""

from __future__ import annotations

import json as json_text
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import check
from ..core.config import Config
from ..core.errors import DataError
from ..core.files import write_atomically
from .configs import settled, text_of
from .settling import settle

if TYPE_CHECKING:
    from ..continual.windows import Settings

ALARM = 4
"""Exit code where there is drift."""


def drift(
    text: str,
    new: Path | None,
    *,
    window: int | None,
    in_order: bool = False,
    json: bool,
    page: Path | None,
    update: str | None,
) -> bool:
    """Hold new records against old ones and show what came of it; whether there is drift.

    Args:
        text: the TOML text of a run.
        new: a file of new records; without one, the last domain is new.
        window: records of a window; None for what the run's own method `drift` says, or 100.
        in_order: windows follow the order of the data instead of being drawn.
        json: print the result as JSON instead of a table.
        page: where an HTML page is written.
        update: the TOML text of the run to start where there is drift; where it has `[update]`, the
            next domain is learnt over the release in service.

    Raises:
        PerennialError: config, data or model are at fault, or the update cannot go on.
    """
    from ..continual.windows import LEAST

    if window is not None and window < LEAST:
        raise DataError(f"--window must be {LEAST} or more; got {window}")
    config = check.read(text)
    if page is not None and not page.absolute().parent.is_dir():
        raise DataError(f"--page {page} must lie in a folder that is there; make it first")
    from ..simulations.drift import run_drift

    result = run_drift(config, new, _settings(config, window), _say, in_order=in_order)
    if page is not None:
        _write_page(page, result)
    if json:
        sys.stdout.write(json_text.dumps(result) + "\n")
        sys.stdout.flush()
    else:
        _show(result, page)
    if result["drift"] and update is not None:
        _start(update, json=json)
    return bool(result["drift"])


def _settings(config: Config, window: int | None) -> Settings:
    """How the run's own method judges windows, so that a watch finds what its clients would."""
    from ..continual.windows import Settings

    plugin = config.continual
    named = [{"name": plugin.name, **plugin.options}, *plugin.options.get("methods", ())]
    own: Mapping[str, Any] = next((method for method in named if method.get("name") == "drift"), {})
    given = {field.name: own[field.name] for field in fields(Settings) if field.name in own}
    return Settings(**given if window is None else {**given, "window": window})


def to_start(file: Path, *, quiet: bool) -> str:
    """The TOML text of the run that an alarm starts: what would fail after the watch fails now.

    Raises:
        PerennialError: the config is at fault.
    """
    text = text_of(file, None)
    if _is_update(text):  # settled anew by the update itself, for the domains that it learns
        check.read(settle(text, domains=1)[0])
        return text
    text = settled(file, None, quiet=quiet)
    check.read(text)
    return text


def _is_update(text: str) -> bool:
    return "update" in tomllib.loads(text)


def _start(text: str, *, json: bool) -> None:
    from .simulating import start
    from .updating import update

    if _is_update(text):
        _say("drift: starting the update of the model in service")
        update(text, "", dry_run=False, again=False, quiet=json, as_json=json)
    else:
        _say(f"drift: starting the update {check.read(text).run.name!r}")
        start(text, "", quiet=False, json=json)


def _write_page(path: Path, result: Mapping[str, Any]) -> None:
    from ..simulations.drift_page import page

    try:
        write_atomically(path, page(result))
    except OSError as error:
        raise DataError(f"--page {path} must be a file that can be written: {error}") from error


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _show(result: Mapping[str, Any], page: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..server.units import percent
    from ..simulations.drift_page import verdict

    console = Console()
    over, scope = result["thresholds"], result["scope"]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for head in ("window", "records", "nearest", "KL", "MMD", "out of scope"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("")
    limits = (f"{over['nearest']:.3f}", f"{over['kl']:.2f}", f"{over['mmd']:.4f}", "")
    table.add_row("threshold", "", *limits, "", style="dim")
    for number, window in enumerate(result["windows"], start=1):
        table.add_row(
            str(number),
            f"{window['records']:,}",
            f"{window['nearest']:.3f}",
            f"{window['kl']:.2f}",
            f"{window['mmd']:.4f}",
            percent(window["out_of_scope"]) if scope else "",
            Text("alarm", "bold red") if window["alarm"] else Text(""),
        )
    console.print(table)
    console.print(verdict(result), style="bold", highlight=False, markup=False, soft_wrap=True)
    if scope:
        share = percent(scope["outside"] / result["new"]["records"])
        console.print(f"out of scope: {scope['outside']:,} records, {share}", highlight=False)
        for entry in scope["strangest"][:3]:
            line = f"  {entry['score']:.3f}  {entry['text']}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if page is not None:
        console.print(f"page: {page}", highlight=False, markup=False, soft_wrap=True)
