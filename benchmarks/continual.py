"""What the continual layer keeps of ten domains of CLINC150, at ten clients, and what it costs.

Dirichlet 0.5 and 0.1; three seeds, each of which deals, draws batches and makes random features
anew; mean and spread (the largest distance of a seed from the mean). Settings were chosen on the
validation records. Beside the federated rows stand those of one client with ten sentences of each
intent, which is the setting of earlier centralised measurements, and Avalanche's own strategies on
the same model and data. Where CLINC150 is missing, nothing is measured and the benchmark says so.

A long benchmark may be interrupted: with `--results FILE` each run's figures are a line there as
soon as it is over, and what has a line is not run again. `--alphas` and `--rows` choose runs, so
that two processes can share one file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy

import torch
from continual_rows import FACTS, FEDERATED, PEERS, QUICK, Setting
from continual_runs import DATA, Memo, config, measured, sample_config, some_of_each
from table import Row, markdown, progress

TITLE = "Continual learning"
COLUMNS = (
    ("final", "final accuracy", "%", 1.0),
    ("forgetting", "forgetting", "", 1.0),
    ("backward", "backward transfer", "", 1.0),
    ("memory_bytes_per_class", "memory a class", "KB", 1e-3),
    ("bytes_up_per_client_domain", "up a client and domain", "MB", 1e-6),
    ("cpu_s_per_domain", "CPU a domain", "s", 1.0),
)
"""Figure, its heading, its unit, and what it is multiplied by."""


@dataclass(frozen=True)
class Run:
    """One run: a row, a seed and a Dirichlet alpha (0 where the records are not dealt)."""

    row: str
    seed: int
    alpha: float

    @property
    def key(self) -> tuple[str, int, float]:
        """What names it in the results file."""
        return (self.row, self.seed, self.alpha)


class Results:
    """Figures by run, kept as JSON lines; another process may add lines meanwhile."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._own: dict[tuple[str, int, float], dict[str, Any]] = {}

    def all(self) -> dict[tuple[str, int, float], dict[str, Any]]:
        """What there is, by row, seed and alpha."""
        found = dict(self._own)
        if self._path is not None and self._path.exists():
            for line in self._path.read_text().splitlines():
                entry = json.loads(line)
                found[entry["row"], entry["seed"], entry["alpha"]] = entry["figures"]
        return found

    def add(self, run: Run, figures: dict[str, Any]) -> None:
        """Keep the figures of a run."""
        figures = {**figures, "seed": run.seed}
        self._own[run.key] = figures
        if self._path is not None:
            entry = {"row": run.row, "seed": run.seed, "alpha": run.alpha, "figures": figures}
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def federated(setting: Setting, run: Run, memo: Memo) -> dict[str, Any]:
    return measured(
        config(setting.tree(run.seed, run.alpha), run.seed, run.alpha), memo, setting.private
    )


def facts(setting: Setting, run: Run, memo: Memo) -> dict[str, Any]:
    """One client with a few sentences of each intent."""
    with tempfile.TemporaryDirectory() as folder:
        train = some_of_each(setting.sentences, run.seed, Path(folder) / "train.csv")
        tree = setting.tree(run.seed) | {"shards": {"split": "iid", "num_clients": 1}}
        return measured(config(tree, run.seed, 0.5, train), memo)


def peer(setting: Setting, run: Run, memo: Memo) -> dict[str, Any]:
    from continual_peers import measured_beside  # Avalanche takes seconds to import

    return measured_beside(setting, run.seed, memo)


def checked(setting: Setting, run: Run, memo: Memo) -> dict[str, Any]:
    from continual_exact import CHECKS

    return CHECKS[setting.check](memo)


def quick(setting: Setting, run: Run, memo: Memo) -> dict[str, Any]:
    return measured(sample_config(setting.tree(run.seed)), memo)


def runs(names: Sequence[str], seeds: int, alphas: Sequence[float]) -> Iterator[tuple[Run, Any]]:
    """All runs of the rows `names` (of all rows without names), the first seed of all first."""
    for seed in range(seeds):
        for alpha in alphas:
            for name, setting in FEDERATED.items():
                if not names or name in names:
                    if setting.check and (seed or alpha != alphas[0]):
                        continue
                    yield Run(name, seed, alpha), checked if setting.check else federated
        for table, act in ((FACTS, facts), (PEERS, peer)):
            for name in table:
                if not names or name in names:
                    yield Run(name, seed, 0.0), act


