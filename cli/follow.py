"""Following a run's event log while another thread or process writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..server.events import Event, number, parse_line
from ..server.report_accuracy import rounds_of
from ..server.report_continual import head_words, methods_in_force
from ..server.report_events import HEAD, answered_by


class Tail:
    """The lines of a growing file, each once; a file that is not there yet has none."""

    def __init__(self, path: Path) -> None:
        """Start at the beginning of `path`, which need not be there yet."""
        self._path = path
        self._read = 0

    def new(self) -> list[Event]:
        """The whole lines since the last call, as events; what is no event is passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [event for line in whole.split(b"\n") if (event := parse_line(line)) is not None]


@dataclass(slots=True)
class Progress:
    """What a display shows of a run, kept up to date by `see`.

    Attributes:
        run: the run's name; empty before run_started.
        domains: names in order.
        rounds: rounds per domain, with those that the continual layer adds; 0 when unknown.
        methods: the continual methods in force.
        head: who answers in the place of the adapter's own head, in words.
        domain: index of the present domain.
        round: rounds begun in it.
        asked: clients asked in the present attempt.
        replied: how many of them have answered.
        table: the last finished rounds, each its round_finished event.
        scores: domain name -> accuracy 0..1 by the last evaluation.
        by: who answered in it: `HEAD`, or the adapter's own head.
        means: (domain, rounds done in it) -> mean accuracy 0..1 over domains, of the adapter's
            own head.
        ends: domain -> mean accuracy 0..1 at its end and who answered.
        pace: seconds from round to round, the last few, of this session only.
        finished: whether run_finished was seen.
    """

    run: str = ""
    domains: list[str] = field(default_factory=list)
    rounds: int = 0
    methods: list[str] = field(default_factory=list)
    head: str = ""
    domain: int = 0
    round: int = 0
    asked: int = 0
    replied: int = 0
    table: list[Event] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    by: str = ""
    means: dict[tuple[int, int], float] = field(default_factory=dict)
    ends: dict[int, tuple[float, str]] = field(default_factory=dict)
    pace: list[float] = field(default_factory=list)
    finished: bool = False
    _last: float | None = None

    @property
    def done(self) -> int:
        """Rounds done over all domains."""
        if self.finished:
            return self.total
        return self.domain * self.rounds + self.round

    @property
    def total(self) -> int:
        """Rounds in all; 0 when unknown."""
        return len(self.domains) * self.rounds

    def name(self, domain: int) -> str:
        """The name of a domain, or its number where the log has not said it."""
        return self.domains[domain] if domain < len(self.domains) else f"domain {domain + 1}"

    def remaining_s(self) -> float | None:
        """Seconds to the end at the pace of the last rounds; None before the second round."""
        if not self.pace or not self.total:
            return None
        return max(0, self.total - self.done) * sum(self.pace) / len(self.pace)

    def see(self, event: Event) -> None:
        """Take one more event into account; an event that lacks its fields changes nothing."""
        change = getattr(self, f"_on_{event['event']}", None)
        if change is not None:
            change(event)

    def _on_run_started(self, event: Event) -> None:
        self.run = str(event.get("run") or "")
        self.domains = [str(domain.get("name")) for domain in event.get("domains") or []]
        self.rounds = int(rounds_of(event) or 0)
        self.methods = methods_in_force(event)
        self.head = head_words(self.methods)
        self._last = number(event["time"])

    def _on_run_resumed(self, event: Event) -> None:
        self.domain, self.round = _int(event, "domain"), _int(event, "round")
        place = self.domain, self.round
        self.table = [e for e in self.table if (_int(e, "domain"), _int(e, "round")) < place]
        self.ends = {domain: end for domain, end in self.ends.items() if domain < self.domain}
        self.asked = self.replied = 0
        # The time the run lay still says nothing of its pace.
        self.pace, self._last, self.finished = [], number(event["time"]), False

    def _on_domain_started(self, event: Event) -> None:
        if _int(event, "domain") != self.domain:
            self.domain, self.round = _int(event, "domain"), 0

    def _on_round_started(self, event: Event) -> None:
        self.domain, self.round = _int(event, "domain"), _int(event, "round")
        self.asked, self.replied = _int(event, "asked"), 0

    def _on_reply(self, event: Event) -> None:
        self.replied += 1

    def _on_round_finished(self, event: Event) -> None:
        self.domain, self.round = _int(event, "domain"), _int(event, "round") + 1
        self.table = [*self.table, event][-8:]
        if self._last is not None:
            self.pace = [*self.pace, max(0.0, float(event["time"]) - self._last)][-8:]
        self._last = float(event["time"])

    def _on_evaluated(self, event: Event) -> None:
        self.scores, self.by = accuracies(event), answered_by(event)
        if not self.scores:
            return
        domain, mean = _int(event, "domain"), sum(self.scores.values()) / len(self.scores)
        if self.by != HEAD:
            self.means[domain, _int(event, "round")] = mean
        # Where a method answers, its head's figure stands.
        if self.by == HEAD or self.ends.get(domain, (0.0, ""))[1] != HEAD:
            self.ends[domain] = mean, self.by

    def _on_run_finished(self, event: Event) -> None:
        self.finished = True


def accuracies(event: Event) -> dict[str, float]:
    """Domain name -> accuracy 0..1 of an `evaluated` event, where there is one."""
    found = event.get("accuracy") or {}
    return {str(name): value for name, v in found.items() if (value := number(v)) is not None}


def rejected(event: Event) -> int:
    """How many replies a `round_finished` event says were rejected."""
    causes = event.get("rejected") or {}
    return int(sum(number(count) or 0 for count in causes.values()))


def _int(event: Event, key: str) -> int:
    value: Any = number(event.get(key))
    return int(value or 0)
