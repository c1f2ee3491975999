"""What a service shows to Prometheus: its parts, and what the runs or the worker came to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..core.processes import UP, Watch
from ..server.tally import Tally

Source = Callable[[], Iterable[Metric]]
"""() -> the figures of now."""

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def text_of(*sources: Source) -> bytes:
    """All figures in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sources(sources))
    return generate_latest(registry)


class _Sources(Collector):
    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)

    def collect(self) -> Iterable[Metric]:
        for source in self._sources:
            yield from source()

    def describe(self) -> Iterable[Metric]:
        return ()


def parts(watch: Watch) -> Source:
    """Of the programs of a service: whether they are up, how often they started, their memory."""

    def source() -> Iterable[Metric]:
        states, starts, memory = watch.states(), watch.starts(), watch.processes()
        up = {name: float(state == UP) for name, state in states.items()}
        yield _gauge("perennial_up", "Whether a part serves.", "part", up)
        yield _counter("perennial_starts", "How often a part was started.", "part", starts)
        sizes = {name: size for name, pid in memory.items() if (size := _resident(pid))}
        yield _gauge("perennial_resident_bytes", "Memory of a part.", "part", sizes)

    return source


def runs(tally: Tally) -> Source:
    """Of all runs of a server."""

    def source() -> Iterable[Metric]:
        tally.follow()
        counts = {
            "rounds": ("Rounds that were finished.", tally.rounds),
            "round_failures": ("Attempts at a round that gave nothing.", tally.failures),
            "round_seconds": ("Seconds of finished rounds.", tally.seconds),
            "replies": ("Answers of clients that counted.", tally.replies),
            "up_bytes": ("Bytes from clients.", tally.bytes_up),
            "down_bytes": ("Bytes to clients.", tally.bytes_down),
        }
        for name, (words, value) in counts.items():
            yield CounterMetricFamily(f"perennial_{name}", words, value=value)
        words = "Answers of clients that were left out."
        yield _counter("perennial_rejected", words, "cause", tally.rejected)
        words = "Largest epsilon that a client said it has spent."
        yield _gauge("perennial_epsilon", words, "unit", tally.epsilon)
        left = {u: most - tally.epsilon.get(u, 0.0) for u, most in tally.promised.items()}
        words = "What is left of the epsilon that the newest run promises."
        yield _gauge("perennial_epsilon_left", words, "unit", left)
        yield _gauge("perennial_accuracy", "Newest accuracy, 0..1.", "domain", tally.accuracy)
        for name, figure in tally.state.items():
            yield GaugeMetricFamily(f"perennial_run_{name}", f"Of the newest run: {name}.", figure)

    return source


def work(path: Path) -> Source:
    """Of a client's worker, from the file that it keeps."""

    def source() -> Iterable[Metric]:
        told = _table(path)
        done = CounterMetricFamily(
            "perennial_tasks", "Tasks that were answered.", labels=("kind", "outcome")
        )
        for kind, outcomes in dict(told.get("tasks", {})).items():
            for outcome, count in outcomes.items():
                done.add_metric((kind, outcome), count)
        yield done
        seconds = told.get("seconds", {})
        yield _counter("perennial_task_seconds", "Seconds of tasks.", "kind", seconds)
        words = "How often model and data were loaded."
        yield CounterMetricFamily("perennial_loads", words, value=told.get("loads", 0))
        if "gradient_norm" in told:
            words = "Norm of the gradient of the last step of the last round."
            norm = told["gradient_norm"]
            yield GaugeMetricFamily("perennial_gradient_norm", words, value=norm)
        words = "Most memory of a GPU that was in use."
        yield GaugeMetricFamily("perennial_gpu_bytes", words, value=told.get("gpu_bytes", 0))

    return source


def _gauge(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _counter(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _table(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _resident(pid: int) -> float:
    """Bytes of memory of a process (Linux); 0 where that cannot be told."""
    try:
        return float(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0.0