def all_settings() -> dict[str, Setting]:
    return {**FEDERATED, **FACTS, **PEERS}


def measure(results: Results, chosen: Sequence[tuple[Run, Callable[..., Any]]]) -> None:
    """Run what has no figures yet; a run that fails is said and left out of the table."""
    memo, settings = Memo(), {**all_settings(), **QUICK}
    for run, act in chosen:
        if run.key in results.all():
            continue
        progress(f"{run.row}, seed {run.seed}" + (f", alpha {run.alpha:g}" if run.alpha else ""))
        results.add(run, act(settings[run.row], run, memo))


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    mean = statistics.fmean(values)
    return mean, max(abs(value - mean) for value in values)


def wide(results: Mapping[tuple[str, int, float], Mapping[str, Any]]) -> str:
    """All rows with all their figures, as a Markdown table."""
    heads = [f"{head} {unit}".strip() for _, head, unit, _ in COLUMNS]
    lines = ["| row | alpha | seeds | " + " | ".join(heads) + " |", "|---" * (3 + len(heads)) + "|"]
    for name in {**all_settings(), **QUICK}:
        for alpha in sorted({key[2] for key in results if key[0] == name}, reverse=True):
            found = [results[key] for key in sorted(results) if key[::2] == (name, alpha)]
            cells = [_cell(found, figure, scale) for figure, _, _, scale in COLUMNS]
            if any(cells):
                at = f"{alpha:g}" if alpha else ""
                lines.append(f"| {name} | {at} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Sequence[Mapping[str, Any]], figure: str, scale: float) -> str:
    values = [scale * run[figure] for run in found if run.get(figure) is not None]
    if not values:
        return ""
    mean, spread = mean_spread(values)
    return f"{mean:.2f}" + (f" ± {spread:.2f}" if len(values) > 1 else "")


def barred(results: Mapping[tuple[str, int, float], Mapping[str, Any]]) -> list[Row]:
    """The rows of the results that have a bar, each figure a mean over its seeds."""
    rows = []
    for name, setting in all_settings().items():
        for alpha in sorted({key[2] for key in results if key[0] == name}, reverse=True):
            found = [results[key] for key in sorted(results) if key[::2] == (name, alpha)]
            for bar in setting.bars:
                values = [
                    value for run in found if (value := bar.of(run, results, alpha)) is not None
                ]
                if values:
                    at = f", alpha {alpha:g}" if alpha else ""
                    title = f"{name}{at}: {bar.words}"
                    mean = statistics.fmean(values)
                    mean = abs(mean) if bar.absolute else mean
                    rows.append(Row(title, mean, bar.unit, bar.bar, bar.at_least))
    return rows


def main() -> None:
    """Measure what is asked and missing, print; exit 1 when a bar does not hold."""
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="under a minute; rough, no bars")
    parser.add_argument("--json", action="store_true", help="a list of rows instead of Markdown")
    parser.add_argument("--rows", nargs="+", default=[], choices=[*all_settings()], metavar="ROW")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--results", type=Path, help="keep figures here, and go on from there")
    parser.add_argument("--table", action="store_true", help="only print what the results hold")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = Results(options.results)
    if options.quick:
        measure(results, [(Run(name, 0, 0.0), quick) for name in QUICK])
    elif not (DATA / "train.csv").exists():
        progress(f"SKIPPED: CLINC150 is not at {DATA}; nothing is measured")
        sys.exit(0)
    elif not options.table:
        measure(results, list(runs(options.rows, options.seeds, options.alphas)))
    found = results.all()
    rows = barred(found)
    if options.json:
        print(json.dumps([row.pack() for row in (rows or plain(found))], indent=1))
    else:
        print(markdown(TITLE, rows) if rows else f"### {TITLE}", "", wide(found), sep="\n")
    sys.exit(any(row.holds is False for row in rows))


def plain(results: Mapping[tuple[str, int, float], Mapping[str, Any]]) -> list[Row]:
    """Final accuracies without bars."""
    return [Row(key[0], figures["final"], "%") for key, figures in results.items()]


if __name__ == "__main__":
    main()
