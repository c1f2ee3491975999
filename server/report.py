"""The report of a run, rebuilt from its event log alone: report.json and report.html."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core import metrics
from ..core.files import write_atomically
from . import report_log
from .events import Event, number, plain, read_events, settle
from .report_log import NOTHING, Costs, Log, Place, by_name, integer, place, table
from .report_page import render
from .report_privacy import privacy, read_audit
from .report_sums import sums


def write_report(run_folder: Path) -> dict[str, Any]:
    """The report of the run in `run_folder`, also written there as report.json and report.html.

    Where an audit.json lies in the folder, or in that of an audit of the same name beside it, it
    is the report's `audit`.

    Raises:
        OSError: events.jsonl cannot be read or the reports cannot be written.
        RunError: events.jsonl is broken before its last line.
    """
    report = summarise(read_events(run_folder / "events.jsonl"))
    name = table(report["config"].get("run")).get("name")
    report["audit"] = read_audit(run_folder, str(name or ""))
    text = json.dumps(report, indent=2, allow_nan=False)
    write_atomically(run_folder / "report.json", text + "\n")
    write_atomically(run_folder / "report.html", render(report))
    return report


def summarise(events: Iterable[Event]) -> dict[str, Any]:
    """All there is to say about a run, as values that strict JSON can hold.

    Accuracies, forgetting and shares are 0..1 (forgetting and backward transfer -1..1); bytes
    and seconds are totals over clients and attempts; what was not measured is null. A domain's
    row of `accuracy_matrix` is filled once the domain is learnt to its end. `sums` says how updates
    were hidden; it is null where the log does not. `privacy` says what was promised and spent; it
    is null where nothing was. `missing` says in plain sentences what the events did not hold.

    Law: events repeated after a resume change nothing.

    Raises:
        RunError: an event without the integers that say where it belongs.
    """
    log = by_name(settle(events))
    start = log["run_started"][-1] if log["run_started"] else {}
    end = log["run_finished"][-1] if log["run_finished"] else {}
    domains = _domains(log, start)
    lost = report_log.lost(log)
    rounds = _rounds(log, lost)
    report = {
        "run": start.get("run"),
        "version": start.get("version"),
        "finished": bool(log["run_finished"]),
        "config": table(start.get("config")),
        "model": table(start.get("model")),
        "num_clients": start.get("clients"),
        "domains": domains,
        "adapter_hash": end.get("adapter_hash"),
        **_accuracies(log, start, domains),
        "rounds": rounds,
        "clients": _clients(log),
        "rejected": dict(Counter(str(r.get("cause", "")) for r in log["reply"] if not r.get("ok"))),
        "totals": _totals(log, lost, number(end.get("seconds"))),
        "failed_attempts": [_failure(event) for event in log["round_failed"]],
        "sums": sums(log, start, rounds),
        "privacy": privacy(log, start),
        "audit": None,
    }
    report["missing"] = list(_missing(report))
    clean: dict[str, Any] = plain(report)
    return clean


def _domains(log: Log, start: Event) -> list[dict[str, Any]]:
    """The domains in order, by run_started; by what events name where that is missing."""
    listed = start.get("domains") or []
    found = {i: (str(d.get("name")), d.get("labels") or []) for i, d in enumerate(listed)}
    for event in log["domain_started"]:
        found.setdefault(event["domain"], (str(event.get("name")), []))
    done = {event["domain"]: event for event in log["domain_finished"]}
    touched = (event["domain"] for events in log.values() for event in events if "domain" in event)
    domains = []
    for i in range(max([-1, *found, *touched]) + 1):
        name, labels = found.get(i, (f"domain {i + 1}", []))
        seconds = number(done[i].get("seconds")) if i in done else None
        domains.append({"name": name, "labels": labels, "finished": i in done, "seconds": seconds})
    return domains


def _accuracies(log: Log, start: Event, domains: list[dict[str, Any]]) -> dict[str, Any]:
    names = [domain["name"] for domain in domains]
    rows = _last_evaluations(log, start, domains)
    matrix = np.full((len(names), len(names)), np.nan)
    for i, event in rows.items():
        for j, name in enumerate(names[: i + 1]):
            value = number(table(event.get("accuracy")).get(name))
            matrix[i, j] = np.nan if value is None else value
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
        "weighted_accuracy": _weighted(rows[learnt - 1]) if learnt else None,
        "evaluated_where": rows[learnt - 1].get("where") if learnt else None,
    }


def _last_evaluations(log: Log, start: Event, domains: list[dict[str, Any]]) -> dict[int, Event]:
    """Domain -> the evaluation after its last round, for domains learnt to their end."""
    rounds = number(table(table(start.get("config")).get("round")).get("rounds"))
    begun = max((event["domain"] for event in log["round_started"]), default=-1)
    last: dict[int, Event] = {}
    for event in log["evaluated"]:
        domain = event["domain"]
        whole = rounds is not None and event["round"] >= rounds
        over = domain < begun or (domain < len(domains) and domains[domain]["finished"])
        newer = domain not in last or event["round"] >= last[domain]["round"]
        if 0 <= domain < len(domains) and (whole or over) and newer:
            last[domain] = event
    return last


def _weighted(event: Event) -> float | None:
    """Share of all test requests answered rightly, 0..1; None without totals."""
    totals = table(event.get("totals"))
    pairs = [
        (accuracy, total)
        for name, value in table(event.get("accuracy")).items()
        if (accuracy := number(value)) is not None and (total := number(totals.get(name)))
    ]
    asked = sum(total for _, total in pairs)
    return sum(accuracy * total for accuracy, total in pairs) / asked if asked > 0 else None


def _rounds(log: Log, lost: Costs) -> list[dict[str, Any]]:
    """One entry per finished round, what its failed attempts cost included."""
    scores = {(e["domain"], e["round"]): e for e in log["evaluated"]}
    return [
        _round(event, scores.get((event["domain"], event["round"] + 1), {}), lost)
        for event in sorted(log["round_finished"], key=lambda e: (e["domain"], e["round"]))
    ]


def _round(event: Event, score: Event, lost: Costs) -> dict[str, Any]:
    at = event["domain"], event["round"]
    extra = lost.get(at, NOTHING)
    values = table(score.get("accuracy")).values()
    accuracy = [a for value in values if (a := number(value)) is not None]
    return {
        "domain": at[0],
        "round": at[1],
        "loss": number(event.get("loss")),
        "accuracy": sum(accuracy) / len(accuracy) if accuracy else None,
        "bytes_up": integer(event.get("bytes_up")) + int(extra["bytes_up"]),
        "bytes_down": integer(event.get("bytes_down")) + int(extra["bytes_down"]),
        "seconds": (number(event.get("seconds")) or 0.0) + extra["seconds"],
        "accepted": event.get("accepted"),
        "rejected": table(event.get("rejected")),
        "attempts": event["attempt"] + 1,
    }


def _clients(log: Log) -> list[dict[str, Any]]:
    """One entry per node that replied; replies of failed attempts changed nothing and count 0.

    Where weights are sealed, `records`, `records_total` and `share` are None.
    """
    failed = frozenset(report_log.failed(log))
    replies: defaultdict[int, list[Event]] = defaultdict(list)
    for event in log["reply"]:
        replies[event["node"]].append(event)
    clients = [_client(node, replies[node], failed) for node in sorted(replies)]
    sealed = any(client["records_total"] is None for client in clients)
    weight = sum(client["records_total"] or 0.0 for client in clients)
    for client in clients:
        share = client["records_total"] / weight if weight and not sealed else 0.0
        client["share"] = None if sealed else share
    return clients


def _client(node: int, replies: list[Event], failed: frozenset[Place]) -> dict[str, Any]:
    used = [event for event in replies if event.get("ok") and place(event) not in failed]
    weights = [w for event in used if (w := number(event.get("records"))) is not None]
    losses = [loss for event in used if (loss := number(event.get("loss"))) is not None]
    times = [t for event in replies if (t := number(event.get("seconds"))) is not None]
    return {
        "node": node,
        "rounds": len(used),
        "records": weights[-1] if weights else None,
        "records_total": sum(weights) if weights or not used else None,
        "bytes_up": sum(integer(event.get("bytes_up")) for event in replies),
        "rejected": sum(not event.get("ok") for event in replies),
        "mean_loss": sum(losses) / len(losses) if losses else None,
        # In private runs no client tells.
        "seconds": sum(times) if times or not used else None,
    }


def _totals(log: Log, lost: Costs, seconds: float | None) -> dict[str, Any]:
    """Sums over the run's rounds and failed attempts.

    After a resume, run_finished may count from the resume only: its seconds stand where they
    are no less than what the rounds took.
    """
    done, failed = log["round_finished"], lost.values()
    spent = sum(number(e.get("seconds")) or 0.0 for e in done) + sum(c["seconds"] for c in failed)
    sizes = {
        key: sum(integer(event.get(key)) for event in done) + int(sum(cost[key] for cost in failed))
        for key in ("bytes_up", "bytes_down")
    }
    counts = {"rounds": len(done), "replies": len(log["reply"])}
    return {**sizes, "seconds": max(spent, seconds or 0.0), **counts}


def _failure(event: Event) -> dict[str, Any]:
    keys = ("domain", "round", "attempt", "reason")
    return {key: event.get(key) for key in keys}


def _missing(report: dict[str, Any]) -> Iterable[str]:
    domains, learnt = report["domains"], report["learnt"]
    if not report["run"]:
        yield "The log has no run_started event: name, config and model of the run are unknown."
    if not report["finished"]:
        done = sum(domain["finished"] for domain in domains)
        yield f"The run is not finished: {done} of {len(domains)} domains have ended."
    if not report["rounds"]:
        yield "No round was finished, so nothing was trained."
    if not report["clients"]:
        yield "No client replied."
    if report["rounds"] and not learnt:
        yield "No domain was measured after its last round: accuracy and forgetting are unknown."
    below = np.tril_indices(learnt, m=len(domains))
    if np.isnan(report["accuracy_matrix"][:learnt][below]).any():
        yield "Some domains were not measured after some others: their cells are empty."
    if learnt == 1:
        yield "Forgetting and backward transfer need at least two domains."
