"""Perennial: federated and continual learning of one shared adapter.

Nothing heavy is loaded here: torch, Flower and the rest come with the part that needs them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .core.check import read as read_config
from .core.config import Config
from .core.errors import ConfigError, DataError, ModelError, PerennialError, RunError

try:
    __version__ = version("perennial-fl")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "ModelError",
    "PerennialError",
    "RunError",
    "__version__",
    "read_config",
]
