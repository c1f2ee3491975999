"""Config, plug-in options and impossible pairs, all faults at once; trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from inspect import signature
from typing import Any

from . import plugins
from .check_continual import continual_faults, default_methods, unnamed
from .check_privacy import privacy_faults
from .config import Config, Plugin, parse, suggest
from .errors import ConfigError, Fault
from .parts import (
    Continual,
    Export,
    KeyHolder,
    Model,
    Privatizer,
    SecureSum,
    Source,
    Strategy,
    UserPrivatizer,
)
from .private import Noise

KINDS: dict[str, tuple[str, Any]] = {
    "data": ("data", Source),
    "model": ("models", Model),
    "strategy": ("strategies", Strategy),
    "secure_sum": ("privacy", SecureSum),
    "keyholder": ("privacy", KeyHolder),
    "privacy": ("privacy", Privatizer),
    "user_privacy": ("privacy", UserPrivatizer),
    "continual": ("continual", Continual),
}
"""Config table -> (folder, what the plug-in's `build` returns)."""


def build(config: Config, table: str, **extra: Any) -> Any:
    """The plug-in that `[table]` names, built with its options and `extra`.

    Raises:
        ConfigError: as `plugins.load`.
    """
    kind, part = KINDS[table]
    plugin: Plugin = getattr(config, table)
    if table == "secure_sum":
        extra = {**_noise(config), **extra}
    options = _options(config, table)
    return plugins.load(kind, plugin.name, {**options, **extra}, part, place=table)


def methods(config: Config) -> list[str]:
    """Names of the continual methods that are in force, in order."""
    options = _options(config, "continual")
    if config.continual.name != "chain":
        return [config.continual.name]
    return [str(method.get("name", "")) for method in options["methods"]]


def _options(config: Config, table: str) -> dict[str, Any]:
    """The options of `[table]`, with the default methods where no continual method is named."""
    plugin: Plugin = getattr(config, table)
    options = plugin.options
    if table == "continual" and unnamed(config):
        options["methods"] = default_methods(config)
    return options


def _noise(config: Config) -> dict[str, Noise]:
    """What `[user_privacy]` asks of the sum, as an option that no file can hold."""
    user: UserPrivatizer = build(config, "user_privacy")
    if user.noise is None or not _takes_noise(config):
        return {}
    return {"noise": user.noise}


def _takes_noise(config: Config) -> bool:
    kind, part = KINDS["secure_sum"]
    found = plugins.find(kind, config.secure_sum.name, part, "secure_sum")
    return "noise" in signature(found).parameters


@lru_cache(maxsize=8)
def read(text: str) -> Config:
    """The config in `text`, with its plug-ins' options and its pairs checked.

    Raises:
        ConfigError: every fault found: of the file's own shape, or, where that holds,
            of the plug-ins and pairs.
    """
    config = parse(text)
    found = [fault for table in KINDS for fault in _plugin_faults(config, table)]
    if not found:
        found = list(_impossible(config))
    else:
        found += _impossible_values(config)
    if found:
        raise ConfigError(found)
    return config


def _plugin_faults(config: Config, table: str) -> tuple[Fault, ...]:
    kind, part = KINDS[table]
    plugin: Plugin = getattr(config, table)
    if table == "continual":
        return _continual_faults(config)
    if table == "secure_sum" and "noise" in plugin.options:
        # `build` has it for us alone: what its type should be is nothing that a file can write.
        options = {key: value for key, value in plugin.options.items() if key != "noise"}
        unknown = Fault("secure_sum.noise", "unknown option", "write [user_privacy] instead")
        return (unknown, *plugins.faults(kind, plugin.name, options, part, table))
    return plugins.faults(kind, plugin.name, plugin.options, part, table)


def _continual_faults(config: Config) -> tuple[Fault, ...]:
    kind, part = KINDS["continual"]
    name, options = config.continual.name, _options(config, "continual")
    found = plugins.faults(kind, name, options, part, "continual")
    if found:
        return found
    try:
        build(config, "continual")  # a chain finds the faults of its methods when it is built
    except ConfigError as error:
        return error.faults
    return ()


def _impossible(config: Config) -> Iterator[Fault]:
    yield from _impossible_values(config)
    try:
        secure_sum: SecureSum = build(config, "secure_sum")
    except ConfigError as error:  # options that do not fit each other
        yield from error.faults
        return
    strategy: Strategy = build(config, "strategy")
    if strategy.combine is not None and not secure_sum.single_updates:
        yield Fault(
            "strategy.name",
            f"{config.strategy.name!r} needs each client's own update, which "
            f"[secure_sum] {config.secure_sum.name!r} hides",
            "use a rule that needs the mean only, such as 'fedavg', or secure_sum 'plain'",
        )
    yield from _sum_faults(config, secure_sum)
    yield from continual_faults(config, build(config, "continual"))
    yield from privacy_faults(
        config,
        build(config, "privacy"),
        build(config, "user_privacy"),
        secure_sum,
        strategy,
        build(config, "continual"),
        takes_noise=_takes_noise(config),
    )


def _sum_faults(config: Config, secure_sum: SecureSum) -> Iterator[Fault]:
    clients, asked = config.shards.num_clients, config.round.cohort or config.shards.num_clients
    if secure_sum.capacity and clients > secure_sum.capacity:
        yield Fault(
            "secure_sum.capacity",
            f"must have room for shards.num_clients = {clients}, all of whom end a domain; got "
            f"{secure_sum.capacity}",
            f"write capacity = {clients} or more: uploads grow a little, and keys are made anew",
        )
    if asked < secure_sum.min_clients:
        yield Fault(
            "secure_sum.min_clients",
            f"must be at most the {asked} clients asked in a round; got {secure_sum.min_clients}",
            "ask more clients: a sum of fewer tells too much of each",
        )
    unbounded = config.round.max_weight == type(config.round)().max_weight
    if not secure_sum.single_updates and config.round.weight == "records" and unbounded:
        yield Fault(
            "round.max_weight",
            f"must be given with secure_sum {config.secure_sum.name!r}: weights are sealed too, "
            "and values are sent as parts of clip * max_weight",
            "write the largest number of records that a client may count for, or "
            'weight = "uniform"',
        )


def _impossible_values(config: Config) -> Iterator[Fault]:
    asked = config.round.cohort or config.shards.num_clients
    if config.round.cohort > config.shards.num_clients:
        yield Fault(
            "round.cohort",
            f"must be at most shards.num_clients = {config.shards.num_clients}; got {asked}",
            "lower it, or write 0 to ask every client",
        )
    if config.round.min_replies > asked:
        yield Fault(
            "round.min_replies",
            f"must be at most the {asked} clients asked in a round; got {config.round.min_replies}",
        )
    if config.train.accumulate > config.train.batch_size:
        yield Fault(
            "train.accumulate",
            f"must be at most batch_size = {config.train.batch_size}, so that a part holds a "
            f"record; got {config.train.accumulate}",
        )
    for name in ("balanced", "head_lr"):
        if getattr(config.train, name) and config.model.name == "causal_lm":
            yield Fault(
                f"train.{name}",
                "needs a model with labels and a head; 'causal_lm' completes text",
                "leave it out",
            )
    if config.domains.joint and config.domains.order:
        yield Fault("domains.order", "has no meaning with joint = true", "drop one of the two")
    rates = config.simulation.faults.model_dump()
    if sum(rates.values()) > 1.0:
        yield Fault(
            "simulation.faults",
            f"the rates must add up to at most 1; got {sum(rates.values()):g}",
        )
    yield from _backend_faults(config)
    known = plugins.names("export", Export)
    if "." not in config.export.profile and config.export.profile not in known:
        profile = config.export.profile
        problem = f"no export profile {profile!r}"
        yield Fault("export.profile", problem, suggest(profile, known))


def _backend_faults(config: Config) -> Iterator[Fault]:
    simulation = config.simulation
    ray = simulation.backend == "ray"
    if ray and (any(simulation.faults.model_dump().values()) or simulation.strict_wire):
        yield Fault(
            "simulation.backend",
            "'ray' is Flower's own engine: it has no seeded faults and no strict_wire",
            'use backend = "inline" or "processes" for those',
        )
    if config.train.precision == "bf16" and config.train.device == "cpu":
        yield Fault(
            "train.precision",
            "'bf16' is for CUDA devices; device is 'cpu'",
            'write precision = "auto" or "fp32"',
        )
