"""What a run learnt and kept, domain by domain and client by client: figures of report.json.

A continual method may answer in the place of the model's own head once a domain has ended. Where it
does, its answers are the run's: they are in `accuracy_matrix`; the model's own stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from ..core import metrics
from ..core.metrics import Matrix, OverClients
from .events import Event, number
from .report_events import HEAD, MODEL, answered_by
from .report_log import Log, table

Rows: TypeAlias = Mapping[int, Event]
"""Index of a domain -> the evaluation at its end."""


def accuracies(
    log: Log, start: Mapping[str, Any], domains: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The accuracy matrix and what follows from it.

    Rates are 0..1; differences -1..1. A row of a matrix [T, T] is filled once its domain is learnt
    to its end; figures for each domain, [T], are None beyond. `answered_by` [T] says whether each
    row was answered by a method's head or the model's own; `own_head` holds what the model's own
    head does where a method answers in its place, else None. `ahead` [T] is each domain's accuracy
    right before it was learnt and `baseline` [T] that before anything was; None where the labels
    were not known yet, as is the forward transfer then. `over_clients` is None where clients do
    not tell their scores one by one.

    Args:
        log: settled events by name.
        start: the event run_started; empty when unknown.
        domains: the report's `domains`.
    """
    names = [str(domain["name"]) for domain in domains]
    ends = {by: _ends(log, start, domains, by) for by in (MODEL, HEAD)}
    rows = {**ends[MODEL], **ends[HEAD]}
    found = _figures(rows, names)
    learnt = found["learnt"]
    last = rows[learnt - 1] if learnt else {}
    seen = found["accuracy_matrix"][:learnt, :learnt]
    baseline, ahead = _baseline(log, names), _ahead(rows, ends[MODEL], names)
    full = np.full((len(names), len(names)), np.nan)
    for j in range(1, len(names)):
        full[j - 1, j] = ahead[j]
    return {
        **found,
        "forward_transfer": metrics.forward_transfer(full, baseline),
        "weighted_accuracy": metrics.weighted_accuracy(seen, _sizes(last, names[:learnt])),
        "baseline": baseline,
        "ahead": ahead,
        "answered_by": [answered_by(rows[i]) if i in rows else None for i in range(len(names))],
        "own_head": _figures(ends[MODEL], names) if ends[HEAD] and ends[MODEL] else None,
        "evaluated_where": last.get("where") if learnt else None,
        "over_clients": _over_clients(rows, names[:learnt]),
    }


def rounds_of(start: Mapping[str, Any]) -> float | None:
    """Rounds of a domain, those that the continual layer adds included; None where unknown."""
    told = number(start.get("rounds"))
    asked = number(table(table(start.get("config")).get("round")).get("rounds"))
    return asked if told is None else told


