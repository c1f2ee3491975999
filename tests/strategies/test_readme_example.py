"""The README's example strategy is code that runs and keeps its word."""

import importlib
import re
import types
from pathlib import Path

import numpy as np

from perennial.core.parts import Strategy
from perennial.core.values import ServerState

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_s_strategy_works():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    module = types.ModuleType("perennial.strategies.bounded")
    module.__package__ = "perennial.strategies"

    importlib.import_module("perennial.strategies")
    exec(compile(code, str(README), "exec"), module.__dict__)
    strategy = module.build(max_norm=0.5)
    assert isinstance(strategy, Strategy)
    state = ServerState(0, 0, np.zeros(2, np.float32))
    long, short = np.array([3, 4], np.float32), np.array([0.3, 0], np.float32)
    assert np.allclose(strategy.apply(state, long).params, [0.3, 0.4])
    assert np.allclose(strategy.apply(state, short).params, [0.3, 0])
