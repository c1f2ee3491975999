"""`perennial plan`: what a promise of privacy costs over a model's life, before anything trains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import check
from ..core.config import Config
from ..core.errors import ConfigError, DataError, Fault
from ..core.private import EXAMPLE
from ..core.values import Spend
from .settling import STRONG, planned_tables, schedule_of, settle, told

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..privacy.plan import Schedule

_MOST_ROWS = 12
_USUAL_SIZE = 60_000
_BEST = (
    "measured best at epsilon 3 and below: a large sample rate and few steps, sgd with momentum "
    '0.9, [strategy] name = "ffa" (A frozen), 1,000 records or more for each client'
)


def plan(text: str, ledger: Path | None, *, as_json: bool) -> None:
    """Print what the config in `text` promises and what that takes.

    Args:
        text: TOML; what its privacy leaves open is filled in first, and said.
        ledger: a client's own folder, to say how many more updates fit; None without.
        as_json: print one JSON object instead of tables.

    Raises:
        ConfigError: every fault at once; what the data refuses too, where it can be read.
        PrivacyError: no noise reaches epsilon, or the ledger is damaged.
    """
    found = planned(text, ledger)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    for line in found["notes"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for unit in found["units"]:
        _show(unit, console)


def planned(text: str, ledger: Path | None = None) -> dict[str, Any]:
    """What `plan` says, in plain values: `notes`, and one entry of `units` for each promise.

    Raises:
        PerennialError: as `plan`.
    """
    text, notes = settle(text)
    config = check.read(text)
    tables = planned_tables(config)
    if not tables:
        line = (
            'nothing is promised: write [privacy] name = "dp_sgd" for single records, or '
            '[user_privacy] name = "central" or "distributed" for users'
        )
        return {"notes": [*notes, line], "units": []}
    schedules = {table: schedule_of(config, table) for table in tables}
    notes += against_data(config)
    notes += _sizes(config)
    units = [_unit(config, table, schedules[table], ledger) for table in tables]
    return {"notes": notes, "units": units}


def _unit(config: Config, table: str, schedule: Schedule, ledger: Path | None) -> dict[str, Any]:
    from ..privacy.accounting import rdp_epsilon
    from ..privacy.plan import QUALITY, choices

    noise = float(getattr(config, table).options["noise_multiplier"])
    life = schedule.spends(schedule.updates, noise)
    others = choices(schedule)
    epsilon = schedule.epsilon(schedule.updates, noise)
    fits = schedule.fits(noise)
    return {
        "unit": schedule.unit,
        "plug_in": getattr(config, table).name,
        "schedule": told(schedule),
        "target": schedule.target,
        "delta": schedule.delta,
        "updates": schedule.updates,
        "rounds": schedule.rounds,
        "steps": schedule.steps,
        "sample_rate": schedule.sample_rate,
        "replay_rate": schedule.replay_rate,
        "noise_multiplier": noise,
        "noise_needed": others[0].noise,
        "epsilon": {
            "accounted": epsilon,
            "rdp": rdp_epsilon(life, schedule.delta),
            "prv": _prv(schedule, life, epsilon),
        },
        "updates_that_fit": fits,
        "after": [
            {"updates": n, "epsilon": schedule.epsilon(n, noise)} for n in _rows(schedule.updates)
        ],
        "quality": QUALITY,
        "choices": [
            {"what": c.name, "value": c.value, "noise_multiplier": c.noise, "quality": c.quality}
            for c in others
        ],
        "ledger": _ledger(ledger, schedule, noise) if ledger else None,
        "advice": _advice(schedule, noise, fits),
    }


def _prv(schedule: Schedule, life: Sequence[Spend], epsilon: float) -> float | None:
    """By another library; None where it knows no bound, or the figure tells nothing."""
    from ..privacy.plan import EXACT_STEPS

    few = schedule.total() <= EXACT_STEPS
    if schedule.mechanism != "gaussian" or epsilon > 100.0 or not few:
        return None
    from ..privacy.crosscheck import prv_epsilon

    return prv_epsilon(life, schedule.delta)[0]


def _ledger(folder: Path, schedule: Schedule, noise: float) -> dict[str, Any]:
    """What a client's ledger says of this unit, and how many more planned updates it holds."""
    from ..privacy.ledger import client_of, open_ledger

    client, rate = client_of(folder), schedule.replay_rate
    steps = schedule.rounds * schedule.steps
    mechanism, sums = schedule.mechanism, schedule.sums
    update = [Spend(schedule.sample_rate, noise, steps, "new", mechanism)] if steps else []
    if rate and steps:
        update.append(Spend(rate, noise, steps, "replayed", mechanism))
    if sums:
        update.append(Spend(1.0, noise, sums, "new", mechanism))
    account = open_ledger(
        folder, client, unit=schedule.unit, epsilon=schedule.target, delta=schedule.delta
    )
    said = account.statement(update)
    return {
        "client": client,
        "epsilon": said.epsilon,
        "target": said.target,
        "delta": said.delta,
        "releases": said.releases,
        "updates_left": said.updates_left,
    }


def _advice(schedule: Schedule, noise: float, fits: int) -> list[str]:
    lines = []
    if fits < schedule.updates:
        lines.append(
            f"with noise {noise:g} only {fits} of {schedule.updates} updates fit: clients will "
            "refuse the next. Leave noise_multiplier out, and it is planned"
        )
    if schedule.unit == EXAMPLE and schedule.target <= STRONG:
        lines.append(_BEST)
    return lines


