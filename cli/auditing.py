"""`perennial audit`: does training keep its promise, and what does an attacker get without?"""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import check
from ..core.config import Config
from ..core.files import write_atomically
from .folders import fresh


def audit(text: str, *, quick: bool, json: bool) -> bool:
    """Audit the config in `text`, write the result and show it; whether the claim stands.

    Args:
        text: the TOML text.
        quick: fewer canaries and records.
        json: print the result as JSON instead of a table.

    Raises:
        PerennialError: config, data or model are at fault, or a guard refused a step.
    """
    config = check.read(text)
    folder = fresh(config, "audit-")
    try:
        result = run(config, quick=quick)
    except BaseException:
        folder.rmdir()  # nothing was found: leave no empty folder behind
        raise
    write_result(folder, text, result)
    if json:
        sys.stdout.write(json_text.dumps(result) + "\n")
    else:
        _show(result, folder)
    return bool(result["pass"])


def run(config: Config, *, quick: bool) -> dict[str, Any]:
    """The result of an audit and its drill, as it stands in `audit.json`; says where it is."""
    from ..simulations.audit import FULL, QUICK, run_audit
    from ..simulations.drill import drill
    from ..simulations.trial import open_trial

    started = time.perf_counter()
    _say("audit: reading model and data")
    trial = open_trial(config)
    found = run_audit(trial, QUICK if quick else FULL, _say)
    attacked = drill(trial, _say, quick=quick)
    return {
        "run": config.run.name,
        "when": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "seconds": round(time.perf_counter() - started, 1),
        "quick": quick,
        **found.plain(),
        "drill": attacked,
    }


def write_result(folder: Path, text: str, result: Mapping[str, Any]) -> None:
    """Write `audit.json`, `audit.html`, the picture and the config to `folder`."""
    from ..server.drill_charts import standalone
    from ..simulations.audit_page import page

    write_atomically(folder / "audited.toml", text)
    write_atomically(folder / "audit.json", json_text.dumps(result, indent=1) + "\n")
    write_atomically(folder / "audit.html", page(result))
    picture = standalone(result["drill"], 760.0)
    if picture:
        write_atomically(folder / "drill.svg", picture)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _show(result: Mapping[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..server.drill_charts import panels
    from ..simulations.audit_page import KINDS, verdict

    console = Console()
    promised = result["claimed"] is not None
    claim = f"a claimed epsilon of {result['claimed']:g}" if promised else "nothing claimed"
    table = Table(title=f"one training, {claim}", title_justify="left")
    for head in ("canaries", "number", "guesses", "right", "epsilon at least", ""):
        table.add_column(head, justify="left" if head in ("canaries", "") else "right")
    for kind in result["kinds"]:
        state = ("pass" if kind["pass"] else "FAIL") if promised else "no claim"
        table.add_row(
            KINDS.get(kind["kind"], kind["kind"]),
            *(str(kind[key]) for key in ("canaries", "guesses", "right")),
            f"{kind['lower_bound']:.2f}",
            state,
        )
    console.print(table)
    console.print(verdict(result), highlight=False)
    console.print(f"confidence {result['confidence']:.0%}, delta {result['delta']:g}\n")
    for panel in panels(result["drill"]):
        console.print(panel.heading, style="bold")
        for name, _, _, words in panel.rows:
            console.print(f"  {words:>8}  {name}", highlight=False)
    console.print(f"\nreport: {folder / 'audit.html'}", highlight=False, soft_wrap=True)