def _figures(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    matrix = np.full((len(names), len(names)), np.nan)
    for i, event in rows.items():
        matrix[i, : i + 1] = scores_of(event.get("accuracy"), names[: i + 1])
    # Only the learnt part: a domain that has not come yet is not a domain that scores nothing.
    learnt = max(rows, default=-1) + 1
    seen = matrix[:learnt, :learnt]
    pad = [None] * (len(names) - learnt)
    average = metrics.average_accuracy(seen)
    return {
        "learnt": learnt,
        "accuracy_matrix": matrix,
        "average_accuracy": [*average, *pad],
        "forgetting": [*metrics.forgetting(seen), *pad],
        "backward_transfer": metrics.backward_transfer(seen),
        "learning_accuracy": metrics.learning_accuracy(seen),
        "final_accuracy": average[-1] if learnt else None,
    }


def _ends(
    log: Log, start: Mapping[str, Any], domains: Sequence[Mapping[str, Any]], by: str
) -> dict[int, Event]:
    """Domain -> its last evaluation by the model's or a method's head, once it is learnt."""
    rounds = rounds_of(start)
    begun = max((event["domain"] for event in log["round_started"]), default=-1)
    last: dict[int, Event] = {}
    for event in log["evaluated"]:
        domain = event["domain"]
        if answered_by(event) != by or not 0 <= domain < len(domains):
            continue
        whole = by == HEAD or (rounds is not None and event["round"] >= rounds)
        over = domain < begun or domains[domain]["finished"]
        newer = domain not in last or event["round"] >= last[domain]["round"]
        if (whole or over) and newer:
            last[domain] = event
    return last


def scores_of(found: Any, names: Sequence[str]) -> Matrix:
    """The numbers of `names` in a table, float64 [len(names)]; nan where there is none."""
    values = (number(table(found).get(name)) for name in names)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _sizes(event: Mapping[str, Any], names: Sequence[str]) -> Matrix:
    return scores_of(event.get("totals"), names)


def _baseline(log: Log, names: Sequence[str]) -> Matrix:
    told = log["baseline"][-1] if log["baseline"] else {}
    return scores_of(told.get("accuracy"), names)


def _ahead(rows: Rows, own: Rows, names: Sequence[str]) -> Matrix:
    """Accuracy on each domain right before it was learnt [T], by whoever answered then."""
    found = np.full(len(names), np.nan)
    for j in range(1, len(names)):
        for event in (rows.get(j - 1, {}), own.get(j - 1, {})):
            if np.isnan(found[j]):
                found[j] = scores_of(event.get("ahead"), names)[j]
    return found


def _over_clients(rows: Rows, names: Sequence[str]) -> dict[str, Any] | None:
    """Each client's own figures, those who tell, and what they come to over all of them."""
    told = {i: _answers(event, names[: i + 1]) for i, event in rows.items()}
    nodes = sorted({node for answers in told.values() for node in answers})
    if not nodes or not names:
        return None
    size = len(names)
    right, asked = np.zeros((len(nodes), size, size)), np.zeros((len(nodes), size, size))
    for i, answers in told.items():
        for node, (hits, totals) in answers.items():
            at = nodes.index(node)
            right[at, i, : i + 1], asked[at, i, : i + 1] = hits, totals
    matrices = np.divide(right, asked, out=np.full(right.shape, np.nan), where=asked > 0.0)
    weights = asked[:, -1].sum(1)
    average = metrics.clients_accuracy(matrices, weights)
    lost = metrics.clients_forgetting(matrices, weights)
    return {
        "average_accuracy": _over(average, nodes),
        "forgetting": _over(lost, nodes) if size > 1 else None,
        "clients": [
            {
                "node": node,
                "answers": int(weights[at]),
                "average_accuracy": average.values[at],
                "weighted_accuracy": metrics.weighted_accuracy(matrices[at], asked[at, -1]),
                "forgetting": lost.values[at],
                "domains": matrices[at, -1],
            }
            for at, node in enumerate(nodes)
        ],
    }


def _over(figure: OverClients, nodes: Sequence[int]) -> dict[str, Any]:
    found = asdict(figure)
    who = found.pop("who")
    found.pop("values")
    return {**found, "worst_node": nodes[who] if who >= 0 else None}


def _answers(event: Event, names: Sequence[str]) -> dict[int, tuple[Matrix, Matrix]]:
    """Node -> its right answers and its answers, each per domain [len(names)]."""
    found = {}
    for node, scores in table(event.get("clients")).items():
        pairs = [_pair(table(scores).get(name)) for name in names]
        if _is_node(node) and any(total for _, total in pairs):
            right, asked = np.array(pairs, np.float64).T
            found[int(node)] = right, asked
    return found


def _is_node(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _pair(value: Any) -> tuple[float, float]:
    """Right answers and answers; none of either for what is no such pair."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return 0.0, 0.0
    right, asked = number(value[0]), number(value[1])
    return (right, asked) if right is not None and asked and 0 <= right <= asked else (0.0, 0.0)