def _rows(updates: int) -> list[int]:
    """All updates where they are few; else the first ones, then some up to the last."""
    if updates <= _MOST_ROWS:
        return list(range(1, updates + 1))
    return sorted({1 + round(i * (updates - 1) / (_MOST_ROWS - 1)) for i in range(_MOST_ROWS)})


def against_data(config: Config) -> list[str]:
    """Notes on the data of a config that is sound; none where nothing is promised of records.

    The data is read here; where it cannot be, or where each client brings its own, clients alone
    refuse what does not fit.

    Raises:
        ConfigError: what clients would refuse because of the records that they hold.
    """
    if "privacy" not in planned_tables(config):
        return []
    try:
        held = _held(config)
    except DataError as error:
        return [f"note: the data is not read, and nothing is checked against it: {error}"]
    if not held:
        return []
    example = schedule_of(config, "privacy", len(held))
    if faults := list(_example_faults(example, held)):
        raise ConfigError(faults)
    if example.updates < len(held):
        return [
            f"note: the data has {len(held)} domains, and noise is planned for "
            f"{example.updates} updates; clients will refuse the others"
        ]
    return []


def _sizes(config: Config) -> list[str]:
    """A warning where the clip of users is lost in rounding at a usual size of an update."""
    noise = check.build(config, "user_privacy").noise
    if noise is None:
        return []
    try:
        check.build(config, "secure_sum").sensitivity(noise.clip, _USUAL_SIZE)
    except ValueError as error:
        return [f"warning: with {_USUAL_SIZE} trained values, a usual number, a run stops: {error}"]
    return []


def _held(config: Config) -> dict[str, list[int]]:
    """Training records per client that has any, by domain; empty where each brings its own."""
    if config.shards.split == "local":
        return {}
    from ..data.deals import deal_of, need_deal
    from ..data.stream import stream

    causal = config.model.name == "causal_lm"
    domains = stream(check.build(config, "data").read(), config.domains, causal=causal)
    shards, seed = config.shards, config.run.seed
    need_deal(domains, shards, seed)
    return {
        domain.name: [
            len(own) for own in deal_of(domains, shards, seed, domain.name, "train") if len(own)
        ]
        for domain in domains.domains
    }


def _example_faults(schedule: Schedule, held: Mapping[str, Sequence[int]]) -> Iterator[Fault]:
    most = max((max(counts) for counts in held.values() if counts), default=0)
    if most and schedule.delta > 1.0 / most:
        yield Fault(
            "privacy.delta",
            f"must be at most 1 / number of records of a client, 1/{most}; got "
            f"{schedule.delta:g}, which allows to publish one of them as it is",
            f"write delta = {0.1 / most:.0e} or less",
        )
    small = {
        name: [count for count in counts if count * schedule.sample_rate < 1.0]
        for name, counts in held.items()
    }
    num_small = sum(map(len, small.values()))
    if num_small:
        name = next(name for name, counts in small.items() if counts)
        yield Fault(
            "privacy.sample_rate",
            f"{schedule.sample_rate:g} needs {-int(-1 // schedule.sample_rate)} records or more, "
            f"one a step; {num_small} of the shards hold fewer, such as {min(small[name])} "
            f"of {name!r}",
            "raise sample_rate, use fewer clients, or deal records more evenly",
        )


def _show(unit: Mapping[str, Any], console: Console) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say("")
    say(f"per {unit['unit']} ({unit['plug_in']}): {unit['schedule']}")
    epsilon = unit["epsilon"]
    beside = [f"by the older, looser RDP {epsilon['rdp']:.3f}"]
    if epsilon["prv"] is not None:
        beside.insert(0, f"by PRV {epsilon['prv']:.3f}")
    needed = f"{unit['noise_needed']:g}" if unit["noise_needed"] else "more than is of use"
    say(f"  noise    {unit['noise_multiplier']:g} times the clip; needed: {needed}")
    say(f"  epsilon  {epsilon['accounted']:.3f} of {unit['target']:g}; {', '.join(beside)}")
    say("epsilon of the first cohort, which pays most")
    table = _columns(("after update", "right"), ("epsilon", "right"))
    for row in unit["after"]:
        table.add_row(str(row["updates"]), f"{row['epsilon']:.3f}")
    console.print(table)
    say("what choices cost, each by itself")
    table = _columns(("", "left"), ("", "right"), ("noise", "right"), ("in the mean", "right"))
    for row in unit["choices"]:
        noise, quality = row["noise_multiplier"], row["quality"]
        cells = (f"{noise:g}", f"{quality:.3f}") if noise else ("none is enough", "")
        table.add_row(row["what"], row["value"], *cells)
    console.print(table)
    of = "records" if unit["unit"] == EXAMPLE else "clients"
    say(f"in the mean: {unit['quality']}, in clips over the number of {of}; less is better")
    if ledger := unit["ledger"]:
        same = " on the same records" if unit["unit"] == EXAMPLE else ""
        say(
            f"ledger of {ledger['client']}: epsilon {ledger['epsilon']:.3f} of "
            f"{ledger['target']:g} spent in {ledger['releases']} releases; "
            f"room for {ledger['updates_left']} more updates{same}"
        )
    for line in unit["advice"]:
        say(line)


def _columns(*heads: tuple[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=True)
    for head, justify in heads:
        table.add_column(head, justify=justify, no_wrap=True)
    return table
