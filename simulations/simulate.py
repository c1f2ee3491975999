"""Simulation of a whole run: the ServerApp and ClientApp of a deployment, on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from ..core import check, wire
from ..core.config import Config
from ..server.app import app
from ..server.bundle import write_bundle
from . import compat
from .grid import Nodes, SimulatedGrid
from .keyholder import KeyParty, key_party

CLIENT_APP = "perennial.client.app:app"


def simulate(text: str, folder: Path) -> None:
    """Run the config in `text` to its end, or go on from the checkpoint in `folder`.

    Args:
        text: the TOML text.
        folder: the run folder.

    Raises:
        PerennialError: config, data or model are at fault, or the run cannot go on.
    """
    config = check.read(text)
    with key_party(config, folder) as party:
        if config.simulation.backend == "ray":
            _on_ray(config, text, folder, party)
        else:
            _on_our_grid(config, text, folder, party)


def _on_our_grid(config: Config, text: str, folder: Path, party: KeyParty) -> None:
    run_config: dict[str, Any] = {wire.CONFIG_KEY: text}
    for_server = {wire.FOLDER_KEY: str(folder), wire.KEYHOLDER_KEY: _options(party)}
    nodes = Nodes(
        app=CLIENT_APP,
        count=config.shards.num_clients,
        seed=config.run.seed,
        run_config=run_config,
        folder=_disks(config, folder),
        key_file=party.key_file,
    )
    table = config.simulation
    workers = (table.workers or os.cpu_count() or 1) if table.backend == "processes" else 0
    grid = SimulatedGrid(
        nodes,
        workers=min(workers, nodes.count),
        strict_wire=table.strict_wire,
        table=table.faults,
    )
    with grid:
        app(
            grid,
            Context(
                run_id=grid.run.run_id,
                node_id=compat.SERVER_NODE,
                node_config={},
                state=RecordDict(),
                run_config={**run_config, **for_server},
            ),
        )


def _disks(config: Config, folder: Path) -> Path:
    """Where clients keep what is theirs: in the run folder, or where it outlives the run."""
    kept = config.simulation.clients
    return Path(kept).expanduser().resolve() if kept else folder / "clients"


def _options(party: KeyParty) -> str:
    return json.dumps(dict(party.options))


def _on_ray(config: Config, text: str, folder: Path, party: KeyParty) -> None:
    bundle = write_bundle(folder / "bundle", text, str(folder))
    # Ray's workers inherit this: clients keep their disk below the run, as on our own grid.
    os.environ["PERENNIAL_STATE"] = str(_disks(config, folder))
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["PERENNIAL_KEY_FILE"] = str(party.key_file.resolve()) if party.key_file else ""
    run_config: dict[str, Any] = {
        wire.CONFIG_KEY: text,
        wire.FOLDER_KEY: str(folder),
        wire.KEYHOLDER_KEY: _options(party),
    }
    compat.run_on_ray(bundle, run_config, config.shards.num_clients, num_cpus=1)
