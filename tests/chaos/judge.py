"""What must hold after a schedule, from the records of all parties.

The clients' own records are what each wrote before sealing (`recorded.bfv`), where no fault
reaches, and their ledgers; the server's are its log, its checkpoints and its releases; the key
holder's is its audit log. Every fault that is found is one sentence.
"""

import base64
import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from parties import Fleet

from perennial.core import check
from perennial.core.private import LEDGER
from perennial.core.seeds import derive
from perennial.data.stream import stream
from perennial.models.place import seed_adapter
from perennial.privacy import ledger
from perennial.privacy.audit_log import entries_of
from perennial.server import checkpoint
from perennial.server.events import read_events, settle

_TOLERANCE = 2e-4  # of sums of means of values of 16 bit and scale 1; one update is far larger


def sums_of(
    fleet: Fleet, run: Path, before: np.ndarray | None, given: Sequence[dict]
) -> Iterator[str]:
    """Whether every round holds each update that counts once, and no other.

    Args:
        fleet: whose run it is.
        run: folder of a finished run of one new domain.
        before: the parameters that the run before ended with; None for a first run.
        given: `records` of the fleet.
    """
    saved = checkpoint.newest(run / "checkpoints")
    domain = saved.state.domain - 1
    token = f"{run.name}-{(run / 'token').read_text().strip()}"
    entries = opened(fleet, token, domain)
    events = settle(read_events(run / "events.jsonl"))
    rounds = [e for e in events if e["event"] == "round_finished" and e["domain"] == domain]
    numbers = Counter(event["round"] for event in rounds)
    yield from (f"round {n} was finished {k} times" for n, k in numbers.items() if k > 1)
    for event in rounds:
        entry = entries.get(event["round"])
        if entry is None:
            yield f"round {event['round']} was finished and never opened"
            continue
        told = {
            e["node"]
            for e in events
            if e["event"] == "reply"
            and e["ok"]
            and (e["domain"], e["round"], e["attempt"])
            == (domain, event["round"], event["attempt"])
        }
        if not (len(told) == event["accepted"] == len(entry["nodes"]) == len(set(entry["nodes"]))):
            yield f"round {event['round']}: {len(told)} replies, {entry['nodes']} in the sum"
        if told != set(entry["nodes"]):
            yield f"round {event['round']}: the sum is not of those who answered"
    config = check.read((run / "config.toml").read_text())
    start = _start(config, domain, before)
    choices = [_means(given, token, domain, entries[n]) for n in sorted(numbers) if n in entries]
    ends = [start + sum(means) for means in itertools.product(*choices)]
    off = [float(np.abs(end - saved.state.params).max()) for end in ends]
    if not off or min(off) > _TOLERANCE:
        yield f"the parameters are not the start and the mean of each round's updates: off by {off}"


def opened(fleet: Fleet, token: str, domain: int) -> dict[int, dict]:
    """Round -> the key holder's own entry of what it opened."""
    found: dict[int, dict] = {}
    for entry in entries_of(fleet.home / "keyholder" / "audit.jsonl"):
        if entry.get("run") == token and entry.get("domain") == domain:
            if entry["event"] == "opened":
                assert entry["round"] not in found, "a key holder opened a round twice"
                found[entry["round"]] = dict(entry)
            elif entry["event"] == "repeated":
                assert entry["request"] == found[entry["round"]]["request"]
    return found


def _means(given: Sequence[dict], token: str, domain: int, entry: dict) -> list[np.ndarray]:
    """The mean that a round must have been, by each session that it can have been."""
    sessions: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    place = (token, domain, entry["round"], entry["attempt"])
    for line in given:
        if (line["run"], line["domain"], line["round"], line["attempt"]) == place:
            sessions[line["session"]][line["node"]] = line["delta"]
    whole = [found for found in sessions.values() if set(entry["nodes"]) <= set(found)]
    return [
        np.mean([found[node].astype(np.float64) for node in entry["nodes"]], axis=0)
        for found in whole
    ]


def _start(config, domain: int, before: np.ndarray | None) -> np.ndarray:
    seed_adapter(derive(config.run.seed, "adapter"))
    model = check.build(config, "model")
    domains = stream(check.build(config, "data").read(), config.domains).domains
    labels = [tuple(n for d in domains[: upto + 1] for n in d.labels) for upto in range(domain + 1)]
    if before is not None:
        model.fit_labels(labels[domain - 1])
        model.load(before)
    model.fit_labels(labels[domain])
    return model.vector().astype(np.float64)


def records(fleet: Fleet) -> Iterator[dict]:
    """What the clients sealed, in order, with `client`."""
    for path in sorted(fleet.records.glob("*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            yield {
                **line,
                "client": path.stem,
                "delta": np.frombuffer(base64.b64decode(line["delta"]), "<f4"),
            }


def ledgers_of(fleet: Fleet, rounds: dict[str, int], given: Sequence[dict]) -> Iterator[str]:
    """Whether every client paid for each thing that it gave, over the fleet's whole life.

    Args:
        fleet: of which clients.
        rounds: run and token -> its rounds of training, after which statistics come.
        given: `records` of the fleet.
    """
    gifts: dict[str, Counter] = defaultdict(Counter)
    for client, run, kind, domain, round_, _ in {_gift(line, rounds) for line in given}:
        if kind:
            gifts[client][run, kind, domain, round_] += 1
    for name in fleet.names:
        folder = fleet.home / name / "state" / "client"
        if not (folder / LEDGER).exists():
            yield from (f"{name} gave {gifts[name].total()} and has no ledger",) * bool(gifts[name])
            continue
        lines = entries_of(folder / LEDGER)
        paid = Counter(_place(line) for line in lines if line["event"] == ledger.CHARGE)
        for place, number in gifts[name].items():
            if number > paid[place]:
                yield f"{name} gave {number} and paid {paid[place]} for {place}"
        (said,) = ledger.statements_of(folder)  # refuses a ledger that lost a line
        if said.releases != paid.total() or said.releases < gifts[name].total():
            yield f"{name} says {said.releases} of {paid.total()} charges"


def _gift(line: dict, rounds: dict[str, int]) -> tuple:
    """Whose noise it is, whatever it was sealed for and in which unit: (..., digest)."""
    run, train = line["run"].rpartition("-")[0], rounds.get(line["run"], 0)
    sign = np.signbit(line["delta"]).tobytes()
    digest = hashlib.sha256(sign).hexdigest()
    # After training comes the sum of statistics; its peak, a round later, is made from it.
    kind = "train" if line["round"] < train else "statistics" if line["round"] == train else ""
    return line["client"], run, kind, line["domain"], line["round"], digest


def _place(line: dict) -> tuple:
    place = line["place"]
    return place["run"], place["kind"], place["domain"], place["round"]
