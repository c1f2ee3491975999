"""What privacy costs in accuracy: 30 intents of CLINC150 at five clients, with and without DP-SGD.

`examples/clinc150_private.toml` at epsilon 8, 3 and 1, beside training of the same model without
privacy at the settings that did best on the validation records. Three seeds each; the figures are
means over them. `--quick` takes one seed of the embedded sample, which is far too small for
privacy: its figures have no bar. Runs that lie finished in the folder PRIVATE_UTILITY_FOLDER are
not run again.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from sealed_training import finished
from table import Row, progress, run

from perennial.cli.overrides import override
from perennial.cli.settling import settle
from perennial.simulations.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = (ROOT / "examples" / "clinc150_private.toml").read_text()
# Points below training without privacy.
BARS = {8.0: 1.5, 3.0: 3.0, 1.0: None}
# Best of AdamW 2e-3, 5e-3, 1e-2 and 2e-2 on the validation records.
IN_THE_CLEAR = {
    "privacy": '{name = "none"}',
    "model.targets": '["all"]',
    "model.rank": 8,
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.optimizer": "adamw",
    "train.lr": 1e-2,
    "train.warmup_rate": 0.1,
    "strategy.name": "fedavg",
    "round.rounds": 8,
}
SEEDS = (7, 8, 9)
QUICK = {"data": '{name = "sample"}', "domains": "{joint = true}", "round.rounds": 2}


def accuracy(folder: Path, name: str, quick: bool, settings: dict) -> float:
    """Final accuracy in percent of the run `name`, run now if it is not there."""
    found = finished(folder, name)
    if found is None:
        progress(name)
        changes = {**(QUICK if quick else {}), "evaluate.every": 0, **settings}
        text = override(EXAMPLE, [f"{key}={value}" for key, value in changes.items()])
        simulate(settle(text)[0], folder / f"{name}-run")
        found = finished(folder, name)
    assert found is not None
    for unit in (found["privacy"] or {}).get("units", []):
        assert unit["epsilon"] <= unit["target"]
    return 100 * found["final_accuracy"]


def measure(quick: bool) -> list[Row]:
    os.chdir(ROOT)  # the example names its data from here
    kept = os.environ.get("PRIVATE_UTILITY_FOLDER")
    seeds = SEEDS[:1] if quick else SEEDS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept or temporary)
        folder.mkdir(exist_ok=True)
        rows, clear = [], []
        for seed in seeds:
            settings = {**IN_THE_CLEAR, "run.seed": seed}
            clear.append(accuracy(folder, f"clear-{seed}", quick, settings))
        wanted = statistics.mean(clear)
        rows.append(Row("in the clear: final accuracy", wanted, "%"))
        for epsilon, bar in BARS.items():
            found = [
                accuracy(
                    folder,
                    f"epsilon{epsilon:g}-{seed}",
                    quick,
                    {"privacy.epsilon": epsilon, "run.seed": seed},
                )
                for seed in seeds
            ]
            spread = f"{min(found):.1f} to {max(found):.1f}"
            mean = statistics.mean(found)
            rows += [
                Row(f"epsilon {epsilon:g}: final accuracy ({spread})", mean, "%"),
                Row(f"epsilon {epsilon:g}: lost", wanted - mean, "points", None if quick else bar),
            ]
    return rows


if __name__ == "__main__":
    run("What privacy costs in accuracy", measure)
