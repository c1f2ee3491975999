"""What a run's events say as plain lines, and the words that the live view shares with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.private import USER
from ..server.events import Event, number
from ..server.report_continual import absent, warnings
from ..server.report_events import HEAD, answered_by
from ..server.report_log import integer, table
from ..server.report_sums import in_brief
from ..server.units import DASH, count, duration, percent, size
from .follow import Progress, accuracies, rejected
from .spent import Spent


def plain_lines(
    event: Event, progress: Progress, opened: Event | None = None, spent: Spent | None = None
) -> Iterator[str]:
    """What `plain` mode prints for an event that `progress` has seen: no line, or one, or more.

    Args:
        event: the newest.
        progress: the run so far.
        opened: the last `sum_opened`, where updates are hidden.
        spent: what is promised and spent.
    """
    private = spent is not None and bool(spent.targets)
    kind, where = event["event"], _where(event, progress)
    if kind == "run_started":
        domains = count(len(progress.domains), "domain")
        yield f"run {progress.run}: {domains}, {count(progress.rounds, 'round')} each"
    elif kind == "run_resumed":
        yield f"run resumed: {where}, after {count(progress.round, 'round')}"
    elif kind == "domain_started":
        yield f"{where}: started, {event.get('labels', 0)} labels"
    elif kind == "round_finished":
        cells = round_cells(event)
        # No client of a private run tells its loss.
        first = spent.words() if spent and private else f"loss {cells[0]}"
        words = f"{first}, up {cells[1]}, down {cells[2]}, {cells[3]}, rejected {cells[4]}"
        same = opened is not None and _same_place(opened, event)
        extra = last_sum(opened, spent) if same else ""
        line = f"{where}, round {part_of(progress.round, progress.rounds)}: {words}"
        yield f"{line}, {extra}" if extra else line
    elif kind == "round_failed":
        yield f"{where}, round {event.get('round', 0) + 1}: failed, {event.get('reason')}"
    elif kind == "evaluated":
        scores = accuracies(event)
        words = ", ".join(f"{name} {percent(score)}" for name, score in scores.items())
        by = f" by {progress.head}" if answered_by(event) == HEAD else ""
        yield f"{where}: accuracy {percent(mean_of(scores))}{by} ({words or 'nothing measured'})"
    elif kind == "baseline":
        yield f"before training: accuracy {percent(mean_of(accuracies(event)))}"
    elif kind == "learnt":
        yield from (f"{where}: {line}" for line in _ended(event, progress.methods, private))
    elif kind == "domain_finished":
        words = f"; {spent.words()}" if spent and private else ""
        yield f"{where}: finished in {duration(number(event.get('seconds')) or 0.0)}{words}"
    elif kind == "run_finished":
        yield f"run finished in {duration(number(event.get('seconds')) or 0.0)}"


def _ended(event: Event, methods: Sequence[str], private: bool) -> Iterator[str]:
    """What the sum at a domain's end came to, who was missing, and what to know of the methods."""
    values, clients = integer(event.get("values")), integer(event.get("clients"))
    up, seconds = integer(event.get("bytes_up")), number(event.get("seconds")) or 0.0
    if values:
        summed = f"{count(values, 'value')} summed over {count(clients, 'client')}"
        yield f"domain ended: {summed}, up {size(up)}, {duration(seconds)}"
    missing = absent(event, methods, private=private)
    if missing:
        yield f"warning: {missing}"
    yield from (f"warning: {line}" for line in warnings(table(event.get("facts"))))


def _where(event: Event, progress: Progress) -> str:
    domain = int(number(event.get("domain")) or 0)
    return f"domain {part_of(domain + 1, len(progress.domains))} {progress.name(domain)}"


def part_of(part: int, whole: int) -> str:
    """`2/6`, or `2` where the whole is not known."""
    return f"{part}/{whole}" if whole else str(part)


def round_cells(event: Event) -> tuple[str, str, str, str, str]:
    """Loss, bytes up, bytes down, seconds and rejected replies of a finished round."""
    loss = number(event.get("loss"))
    return (
        DASH if loss is None else f"{loss:.4f}",
        size(number(event.get("bytes_up")) or 0.0),
        size(number(event.get("bytes_down")) or 0.0),
        duration(number(event.get("seconds")) or 0.0),
        str(rejected(event)),
    )


def last_sum(opened: Event | None, spent: Spent | None) -> str:
    """How the last sum travelled; empty where updates are not hidden."""
    told = spent is None or USER not in spent.targets
    return "" if opened is None else in_brief(opened, told=told)


def _same_place(one: Event, other: Event) -> bool:
    return all(one.get(key) == other.get(key) for key in ("domain", "round", "attempt"))


def mean_of(scores: dict[str, float]) -> float | None:
    """The mean of accuracies by domain; None without any."""
    return sum(scores.values()) / len(scores) if scores else None
