"""The thin Flower app bundle: names the installed apps and carries the config, no code."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import tomli_w

from ..core import check, wire
from ..core.errors import DataError
from ..core.files import write_atomically

_SERVER = "perennial.server.app:app"


def write_bundle(folder: Path, text: str, run_folder: str = "") -> Path:
    """Write a bundle for `flwr run FOLDER` to `folder`.

    Args:
        folder: made if missing.
        text: the run's TOML text, which reaches server and clients as one run-config key.
        run_folder: where the server keeps the run; empty for one under `run.folder`.

    Raises:
        ConfigError: the text has faults; nothing is written.
        DataError: the folder holds something that is no bundle of ours; nothing is written.
    """
    return _written(folder, check.read(text).run.name, text, run_folder)


def write_service_bundle(folder: Path) -> Path:
    """Write the bundle of a service to `folder`: the same for all runs of this version.

    Its config is empty; each run brings its own. So clients can know it by its hash.

    Raises:
        DataError: as `write_bundle`.
    """
    return _written(folder, "service", "", "")


def _written(folder: Path, name: str, text: str, run_folder: str) -> Path:
    _need_ours(folder)
    project = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": f"perennial-{name}".lower().replace("_", "-").replace(".", "-"),
            "version": "1.0.0",
            "description": "A Perennial run",
            "license": {"text": "Apache-2.0"},
            # None: whatever an index holds under our name is not what runs here.
            "dependencies": [],
        },
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"bypass-selection": True}}}},
            "flwr": {
                "app": {
                    "publisher": "perennial",
                    "components": {
                        "serverapp": _SERVER,
                        "clientapp": "perennial.client.app:app",
                    },
                    "config": {
                        wire.CONFIG_KEY: text,
                        wire.FOLDER_KEY: run_folder,
                        wire.KEYHOLDER_KEY: "",
                    },
                }
            },
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "pyproject.toml", tomli_w.dumps(project))
    write_atomically(folder / "LICENSE", _licence())
    return folder


def _need_ours(folder: Path) -> None:
    project = folder / "pyproject.toml"
    ours = project.is_file() and _SERVER in project.read_text(encoding="utf-8", errors="replace")
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} must be new, empty or a bundle written before; it holds other files. "
            "Give another folder."
        )


def _licence() -> str:
    for path in importlib.metadata.files("perennial-fl") or ():
        if path.name == "LICENSE":
            return path.read_text()
    return "Apache-2.0\n"
