"""The report of a run, rebuilt from its event log alone: report.json and report.html."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import write_atomically
from . import report_log
from .events import Event, number, plain, read_events
from .report_accuracy import accuracies
from .report_continual import continual, ends_cost
from .report_events import MODEL, answered_by, settled
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

    Accuracies, forgetting and shares are 0..1 (forgetting and transfer -1..1); bytes and seconds
    are totals over clients and attempts, with those of the ends of domains; what was not measured
    is null. A domain's row of `accuracy_matrix` is filled once the domain is learnt to its end.
    `continual` says what the continual layer keeps; it is null without one. `sums` says how updates
    were hidden; it is null where the log does not. `privacy` says what was promised and spent; it
    is null where nothing was. `missing` says in plain sentences what the events did not hold.

    Law: events repeated after a resume change nothing.

    Raises:
        RunError: an event without the integers that say where it belongs.
    """
    log = by_name(settled(events))
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
        **accuracies(log, start, domains),
        "rounds": rounds,
        "clients": _clients(log),
        "rejected": dict(Counter(str(r.get("cause", "")) for r in log["reply"] if not r.get("ok"))),
        "totals": _totals(log, lost, number(end.get("seconds"))),
        "failed_attempts": [_failure(event) for event in log["round_failed"]],
        "continual": continual(log, start),
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


def _rounds(log: Log, lost: Costs) -> list[dict[str, Any]]:
    """One entry per finished round, what its failed attempts cost included."""
    own = [event for event in log["evaluated"] if answered_by(event) == MODEL]
    scores = {(e["domain"], e["round"]): e for e in own}
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
    """Sums over the run's rounds, failed attempts and ends of domains.

    After a resume, run_finished may count from the resume only: its seconds stand where they
    are no less than what the rounds took.
    """
    done, failed, ends = log["round_finished"], lost.values(), ends_cost(log)
    spent = sum(number(e.get("seconds")) or 0.0 for e in done) + sum(c["seconds"] for c in failed)
    sizes = {
        key: sum(integer(event.get(key)) for event in done)
        + int(sum(cost[key] for cost in [*failed, ends]))
        for key in ("bytes_up", "bytes_down")
    }
    return {
        **sizes,
        "bytes_up_at_ends": int(ends["bytes_up"]),
        "seconds": max(spent + ends["seconds"], seconds or 0.0),
        "rounds": len(done),
        "replies": len(log["reply"]),
    }


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
    ended = bool(report["continual"] and report["continual"]["domains"])
    if not report["rounds"] and not ended:
        yield "No round was finished, so nothing was trained."
    if not report["clients"] and not ended:
        yield "No client replied."
    if (report["rounds"] or ended) and not learnt:
        yield "No domain was measured after its last round: accuracy and forgetting are unknown."
    below = np.tril_indices(learnt, m=len(domains))
    if np.isnan(report["accuracy_matrix"][:learnt][below]).any():
        yield "Some domains were not measured after some others: their cells are empty."
    if learnt == 1:
        yield "Forgetting and transfer need at least two domains."
