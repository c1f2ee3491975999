"""Pairs of tables that would break a promise of privacy in silence, refused before a run."""

from __future__ import annotations

from collections.abc import Iterator

from .config import Config
from .errors import Fault
from .parts import Continual, Privatizer, SecureSum, Strategy, UserPrivatizer
from .private import Noise


def privacy_faults(
    config: Config,
    example: Privatizer,
    user: UserPrivatizer,
    sums: SecureSum,
    strategy: Strategy,
    continual: Continual,
    *,
    takes_noise: bool,
) -> Iterator[Fault]:
    """What does not go with the privacy that the config promises.

    Args:
        config: whole.
        example: of single records.
        user: of all that a client holds.
        sums: seals the updates.
        strategy: of the server.
        continual: of the clients.
        takes_noise: whether clients can add noise inside this sum.
    """
    if not example.unit and not user.unit:
        return
    yield from _leaks(config)
    if example.unit and not continual.private:
        yield Fault(
            "continual.name",
            f"{config.continual.name!r} computes from raw records what later steers training, "
            "and does not charge it",
            continual.remedy or "use a method that sums by `Phase.summed`, or name = 'none'",
        )
    if example.unit:
        for option in continual.unheeded:
            yield Fault(
                f"continual.{option}",
                "must be left out where single records are private: a record stays in memory for "
                "what it is itself, however many others there are",
                "write share, the part of its records that a client keeps (0.2, say)",
            )
    if example.unit and config.train.replay_ratio:
        yield Fault(
            "train.replay_ratio",
            "must be 0 where single records are private: whether a record is replayed would depend "
            "on how many others there are",
            "write replay_ratio = 0",
        )
    if example.unit and config.train.balanced:
        yield Fault(
            "train.balanced",
            "must be false where single records are private: with it the loss of a record depends "
            "on how many others have its label, which no clipping bounds",
            "write balanced = false",
        )
    if user.unit:
        yield from _user_faults(config, user, sums, strategy, takes_noise)


def _leaks(config: Config) -> Iterator[Fault]:
    if config.round.weight != "uniform":
        yield Fault(
            "round.weight",
            "must be 'uniform' in a private run: a weight by the number of records tells that "
            "number, and no ledger covers it; got 'records'",
            'write weight = "uniform"',
        )
    if config.evaluate.where == "clients":
        yield Fault(
            "evaluate.where",
            "must be 'server' in a private run: scores of clients' records are covered by no "
            "ledger; got 'clients'",
        )


def _user_faults(
    config: Config,
    user: UserPrivatizer,
    sums: SecureSum,
    strategy: Strategy,
    takes_noise: bool,
) -> Iterator[Fault]:
    name, sum_name = config.user_privacy.name, config.secure_sum.name
    if strategy.combine is not None:
        yield Fault(
            "strategy.name",
            f"{config.strategy.name!r} is no mean: how far one client moves it has no bound that "
            f"[user_privacy] {name!r} could add noise for",
            "use a rule that needs the mean only, such as 'fedavg'",
        )
    delta, clients = float(user.terms.get("delta", 0.0)), config.shards.num_clients
    if delta > 1.0 / clients:
        yield Fault(
            "user_privacy.delta",
            f"must be at most 1 / number of clients, 1/{clients}; got {delta:g}, which allows to "
            "publish all that one of them holds",
            f"write delta = {0.1 / clients:.0e} or less",
        )
    assert user.noise is not None
    if takes_noise:
        yield from _unbounded(user.noise, sums)
    if user.noise.multiplier and not takes_noise:
        yield Fault(
            "user_privacy.name",
            f"{name!r} adds noise inside a sum of whole numbers, which [secure_sum] "
            f"{sum_name!r} is not",
            "use secure_sum 'bfv' or 'masks'",
        )
    if not user.noise.multiplier and not takes_noise and not sums.single_updates:
        yield Fault(
            "user_privacy.name",
            f"{name!r} needs a bound on what one client adds, which [secure_sum] {sum_name!r} "
            "does not give",
            "use secure_sum 'bfv', 'masks' or 'plain'",
        )
    if user.noise.multiplier and user.noise.clients > sums.min_clients:
        yield Fault(
            "user_privacy.clients",
            f"must be at most [secure_sum] min_clients = {sums.min_clients}, so that no sum with "
            f"less noise is ever opened; got {user.noise.clients}",
            f"write min_clients = {user.noise.clients} in [secure_sum], or fewer clients here",
        )


def _unbounded(noise: Noise, sums: SecureSum) -> Iterator[Fault]:
    """A clip so small that no update of any size is left in whole levels."""
    try:
        sums.sensitivity(noise.clip, 1)
    except ValueError as error:
        yield Fault("user_privacy.clip", str(error))
