"""Several runs side by side, over the domains that all of them have learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..core import metrics
from ..core.errors import DataError
from ..core.metrics import Matrix
from .events import number, plain
from .report_log import table
from .units import count

Report: TypeAlias = Mapping[str, Any]

# Of two runs these differ always, and say nothing.
_OWN_NAMES = ("run.name", "run.folder")


def compare(runs: Sequence[tuple[str, Report]]) -> dict[str, Any]:
    """What several runs came to, as values that strict JSON can hold.

    Only domains that all runs have learnt count, a domain being its name and labels. Each run is
    judged by its own accuracy matrix, without the rows and columns of its other domains: so right
    after the last domain in common. Rates are 0..1, differences -1..1; what was not measured is
    null. Bytes and seconds are those of a whole run. `differences` are the settings in which the
    runs differ; `notes` say in plain sentences what does not compare.

    Law: runs of the same domains, learnt to their end, have the figures of their own reports.

    Args:
        runs: what each is called, and its report as `report.summarise` gives it.

    Raises:
        DataError: fewer than two runs, or no domain in common.
    """
    if len(runs) < 2:
        raise DataError(f"a comparison needs at least two runs; got {len(runs)}")
    labels = _unique([label for label, _ in runs])
    reports = [report for _, report in runs]
    learnt = [_learnt(report) for report in reports]
    common = [domain for domain in learnt[0] if all(domain in other for other in learnt)]
    if not common:
        had = "; ".join(
            f"{label}: {', '.join(name for name, _ in found) or 'none'}"
            for label, found in zip(labels, learnt, strict=True)
        )
        raise DataError(
            f"runs to compare must have learnt one domain in common, by name and labels; got {had}."
            " Compare runs on the same data and with the same [domains]."
        )
    entries = [
        _run(label, report, found, common)
        for label, report, found in zip(labels, reports, learnt, strict=True)
    ]
    clean: dict[str, Any] = plain(
        {
            "domains": [name for name, _ in common],
            "runs": entries,
            "differences": _differences(reports),
            "notes": list(_notes(labels, reports, learnt, common)),
        }
    )
    return clean


def _learnt(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """The domains that a run has learnt, in its order: name and labels."""
    domains = report["domains"][: report["learnt"]]
    return [(str(d["name"]), tuple(map(str, d["labels"]))) for d in domains]


def _unique(labels: Sequence[str]) -> list[str]:
    """The labels, a number behind those that were there before."""
    found: list[str] = []
    for label in labels:
        others = (f"{label} ({i})" for i in range(2, len(labels) + 2))
        found.append(next(name for name in (label, *others) if name not in found))
    return found


def _run(
    label: str, report: Report, learnt: Sequence[Any], common: Sequence[Any]
) -> dict[str, Any]:
    at = [i for i, domain in enumerate(learnt) if domain in common]
    whole = len(at) == len(learnt)
    A = _matrix(report)[np.ix_(at, at)]
    order = [[learnt[i] for i in at].index(domain) for domain in common]
    average, lost = metrics.average_accuracy(A), metrics.forgetting(A)
    best = np.array([_best(A[j:, j]) for j in range(len(at))])
    # Reports of older versions lack some of these.
    answered, own, over = (report.get(k) for k in ("answered_by", "own_head", "over_clients"))
    totals = report["totals"]
    return {
        "run": label,
        "finished": report["finished"],
        "methods": list(_methods(report)),
        "answered_by": answered[at[-1]] if answered else None,
        "average_accuracy": average,
        "forgetting": lost,
        "final_accuracy": average[-1],
        "final_forgetting": lost[-1] if len(at) > 1 else None,
        "backward_transfer": metrics.backward_transfer(A),
        "learning_accuracy": metrics.learning_accuracy(A),
        # These take more than the matrix: known for all of a run's domains only.
        "weighted_accuracy": report.get("weighted_accuracy") if whole else None,
        "forward_transfer": report.get("forward_transfer") if whole else None,
        "own_head_accuracy": own["final_accuracy"] if own and whole else None,
        "worst_client_accuracy": over["average_accuracy"]["worst"] if over and whole else None,
        "domain_accuracy": A[-1][order],
        "domain_best": best[order],
        "bytes_up": totals["bytes_up"],
        "bytes_down": totals["bytes_down"],
        "seconds": totals["seconds"],
    }


def _matrix(report: Report) -> Matrix:
    size = len(report["domains"])
    found = np.full((size, size), np.nan)
    for i, row in enumerate(report["accuracy_matrix"]):
        for j, value in enumerate(row):
            known = number(value)
            found[i, j] = np.nan if known is None else known
    return found


def _best(column: Matrix) -> float:
    known = column[~np.isnan(column)]
    return float(known.max()) if known.size else float("nan")


def _methods(report: Report) -> Iterator[str]:
    block = report.get("continual")
    if block:
        yield from block["methods"]
        return
    name = table(table(report["config"]).get("continual")).get("name")
    if name and name != "none":
        yield str(name)


def _differences(reports: Sequence[Report]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, None where it has none, where they are not all alike."""
    trees = [dict(_flat(table(report["config"]))) for report in reports]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    found = {key: [tree.get(key) for tree in trees] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if key not in _OWN_NAMES and any(_text(v) != _text(values[0]) for v in values)
    }


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        elif _is_named(value):  # a list of plug-ins
            for part in value:
                yield from _flat(part, f"{above}{key}.{part['name']}.")
        else:
            yield f"{above}{key}", value


def _is_named(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(part, Mapping) and "name" in part for part in value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _notes(
    labels: Sequence[str],
    reports: Sequence[Report],
    learnt: Sequence[Sequence[Any]],
    common: Sequence[Any],
) -> Iterator[str]:
    for label, report, found in zip(labels, reports, learnt, strict=True):
        total, own = len(report["domains"]), len(found) - len(common)
        if len(found) < total:
            yield f"{label} has learnt {len(found)} of its {count(total, 'domain')} so far."
        if own:
            yield (
                f"{label} has learnt {count(own, 'domain')} that not all runs have learnt: left "
                "out here, but for its bytes and time."
            )
    for label, found in list(zip(labels, learnt, strict=True))[1:]:
        if [domain for domain in found if domain in common] != list(common):
            yield (
                f"{label} learnt the domains in another order than {labels[0]}: the averages after "
                "each domain are those after as many domains."
            )
