"""The continual methods of a run that names none, and pairs of tables that do not go with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from itertools import groupby
from typing import Any

from . import plugins
from .config import Config, Plugin
from .errors import ConfigError, Fault
from .parts import Continual, Model, SecureSum

LASTING = ("model", "continual", "strategy")
"""Tables that give parameters, and what methods and strategy keep, their meaning: they stay as they
are from one domain update to the next."""

_CAUSAL = "causal_lm"
_DEFAULTS = ("replay", "ewc", "analytic_head")


def default_methods(config: Config) -> tuple[Mapping[str, Any], ...]:
    """What `[continual]` means where no method is named: replay, EWC and an analytic head.

    Without those that `left_out` names.
    """
    out = left_out(config)
    return tuple({"name": name} for name in _DEFAULTS if name not in out)


def left_out(config: Config) -> Mapping[str, str]:
    """Why a default method is not in force, by its name; nothing where methods are named.

    Left out are methods that need labels where the model is causal, those whose sums do not stand
    being rounded to so few bits as the run's; and, where users' privacy is promised, all that
    would be summed: noise for a whole user would drown it.
    """
    if not unnamed(config):
        return {}
    found = {name: _why_not(config, name) for name in _DEFAULTS}
    return {name: why for name, why in found.items() if why}


def why_left_out(config: Config) -> list[str]:
    """The default methods that are not in force, those with one reason together, for people."""
    return [
        f"{', '.join(name for name, _ in pairs)}: {why}"
        for why, pairs in groupby(left_out(config).items(), key=lambda pair: pair[1])
    ]


def unnamed(config: Config) -> bool:
    """Whether `[continual]` leaves the methods to the default."""
    return config.continual.name == "chain" and "methods" not in config.continual.options


def _why_not(config: Config, name: str) -> str:
    if name == _DEFAULTS[0]:
        return ""
    if config.user_privacy.name != "off":
        return f"[user_privacy] {config.user_privacy.name!r} adds noise that drowns what is summed"
    method: Continual = plugins.load("continual", name, {}, Continual)
    if method.classifies and config.model.name == _CAUSAL:
        return f"labels are needed, and [model] {_CAUSAL!r} completes text"
    bits = sum_bits(config)
    if bits and bits < method.bits:
        return f"[secure_sum] bits = {bits} are too few for what is summed (write bits = 16)"
    return ""


def lasting(config: Config) -> dict[str, Any]:
    """The tables that last, as JSON holds them, with the default methods as if they were named.

    What is written may stay the same while other tables take a default method away.
    """
    tables = config.model_dump(mode="json", include=set(LASTING))
    if unnamed(config):
        tables["continual"]["methods"] = [dict(method) for method in default_methods(config)]
    return tables


def sum_bits(config: Config) -> int:
    """To how many bits sums are rounded; 0 where they are not, or where it is not known."""
    return _whole("privacy", config.secure_sum, SecureSum, "secure_sum", "bits")


def _whole(kind: str, plugin: Plugin, part: Any, table: str, option: str) -> int:
    """A whole number among a plug-in's options or their defaults; 0 where it is not known."""
    try:
        found = plugins.find(kind, plugin.name, part, table)
    except ConfigError:  # named as a fault of its own table
        return 0
    parameter = signature(found).parameters.get(option)
    value = plugin.options.get(option, 0 if parameter is None else parameter.default)
    return value if isinstance(value, int) else 0


def need_ranks(config: Config, method: Continual, num_domains: int) -> None:
    """Check that the adapter has ranks for all domains, before any is learnt.

    Args:
        config: whole.
        method: what `[continual]` builds.
        num_domains: of the run, as its data has them.

    Raises:
        ConfigError: it has too few.
    """
    if faults := list(_rank_faults(config, method, num_domains)):
        raise ConfigError(faults)


def _rank_faults(config: Config, method: Continual, num_domains: int) -> Iterator[Fault]:
    rank = _whole("models", config.model, Model, "model", "rank")
    need = num_domains * method.ranks
    if rank and need > rank:
        yield Fault(
            "model.rank",
            f"must be at least {need}: each of {num_domains} domains takes {method.ranks} of the "
            f"adapter's ranks for itself ([continual] mode = 'slices'); got {rank}",
            f"write rank = {need}, a lower rank_per_domain, or mode = 'adapters' without "
            "rank_per_domain and head, where any number of domains has room; what was learnt with "
            "other ranks or another mode must begin anew",
        )


def _num_named(config: Config) -> int:
    """How many domains the config itself names; 0 where only the data says how many there are."""
    table = config.domains
    return 1 if table.joint else len(table.order or table.groups)


def continual_faults(config: Config, method: Continual) -> Iterator[Fault]:
    """What does not go with the continual method.

    Args:
        config: whole.
        method: what `[continual]` builds.
    """
    name, bits = config.continual.name, sum_bits(config)
    if bits and bits < method.bits:
        yield Fault(
            "secure_sum.bits",
            f"must be at least {method.bits} for [continual] {name!r}: its sums do not stand being "
            f"rounded to {bits} bits",
            "write bits = 16",
        )
    if method.classifies and config.model.name == _CAUSAL:
        yield Fault(
            "continual.name",
            f"{name!r} needs a model with labels; {_CAUSAL!r} completes text",
            "use 'replay', 'ewc', or a chain of them",
        )
    if not config.round.rounds and not method.untrained:
        yield Fault(
            "round.rounds",
            f"must be at least 1 with [continual] {name!r}: it learns nothing by itself; got 0",
            "use 'analytic_head' with encoder = 'base', which needs no round",
        )
    yield from _rank_faults(config, method, _num_named(config))
    if config.train.replay_ratio and not method.replays:
        yield Fault(
            "train.replay_ratio",
            f"has no meaning with [continual] {name!r}, which replays nothing",
            "use 'replay', or leave it out",
        )
    if config.user_privacy.name != "off" and not method.users:
        yield Fault(
            "continual.name",
            f"{name!r} does not stand noise for whole users: it would drown what is summed, and "
            f"move what is to stand still; [user_privacy] is {config.user_privacy.name!r}",
            "use 'replay', which sums nothing, or 'none'",
        )
