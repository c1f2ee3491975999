"""`perennial check`: what a config would do, in words."""

from __future__ import annotations

from ..core import check
from ..core.check_continual import need_ranks, why_left_out
from ..core.config import Config
from ..core.parts import Continual


def describe(text: str) -> str:
    """A few lines about the run that `text` describes.

    Raises:
        ConfigError: every fault at once; and then, that the adapter has too few ranks for the
            domains of the data.
        DataError: the data cannot be read as the config says.
    """
    config = check.read(text)
    source = check.build(config, "data")
    from ..data.deals import need_deal, records_per_client
    from ..data.stream import stream

    causal = config.model.name == "causal_lm"
    domains = stream(source.read(), config.domains, causal=causal)
    splits, names = domains.splits, [domain.name for domain in domains.domains]
    continual: Continual = check.build(config, "continual")
    need_ranks(config, continual, len(names))
    shards, rounds = config.shards, config.round
    need_deal(domains, shards, config.run.seed)
    held = "each node brings its own"
    if shards.split != "local":
        held = _held(records_per_client(domains, shards, config.run.seed))
    cohort = rounds.cohort or shards.num_clients
    return "\n".join(
        [
            "config is sound:",
            f"  data      {config.data.name}: {len(splits.train)} train, "
            f"{len(splits.validation)} validation, {len(splits.test)} test records",
            f"  domains   {len(names)}: {', '.join(names)}",
            f"  labels    {sum(len(domain.labels) for domain in domains.domains)}",
            f"  clients   {shards.num_clients}, dealt {shards.split}; {cohort} asked in a round",
            f"  records   {held}",
            f"  rounds    {_rounds(rounds.rounds, continual.rounds, len(names))}",
            f"  model     {config.model.name}; strategy {config.strategy.name}; "
            f"privacy {config.privacy.name}",
            f"  continual {', '.join(check.methods(config))}",
            *(f"  without   {why}" for why in why_left_out(config)),
            f"  updates   {check.build(config, 'secure_sum').describe(cohort)}",
            *_promises(config),
        ]
    )


def _rounds(trained: int, tuning: int, domains: int) -> str:
    """How many a domain takes, those that continual methods add at its end included."""
    each = trained + tuning
    added = f" ({trained} and {tuning} of the continual methods)" if tuning else ""
    return f"{each} per domain{added}, {each * domains} in all"


def _promises(config: Config) -> list[str]:
    """A line per unit that is promised something; one line where nothing is."""
    found = []
    for table, noun in (("privacy", "record"), ("user_privacy", "client")):
        part = check.build(config, table)
        if part.unit:
            said = part.terms
            found.append(
                f"  promise   epsilon {said['epsilon']:g} at delta {said['delta']:g} for each "
                f"{noun}; noise {said['noise_multiplier']:g} times the clip {said['clip']:g}"
            )
    return found or ["  promise   none: nothing bounds what updates tell of a record or a client"]


def _held(counts: list[int]) -> str:
    """Records per client; the least, the middle and the most where they are many."""
    if len(counts) <= 12:
        return "per client: " + ", ".join(str(count) for count in counts)
    ordered = sorted(counts)
    return f"per client: {ordered[0]} to {ordered[-1]}, the middle one {ordered[len(counts) // 2]}"
