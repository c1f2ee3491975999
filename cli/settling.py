"""What a private config leaves open, filled in before anything reads it: noise, and defaults.

The noise keeps the promise over the planned life of the model; the defaults are those that did
best under strong privacy. All that is filled in is said, and nothing that is written is changed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core import check, plugins
from ..core.config import Config, parse
from ..core.errors import ConfigError, DataError, Fault
from ..core.parts import Continual
from ..core.private import EXAMPLE, USER
from ..core.values import Manifest
from .overrides import override

if TYPE_CHECKING:
    from ..privacy.plan import Schedule

PLANNED: Mapping[str, Mapping[str, str]] = {
    "privacy": {"dp_sgd": "gaussian"},
    "user_privacy": {"central": "gaussian", "distributed": "skellam"},
}
"""Tables whose noise is planned: plug-in -> its mechanism."""

STRONG = 3.0
"""Epsilon per example at and below which training takes other settings to be useful."""

SGD_LR = 0.1
"""Learning rate of SGD with momentum 0.9 on gradients clipped to norm 1: of 0.03, 0.1, 0.5, 2 and
8 the best for the embedded encoder at epsilon 3, one run of 12 steps each."""

_NOT_PRIVATE = {"privacy": "none", "user_privacy": "off"}
_MOST_TRIES = 20


def settle(text: str, domains: int | None = None) -> tuple[str, list[str]]:
    """The config in `text` with all that its privacy leaves open, and a line for each value.

    A config that promises nothing comes back as it is. Settling twice changes nothing.

    Args:
        text: TOML.
        domains: number of domain updates of the run; None to count them in the data, which is
            read only where nothing else tells their number.

    Raises:
        ConfigError: every fault found.
        PrivacyError: no noise reaches the epsilon that is asked.
        DataError: the domains must be counted, and the data cannot be read.
    """
    if not is_private(text):
        return text, []
    tree = _tree(text)
    lines: list[str] = []
    for key, value, why in _defaults(tree):
        text = override(text, [f"{key}={value}"])
        lines.append(f"filled in: {key} = {value} ({why})")
    for table in planned_tables(parse(text)):
        config = parse(text)
        if "noise_multiplier" in getattr(config, table).options:
            lines += _too_little(config, table, domains)
            continue
        _need_sound(text, config, table)
        schedule = schedule_of(config, table, domains)
        noise = _enough(text, table, schedule.noise())
        text = override(text, [f"{table}.noise_multiplier={noise!r}"])
        lines.append(f"planned: {table}.noise_multiplier = {noise!r} for {told(schedule)}")
    return text, lines


def is_private(text: str) -> bool:
    """Whether the config in `text` promises anything; False where it is no TOML."""
    tree = _tree(text)
    return any(_name(tree, table) != plain for table, plain in _NOT_PRIVATE.items())


def _too_little(config: Config, table: str, domains: int | None) -> Iterator[str]:
    """A warning where the noise that is written does not last for all that is planned."""
    options = getattr(config, table).options
    if not {"epsilon", "delta"} <= set(options) or not _fits(config, table):
        return  # for `check.read` to refuse
    schedule = schedule_of(config, table, domains)
    needed, written = schedule.noise(), float(options["noise_multiplier"])
    if written < needed:
        yield (
            f"warning: {table}.noise_multiplier = {written:g} does not last for {told(schedule)}; "
            f"{needed:g} would. Clients refuse what would cross epsilon."
        )


def _fits(config: Config, table: str) -> bool:
    kind, part = check.KINDS[table]
    plugin = getattr(config, table)
    return not plugins.faults(kind, plugin.name, plugin.options, part, table)


def planned_tables(config: Config) -> list[str]:
    """The tables of `config` that promise something whose noise can be planned."""
    return [table for table, known in PLANNED.items() if getattr(config, table).name in known]


def schedule_of(config: Config, table: str, domains: int | None = None) -> Schedule:
    """What `config` plans for the unit of `table`, over the whole life of the model.

    Args:
        config: its options of `table` must fit but for the noise.
        table: `privacy` or `user_privacy`.
        domains: as of `settle`.

    Raises:
        DataError: as `settle`.
    """
    from ..privacy.plan import Schedule

    options = getattr(config, table).options
    example, continual = table == "privacy", _continual(config)
    rate = float(options["sample_rate"]) if example else 1.0
    replay = (float(options.get("replay_rate", 0.0)) or rate) if continual.replays else 0.0
    return Schedule(
        unit=EXAMPLE if example else USER,
        target=float(options["epsilon"]),
        delta=float(options["delta"]),
        updates=int(options.get("updates", 0)) or domains or domains_of(config),
        rounds=config.round.rounds + continual.rounds,
        epochs=config.train.epochs if example else 1,
        sample_rate=rate,
        replay_rate=replay if example else 1.0,
        sums=continual.sums if example else _has_sums(continual),
        mechanism=PLANNED[table][getattr(config, table).name],
    )


def told(schedule: Schedule) -> str:
    """A schedule in words."""
    updates = f"{schedule.updates} update{'s' * (schedule.updates != 1)}"
    rounds = f"{schedule.rounds} round{'s' * (schedule.rounds != 1)}"
    promise = f"epsilon {schedule.target:g} per {schedule.unit} at delta {schedule.delta:g}"
    if schedule.unit == USER:
        return f"{updates} of {rounds}, {promise}"
    steps = f"{schedule.steps} step{'s' * (schedule.steps != 1)}"
    rates = f"sample rate {schedule.sample_rate:g}"
    again = f"replay rate {schedule.replay_rate:g}" if schedule.replay_rate else "nothing replayed"
    return f"{updates} of {rounds} of {steps}, {rates}, {again}, {promise}"


def domains_of(config: Config) -> int:
    """Number of domain updates that `config` makes; the data is read where it does not say.

    Raises:
        ConfigError: the options of `[data]` do not fit.
        DataError: the data cannot be read as the config says.
    """
    if config.domains.joint:
        return 1
    if config.domains.order:
        return len(config.domains.order)
    from ..data.stream import stream

    causal = config.model.name == "causal_lm"
    try:
        splits = check.build(config, "data").read()
        return len(stream(splits, config.domains, causal=causal).domains)
    except DataError as error:
        raise DataError(
            f"{error}\nThe noise is planned for all domains, which must be counted: where the data "
            "is not here, write updates = NUMBER beside epsilon"
        ) from error


def _defaults(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, value as TOML and why, of each default that the user did not overrule."""

    def absent(table: str, *keys: str) -> bool:
        return not any(key in _table(tree, table) for key in keys)

    if absent("round", "weight"):
        yield "round.weight", '"uniform"', "a weight by records would tell their number"
    if _name(tree, "privacy") != "dp_sgd":
        return
    epsilon = _table(tree, "privacy").get("epsilon")
    strong = isinstance(epsilon, int | float) and epsilon <= STRONG
    if absent("privacy", "sample_rate"):
        rate, why = ("1.0", "all records in each step: best under strong privacy")
        if not strong:
            rate, why = ("0.25", "large batches stand noise better than small ones")
        yield "privacy.sample_rate", rate, why
    if not strong:
        return
    best = f"best at epsilon {STRONG:g} and below"
    # A learning rate that the user wrote was meant for the optimizer that he did not write.
    if absent("train", "optimizer", "lr", "head_lr"):
        yield "train.optimizer", '"sgd"', best
        yield "train.lr", str(SGD_LR), "for sgd on clipped gradients"
        if absent("train", "momentum"):
            yield "train.momentum", "0.9", best
    if not _table(tree, "strategy"):
        yield "strategy.name", '"ffa"', f"A is frozen: {best}"


