"""Training under BFV sums of 8, 12 and 16 bits beside training in the clear, with the same seed.

CLINC150, all domains at once, as in `examples/clinc150_joint.toml` but with a fifth of its learning
rate and two epochs a round, which ends in the same place each time. The last row is the floor:
another number of threads, which changes last bits alone. `--quick` takes two domains of the
embedded sample. Runs that lie finished in the folder SEALED_TRAINING_FOLDER are not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from table import Row, progress, run

ROOT = Path(__file__).resolve().parents[1]
# Points that the final accuracy may differ from training in the clear.
BARS = {8: 0.3, 12: 0.1, 16: 0.05}
SEALED = {"secure_sum.name": "bfv", "secure_sum.clip": 0.5, "secure_sum.capacity": 16}
STEADY = {
    "train.lr": 2e-3,
    "train.epochs": 2,
    "train.batch_size": 32,
    "model.layers": 1,
    "round.rounds": 8,
    "strategy.momentum": 0.0,
    "evaluate.every": 0,
}
QUICK = {
    "domains.order": '["bank", "clinic"]',
    "round.rounds": 3,
    "evaluate.every": 0,
    "simulation.backend": "inline",
}


def finished(folder: Path, name: str) -> dict | None:
    """The report of a finished run of that name, if there is one."""
    for path in sorted(folder.glob(f"{name}-*/report.json")):
        report = json.loads(path.read_text())
        if report["finished"]:
            return report
    return None


def report_of(folder: Path, name: str, quick: bool, options: dict) -> dict:
    """The report of the run `name` with `options`, run now if it is not there."""
    found = finished(folder, name)
    if found is None:
        progress(name)
        config = "demo.toml" if quick else "clinc150_joint.toml"
        settings = {
            "run.folder": folder,
            "run.name": name,
            **(QUICK if quick else STEADY),
            **options,
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "perennial", "simulate", f"examples/{config}", "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *words], cwd=ROOT, env=environment, check=True)
        found = finished(folder, name)
    assert found is not None
    return found


def measure(quick: bool) -> list[Row]:
    kept = os.environ.get("SEALED_TRAINING_FOLDER")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept or temporary)
        plain = report_of(folder, "plain", quick, {})
        wanted = 100 * plain["average_accuracy"][-1]
        rows = [Row("in the clear: final accuracy", wanted, "%")]
        for bits, bar in BARS.items():
            options = {**SEALED, "secure_sum.bits": bits, "round.max_weight": 4000.0}
            found = report_of(folder, f"bfv{bits}", quick, options)
            accuracy = 100 * found["average_accuracy"][-1]
            totals = found["sums"]["totals"]
            rows += [
                Row(f"bfv {bits} bit: final accuracy", accuracy, "%"),
                # Two domains of a few hundred records say nothing of a tenth of a point.
                Row(
                    f"bfv {bits} bit: difference",
                    abs(accuracy - wanted),
                    "points",
                    None if quick else bar,
                ),
                Row(f"bfv {bits} bit: values cut", 100 * totals["saturated_rate"], "%"),
                Row(f"bfv {bits} bit: upload", totals["bytes_per_value"], "B/value"),
            ]
        floor = report_of(folder, "floor", quick, {"train.threads": 2})
        difference = abs(100 * floor["average_accuracy"][-1] - wanted)
        rows.append(Row("in the clear, on two threads: difference", difference, "points"))
    return rows


if __name__ == "__main__":
    run("Training under encrypted sums", measure)