def _need_sound(text: str, config: Config, table: str) -> None:
    """Raise what keeps noise from being planned, with every other fault of the config."""
    kind, part = check.KINDS[table]
    plugin = getattr(config, table)
    options = {**plugin.options, "noise_multiplier": 1.0}
    faults = plugins.faults(kind, plugin.name, options, part, table)
    if not faults:
        return
    remedies = {
        f"{table}.delta": "write one below 1 / (number of records): how likely epsilon may fail",
        f"{table}.epsilon": "write what one may learn at most; 8 is usual, 1 is strong",
    }
    faults = tuple(
        Fault(fault.place, fault.problem, fault.remedy or remedies.get(fault.place, ""))
        for fault in faults
    )
    try:
        check.read(text)
    except ConfigError as error:
        # The missing noise is ours to fill in, once the rest is right.
        said = {fault.place for fault in faults} | {f"{table}.noise_multiplier"}
        faults += tuple(fault for fault in error.faults if fault.place not in said)
    raise ConfigError(faults)


def _enough(text: str, table: str, noise: float) -> float:
    """Noise for `table` under which what a sum really has is at least `noise`.

    Noise in whole numbers hides a little less than a Gaussian of its size, the coarser the less.
    """
    asked = noise
    for _ in range(_MOST_TRIES):
        config = parse(override(text, [f"{table}.noise_multiplier={asked!r}"]))
        if getattr(config, table).name != "distributed":
            return asked
        sums = check.build(config, "secure_sum")
        # A sum without noise inside is refused by `check.read`, with what to do.
        had = sums.multiplier(2**62, int(getattr(config, table).options["clients"]))
        if not had or had >= noise:
            return asked
        asked = float(f"{asked * 1.0005 * noise / had:.4g}")
    return asked


def _continual(config: Config) -> Continual:
    """The continual method, as far as planning needs it; faults of it are named elsewhere."""
    try:
        method: Continual = check.build(config, "continual")
    except ConfigError:
        return Continual(start=lambda phase: ())
    return method


def _has_sums(continual: Continual) -> int:
    """Whether clients release a sum at the end of a domain: 0 or 1."""
    names = ("layer.0.query.lora_A", "layer.0.query.lora_B", "head.weight", "head.bias")
    return int(continual.size(Manifest(names, ((2, 2), (2, 2), (2, 2), (2,)))) > 0)


def _tree(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}  # for `check.read` to refuse


def _table(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = tree.get(name)
    return table if isinstance(table, dict) else {}


def _name(tree: Mapping[str, Any], table: str) -> Any:
    return _table(tree, table).get("name", _NOT_PRIVATE[table])
