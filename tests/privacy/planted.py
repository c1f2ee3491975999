"""Bugs planted on purpose into the real code, and who must catch each of them.

A guard stops the step while it runs; a check refuses the config or the ledger; a test is a law that
is asserted below; the audit refutes the epsilon that is claimed. Every detector passes on the code
as it is.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from asking import NOTHING, answered, client, delta, start, task_of
from running import TINY
from running import run as run_whole
from torch import nn

from perennial.cli.overrides import override
from perennial.client import answers, promise, site, train
from perennial.client.parties import Own
from perennial.client.store import ClientStore
from perennial.continual import none as forgets
from perennial.core import check
from perennial.core.errors import BudgetError, ConfigError, PrivacyError, RunError
from perennial.core.parts import Continual, Strata, added
from perennial.core.private import LEDGER, Noise, one_cohort
from perennial.core.sums import Chance, Figures, Pact
from perennial.core.values import Spend
from perennial.privacy import (
    accounting,
    central,
    codec,
    dp_sgd,
    guards,
    ledger,
    masks,
    none,
    per_example,
    plain,
    sealed,
    shares,
    steps,
    stream,
)
from perennial.privacy.codec import Bounded, Front
from perennial.server import exchange
from perennial.simulations import audit
from perennial.simulations.trial import Trial, open_trial

TEXT = """
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 3
[train]
batch_size = 16
epochs = 2
[round]
weight = "uniform"
[continual]
name = "none"
[privacy]
name = "dp_sgd"
epsilon = 50.0
delta = 1e-3
noise_multiplier = 2.0
sample_rate = 0.5
"""
BATCH = 64
DISTRIBUTED = [
    'secure_sum.name="masks"',
    "secure_sum.clip=0.1",
    'user_privacy.name="distributed"',
    "user_privacy.epsilon=8.0",
    "user_privacy.delta=1e-3",
    "user_privacy.clip=1.0",
    "user_privacy.noise_multiplier=4.0",
    "user_privacy.clients=3",
]
CENTRAL = [
    'user_privacy.name="central"',
    "user_privacy.epsilon=8.0",
    "user_privacy.delta=1e-3",
    "user_privacy.clip=1.0",
    "user_privacy.noise_multiplier=4.0",
]
CONFIG: dict[str, list[str]] = {"settings": []}
"""What a config says beside TEXT; here the bugs of a config are planted."""


class Refuted(AssertionError):
    """The audit's lower bound is above the claim."""


CAUGHT: dict[str, Any] = {
    "guard": PrivacyError,
    "check": (ConfigError, RunError),
    "test": AssertionError,
    "audit": Refuted,
}
"""How each catcher speaks."""


@dataclass(frozen=True)
class Bug:
    """One deliberate mutation.

    Attributes:
        name: what is broken.
        by: who must catch it: a key of `CAUGHT`.
        says: words that the catcher's message must hold.
        plant: breaks the real code until the patch is undone.
        detect: passes on the code as it is; gets an empty folder.
        long: takes more than half a second.
    """

    name: str
    by: str
    says: str
    plant: Callable[[pytest.MonkeyPatch], None]
    detect: Callable[[Path], None]
    long: bool = False


@contextmanager
def planted(bug: Bug | None) -> Iterator[None]:
    """The code with `bug` in it, or as it is; what was computed before is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            if bug is not None:
                bug.plant(patch)
            _forget()
            yield
        finally:
            patch.undo()
            _forget()


def _forget() -> None:
    for cached in (_EPSILON, _POWER):
        cached.cache_clear()


_EPSILON, _POWER = accounting._epsilon, accounting._power


def caught(bug: Bug, folder: Path) -> str:
    """What the catcher of `bug` says.

    Raises:
        LookupError: nobody caught it, or somebody else did.
    """
    try:
        with planted(bug):
            bug.detect(folder)
    except CAUGHT[bug.by] as error:
        said = " ".join(str(error).split())
        if bug.says not in said:
            raise LookupError(
                f"{bug.name!r} must be caught by {bug.says!r}; it says {said}"
            ) from error
        return said
    raise LookupError(f"{bug.name!r} is caught by nothing")


# The real client, asked as its server asks it.


@cache
def world() -> site.Site:
    """One client's process; the model is tiny."""
    torch.manual_seed(5)
    return site.Site(TEXT, {}, Own())


def asked(folder: Path, index: int = 0, domain: int = 0, round: int = 0) -> Any:
    """A client's answer to a round: (body, metrics), the task and the client."""
    task, mine = task_of(world(), domain, round), client(world(), folder, index)
    return answered(world(), mine, task, start(world(), task), NOTHING), task, mine


def charges(folder: Path) -> list[Any]:
    path = folder / LEDGER
    lines = path.read_text().splitlines() if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["event"] == "charge"]


def a_round(folder: Path) -> None:
    asked(folder)


def two_domains(folder: Path) -> None:
    asked(folder)
    asked(folder, domain=1)


def two_clients(folder: Path) -> None:
    asked(folder)
    asked(folder, index=1)


def the_answer_is_noise(folder: Path) -> None:
    (body, _), task, _ = asked(folder)
    assert delta(world(), body, task).all(), "a value that no noise moved left the client"


def nothing_else_leaves(folder: Path) -> None:
    (_, metrics), _, _ = asked(folder)
    more = set(metrics) - {"weight", "epsilon.example", "releases.example"}
    assert not more, f"numbers that no ledger covers left: {', '.join(sorted(more))}"
    assert metrics["weight"] == 1.0, "the weight tells how many records there are"


def a_resend_is_free(folder: Path) -> None:
    first, _, _ = asked(folder)
    again, _, mine = asked(folder)
    assert first == again, "the same round was answered twice, with two noises"
    assert len(charges(mine.store.folder)) == 1


def the_answer_is_synced(folder: Path) -> None:
    synced: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = os.fsync

        def fsync(handle: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{handle}"))
            real(handle)

        patch.setattr(os, "fsync", fsync)
        asked(folder)
    assert any(name.endswith(".answer.new") for name in synced), "the answer left before it is kept"


def charged_before_training(folder: Path) -> None:
    def batches(*_: Any) -> Any:
        raise RuntimeError("the power went")

    mine = client(world(), folder)
    with pytest.MonkeyPatch.context() as patch:
        example = replace(world().promise.example, batches=batches)
        patch.setattr(world(), "promise", replace(world().promise, example=example))
        try:
            asked(folder)
        except RuntimeError:
            found = len(charges(mine.store.folder))
            assert found == 1, "records were used before their charge was on disk"


def replay_is_charged(folder: Path) -> None:
    old = world().shards.of(0, "bank", "train").take(range(20))
    with pytest.MonkeyPatch.context() as patch:
        method = replace(world().continual, dataset=lambda memory, shard, model: shard + old)
        patch.setattr(world(), "continual", method)
        _, _, mine = asked(folder, domain=1)
    paid = {spend["cohort"] for spend in charges(mine.store.folder)[-1]["spends"]}
    assert paid == {"bank", "clinic"}, f"of bank, which is replayed, and clinic only {paid} paid"


def statistics_are_charged_and_noised(folder: Path) -> None:
    task, mine = task_of(world()), client(world(), folder)
    records = world().shards.of(0, "bank", "train")
    phase = world()._phase(world().asked(mine, task, "a run"), NOTHING)
    found = phase.summed([np.ones((len(records), 4), np.float32)], records, 2.0)
    kinds = [entry["place"]["kind"] for entry in charges(mine.store.folder)]
    assert kinds == ["statistics"], "a sum over records was not charged"
    assert not np.array_equal(found, np.rint(found)), "a sum over records has no noise"


def secrets_are_fresh(folder: Path) -> None:
    found = []
    for index, round_ in ((0, 0), (1, 0), (0, 1)):
        _, _, mine = asked(folder, index, 0, round_)
        content = (mine.store.folder / "answer.bin").read_bytes()
        head = json.loads(content[4 : 4 + int.from_bytes(content[:4], "big")])
        found.append(head["secret"])
    assert len(set(found)) == 3, "two updates draw their share of noise from one secret"


def pulls_are_felt(folder: Path) -> None:
    found = []
    for strength in (0.0, 1e3):
        task = task_of(world())
        world().model.load(start(world(), task))
        anchor = {n: p.detach() + 1.0 for n, p in world().model.parameters().items()}
        pull = lambda now, mu=strength, a=anchor: {n: mu * (now[n] - a[n]) for n in now}  # noqa: E731
        found.append(trained_with(pull))
    assert not np.array_equal(*found), "a pull of strength 1000 changes nothing"


def trained_with(pull: Any) -> Any:
    """The parameters after a round whose batches and noise are always the same."""
    records = world().shards.of(0, "bank", "train").take(range(12))
    fixed = replace(
        world().promise.example,
        batches=lambda *_: iter([np.arange(8), np.arange(4, 12)]),
        steps=lambda epochs: 2,
        session=lambda module, parameters, batch: steps.session(
            module,
            parameters,
            batch,
            clip=1.0,
            noise_multiplier=2.0,
            normals=stream.Stream(bytes(32)).normal,
        ),
    )
    train.train(
        world().model,
        world().model.encode(records),
        one_cohort(12),
        world().config.train,
        train.Schedule(0, 1, 0.0, "constant"),
        fixed,
        train.Forces((pull,)),
        frozenset(world().model.parameters()),
        (),
        np.random.default_rng(0),
    )
    return world().model.vector()


# Steps on a model of two layers.


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 20))


def opened(module: nn.Module, noise: float = 2.0, **more: Any) -> Any:
    named = dict(module.named_parameters())
    return steps.session(module, named, 8, clip=0.5, noise_multiplier=noise, **more)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def noise_of_a_process() -> torch.Tensor:
    """What a step without a record gives in a process that remembers nothing."""
    module = two_layers()
    with pytest.MonkeyPatch.context() as process:
        process.setattr(steps, "SEEN", guards.Freshness())
        with opened(module) as session:
            session.release(sgd(module))
    return torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]


def noise_is_new_in_each_process(folder: Path) -> None:
    assert not torch.equal(noise_of_a_process(), noise_of_a_process()), "two processes, one noise"


def an_empty_step(folder: Path) -> None:
    module = two_layers()
    optimizer = sgd(module)
    with opened(module) as session:
        session.release(optimizer)
        optimizer.step()
        session.stepped()


def a_step_then_an_empty_one(folder: Path) -> None:
    module = two_layers()
    optimizer = sgd(module)
    with opened(module) as session:
        session.backward(module(torch.linspace(-1, 1, 48).reshape(8, 6)).square().sum(1), 8)
        for _ in range(2):
            session.release(optimizer)
            optimizer.step()
            session.stepped()


def each_record_is_clipped(folder: Path) -> None:
    module, inputs = two_layers(), torch.linspace(-1, 1, 48).reshape(8, 6)

    def losses() -> torch.Tensor:
        targets = torch.arange(8) % 4
        found = nn.functional.cross_entropy(module(inputs), targets, reduction="none")
        return found * torch.logspace(-1.5, -0.3, 8)

    rows = []
    for i in range(8):
        alone = torch.autograd.grad(losses()[i], list(module.parameters()))
        rows.append(torch.cat([g.flatten() for g in alone]))
    wanted = sum(row * min(1.0, 0.5 / float(row.norm())) for row in rows)
    quiet = stream.Stream(bytes(32)).normal
    with opened(module, noise=1e-6, normals=quiet) as session:
        session.backward(losses(), 8)
        session.release(sgd(module))
        found = torch.cat([p.grad.flatten() for p in module.parameters()]) * 8  # type: ignore[union-attr]
    error = float((found - wanted).norm() / wanted.norm())  # type: ignore[operator, union-attr]
    assert error < 1e-3, f"the sum is not that of records clipped one by one: off by {error:.1%}"


def sums_lie_on_a_grid(folder: Path) -> None:
    totals = torch.linspace(-1, 1, 1000, dtype=torch.float64) / 3
    cells = steps.with_noise(totals, stream.Stream().normal(1000), 0.3) * 2.0**22
    assert torch.equal(cells, cells.round()), "the last bits of a float tell the sum"


def streams_are_never_stored(folder: Path) -> None:
    try:
        pickle.dumps(stream.Stream())
    except TypeError:
        return
    raise AssertionError("a stream of secret numbers can be written to a checkpoint")


# Who is drawn, and what for.


def dp(**more: Any) -> Any:
    options = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 1.2, "sample_rate": 0.1}
    return dp_sgd.build(**{**options, **more})


def as_drawn_as_charged(folder: Path) -> None:
    privatizer = dp(replay_rate=0.02)
    strata = Strata(("new", "old"), np.repeat([0, 1], [200, 300]))
    drawn = list(privatizer.batches(strata, 20, 40, np.random.default_rng(0)))
    counts = np.bincount(strata.of[np.concatenate(drawn)], minlength=2)
    for spend, size, count in zip(privatizer.spends(strata, 40), strata.sizes, counts, strict=True):
        q, trials = spend.sample_rate, size * spend.steps
        far = abs(count - q * trials) / math.sqrt(trials * q * (1 - q))
        assert far < 7, f"{spend.cohort} is drawn at {count / trials:.3g} and charged at {q:g}"


def each_record_by_itself(folder: Path) -> None:
    drawn = list(dp().batches(one_cohort(100), 10, 40, np.random.default_rng(0)))
    sizes = np.array([len(batch) for batch in drawn])
    spread = sizes.var() / (100 * 0.1 * 0.9)
    assert abs(spread - 1) < 7 * math.sqrt(2 / len(sizes)), "batches are no Poisson samples"


def as_many_steps_as_charged(folder: Path) -> None:
    privatizer, strata = dp(sample_rate=0.02), one_cohort(60)
    drawn, (spend,) = list(privatizer.batches(strata, 1, 2, None)), privatizer.spends(strata, 2)
    assert len(drawn) == spend.steps, f"{len(drawn)} steps tell which of {spend.steps} were empty"


def nobody_foresees_who_is_drawn(folder: Path) -> None:
    def draw() -> list[list[int]]:
        found = dp().batches(one_cohort(80), 8, 1, np.random.default_rng(0))
        return [batch.tolist() for batch in found]

    assert draw() != draw(), "a seed tells who is drawn"


def a_delta_for_these_records(folder: Path) -> None:
    for use in (lambda s: dp(delta=0.01).spends(s, 1), dp(delta=0.01).sum_spends):
        try:
            use(one_cohort(101))
        except PrivacyError:
            continue
        raise AssertionError("a delta of 1/100 was accepted for 101 records")


# The account.


USE = Spend(0.5, 2.0, 4, "first")


def account(folder: Path, target: float = 50.0) -> Any:
    return ledger.open_ledger(folder, "c0", unit="example", epsilon=target, delta=1e-5)


def place(domain: int) -> dict[str, Any]:
    return {"run": "r", "kind": "train", "domain": domain, "round": 0}


def the_ledger_is_for_life(folder: Path) -> None:
    said = [account(folder).charge(place(domain), [USE]).epsilon for domain in range(3)][-1]
    owed = accounting.epsilon([USE] * 3, 1e-5)
    assert said >= owed * 0.999, f"after three domains {said:.3g} is said, and {owed:.3g} spent"


def the_maximum_is_told(folder: Path) -> None:
    said = account(folder).charge(place(0), [USE, replace(USE, steps=1, cohort="other")]).epsilon
    owed = accounting.epsilon([USE], 1e-5)
    assert said >= owed, f"{said:.3g} is said, and one cohort spent {owed:.3g}"


def the_gate_is_shut(folder: Path) -> None:
    mine = account(folder, 3.0)
    try:
        for domain in range(9):
            mine.charge(place(domain), [USE])
    except BudgetError:
        return
    raise AssertionError(f"{mine.statement().epsilon:.3g} is spent under a promise of 3")


def never_below_dp_accounting(folder: Path) -> None:
    from dp_accounting.pld import privacy_loss_distribution as pld

    for spend in (Spend(0.1, 1.0, 20, ""),):
        one = pld.from_gaussian_mechanism(spend.noise_multiplier, sampling_prob=spend.sample_rate)
        wanted = one.self_compose(spend.steps).get_epsilon_for_delta(1e-5)
        found = accounting.epsilon([spend], 1e-5)
        assert found >= wanted, f"{found:.4f} is said where dp-accounting says {wanted:.4f}"


def config_is_sound(folder: Path) -> None:
    check.read.__wrapped__(override(TEXT, [*DISTRIBUTED, *CONFIG["settings"]]))


# Sums that are private to users: what clients add, decoded as the sum is.

# So many values that a tenth of the noise that is missing stands out by 14 deviations.
SIZE, CLIENTS, UNIT = 40_000, 10, 2.0**-11
NOISE = Noise(20 * 127 * UNIT, 1.0, CLIENTS)


def sums() -> Any:
    return masks.build(clip=127 * UNIT, bits=8, capacity=16, noise=NOISE)


def pact(scale: float) -> Pact:
    return Pact("run", 0, 0, 0, "m", "0" * 32, SIZE, scale, "")


def encoded(row: Any, scale: float = 127 * UNIT) -> Any:
    chance = Chance(np.random.default_rng(0), os.urandom(32))
    return sums().codec.encode(row.astype(np.float32), Figures(1.0, 0.5), pact(scale), chance)


def noise_is_as_planned(folder: Path) -> None:
    zeros = np.zeros(SIZE, np.float32)
    total = sum(encoded(zeros) for _ in range(CLIENTS)) % np.uint64(sums().codec.modulus)
    try:
        levels = sums().codec.decode(total, CLIENTS, pact(127 * UNIT)).total / UNIT
    except ValueError as error:
        raise AssertionError(f"the noise is out of its range: {error}") from error
    spread = float(levels.var()) / 2540.0**2
    far = abs(spread - 1) / math.sqrt(2 / SIZE)
    assert far < 6, f"the variance of the noise is {spread:.3g} times the planned one"


def the_scale_is_the_clip(folder: Path) -> None:
    encoded(np.zeros(SIZE), sums().scale(0.01, 1.0))


def figures_tell_nothing(folder: Path) -> None:
    front = Front(sums().codec.packing.bits).size
    rows = [np.zeros(SIZE), np.full(SIZE, 0.01)]
    read = [sums().codec._unpacked(encoded(row), front, SIZE)[:front] for row in rows]
    assert np.array_equal(*read), "what stands before the values tells of the update"


def rounding_keeps_the_clip(folder: Path) -> None:
    bound, rng = shares.Shares(Noise(40.0, 0.0, 1), 127, 1.0), np.random.default_rng(0)
    halves = np.full(3000, 40.0 / math.sqrt(3000), np.float32)
    worst = max(float(np.linalg.norm(bound.part(halves, rng))) for _ in range(20))
    assert worst <= bound.norm, (
        f"a client adds {worst:.1f} levels where the clip is {bound.norm:.1f}"
    )


def the_servers_noise_is_as_planned(folder: Path) -> None:
    user = central.build(epsilon=8.0, delta=1e-5, clip=1.0, noise_multiplier=3.0)
    found = user.add(np.zeros(20_000), 2.0)
    far = abs(float(found.var()) / 36.0 - 1) / math.sqrt(2 / len(found))
    assert far < 6, f"the server's noise has a deviation of {found.std():.3g}, and not of 6"


def sensitivity_counts_the_rounding(folder: Path) -> None:
    size = 10_000
    row = np.full(size, 0.51 * 2.0**-32, np.float32)
    summed = plain.build().add(None, row.tobytes(), 1.0, replace(pact(0.0), size=size)) * 2.0**-32
    clip, norm = float(np.linalg.norm(row)), float(np.linalg.norm(summed))
    said = plain.build().sensitivity(clip, size)
    assert norm <= said, f"one client adds {norm:.3g}, and noise is for {said:.3g}"


# Whole runs.


def two_runs_differ(folder: Path) -> None:
    settings = ['domains.order=["bank"]', "round.rounds=1", 'round.weight="uniform"', *CENTRAL]
    text = override(TINY, settings)
    first, again = (run_whole(folder / name, text)["adapter_hash"] for name in ("a", "b"))
    assert first != again, "the released model has no noise in it"


def no_sum_of_fewer_is_opened(folder: Path) -> None:
    settings = ['domains.order=["bank"]', "round.rounds=1", 'round.weight="uniform"', *DISTRIBUTED]
    fewer = ["shards.num_clients=5", "secure_sum.min_clients=5", "user_privacy.clients=5"]
    drops = ["simulation.faults.drop_rate=0.5", "round.retries=0", 'secure_sum.name="bfv"']
    try:
        run_whole(folder / "run", override(TINY, [*settings, *fewer, *drops, *CONFIG["settings"]]))
    except RunError as error:
        if "replies count" not in str(error):
            raise


# The audit.


@cache
def trial() -> Trial:
    return open_trial(check.read(override(TEXT, ["shards.num_clients=1", "privacy.delta=1e-5"])))


def the_claim_stands(folder: Path) -> None:
    found = audit.run_audit(trial(), audit.FULL, lambda line: None)
    worst = max(found.kinds, key=lambda kind: kind.bound.epsilon)
    if not found.passed:
        canaries = worst.kind.replace("_", "-")
        raise Refuted(
            f"epsilon 1 is claimed, and {canaries} canaries show at least {worst.bound.epsilon:.2f}"
        )


# What is planted.


def in_place_of(
    target: Any, name: str, made: Callable[[Any], Any]
) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant: `target.name` becomes `made(what it was)`."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(target, name, made(getattr(target, name)))

    return plant


def both(*plants: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant one after another."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for each in plants:
            each(patch)

    return plant


def setting(*settings: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant: a config that says this."""
    return lambda patch: patch.setitem(CONFIG, "settings", list(settings))


no_noise = in_place_of(steps, "with_noise", lambda real: lambda total, normals, std: total.clone())
scaled_noise = in_place_of(
    steps,
    "with_noise",
    lambda real: lambda total, normals, std: real(total, normals, std / math.sqrt(BATCH)),
)


def _kept(real: Any) -> Any:
    drawn: dict[int, Any] = {}
    return lambda self, count: drawn.setdefault(count, real(self, count))


reused_noise = in_place_of(stream.Stream, "normal", _kept)
restored_noise = in_place_of(
    steps, "Stream", lambda real: lambda: real(b"of a checkpoint" * 2 + b"23")
)
unclipped = in_place_of(
    per_example.Activations,
    "add",
    lambda real: lambda self, losses, clip, sums: real(self, losses, math.inf, sums),
)


def _silent_norms(real: Any) -> Any:
    def add(self: Any, losses: Any, clip: float, sums: Any) -> Any:
        real(self, losses, math.inf, sums)
        return torch.full((len(losses),), clip)

    return add


def _clip_of_the_mean(real: Any) -> Any:
    def add(self: Any, losses: Any, clip: float, sums: Any) -> Any:
        found = [torch.zeros_like(each) for each in sums]
        real(self, losses, math.inf, found)
        norm = torch.cat([each.flatten() for each in found]).norm() / len(losses)
        for each, total in zip(found, sums, strict=True):
            total += each * (clip / norm).clamp(max=1.0)
        return torch.full((len(losses),), clip)

    return add


def _clip_per_tensor(real: Any) -> Any:
    def add(self: Any, losses: Any, clip: float, sums: Any) -> Any:
        squares, terms = [], self._terms(losses)
        for layer, term in terms:
            norms = [square.sqrt() for square in term.squares]
            factors = [(clip / norm).clamp(max=1.0) for norm in norms]
            squares += [(n * f).square() for n, f in zip(norms, factors, strict=True)]
            if layer.weight is not None:
                term.add_weight(factors[0], sums[layer.weight])
            if layer.bias is not None:
                term.add_bias(factors[-1], sums[layer.bias])
        self.forget()
        return torch.stack(squares).sum(0).sqrt()

    return add


class _NoGuards:
    """Guards that look away."""

    def __init__(self, module: Any, parameters: Any, *_: Any) -> None:
        self.device = next(iter(parameters.values())).device

    def __getattribute__(self, name: str) -> Any:
        device = object.__getattribute__(self, "__dict__").get("device")
        return lambda *_: device if name == "device" else None


unguarded = in_place_of(steps, "Guards", lambda real: _NoGuards)


def _copied_parameters(patch: pytest.MonkeyPatch) -> None:
    old = {n: p.detach().clone().requires_grad_() for n, p in world().model.parameters().items()}
    patch.setattr(type(world().model), "parameters", lambda self: old)


def _swapped_adapter(patch: pytest.MonkeyPatch) -> None:
    kind, calls = type(world().model), []
    real = kind.losses

    def losses(self: Any, batch: Any, answers: Any, free: Any = None, prior: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 2:
            name = next(iter(self.parameters()))
            tensor = self.parameters()[name]
            for module in self.module.modules():
                if module._parameters.get("weight") is tensor:
                    fresh = nn.Parameter(tensor.detach().clone(), requires_grad=False)
                    patch.setitem(module._parameters, "weight", fresh)
        return real(self, batch, answers, free)

    patch.setattr(kind, "losses", losses)


def _skips_empty_noise(real: Any) -> Any:
    return lambda self, optimizer: real(self, optimizer) if self._count else None


def _carried_over(real: Any) -> Any:
    def release(self: Any, optimizer: Any) -> None:
        kept = self._total.clone()
        real(self, optimizer)
        self._total += kept

    return release


def _charged_after(patch: pytest.MonkeyPatch) -> None:
    charge, spent = promise.Promise.charge_training, promise.Promise.spent
    waiting: list[Any] = []

    def later(self: Any, store: Any) -> Any:
        for arguments in waiting:
            charge(self, *arguments)
        return spent(self, store)

    patch.setattr(promise.Promise, "charge_training", lambda self, *given: waiting.append(given))
    patch.setattr(promise.Promise, "spent", later)


def _harmed(harm: Callable[[Path], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant: something befalls a ledger that was begun, before the next charge."""

    def made(real: Any) -> Any:
        def charge(self: Any, store: ClientStore, *rest: Any) -> Any:
            if (store.folder / LEDGER).exists():
                harm(store.folder)
            return real(self, store, *rest)

        return charge

    return in_place_of(promise.Promise, "charge_training", made)


def _cut(folder: Path) -> None:
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    (folder / LEDGER).write_bytes(b"".join(lines[:-1]))


def _edited(folder: Path) -> None:
    text = (folder / LEDGER).read_text()
    (folder / LEDGER).write_text(text.replace('"steps":4', '"steps":1'))


def _example(**changes: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant: functions of the client's privatizer, each made of the real one."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        now = world().promise
        broken = {name: made(getattr(now.example, name)) for name, made in changes.items()}
        patch.setattr(world(), "promise", replace(now, example=replace(now.example, **broken)))

    return plant


def _not_private(real: Any) -> Any:
    @functools.wraps(real)
    def build() -> Continual:
        return replace(real(), private=False)  # type: ignore[no-any-return]

    return build


def _penalty_in_the_loss(real: Any) -> Any:
    def wrong(model: Any, *given: Any) -> Any:
        (*front, forces, trainable, answers, rng) = given

        class Penalised:
            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

            def losses(self, batch: Any, answers: Any, free: Any = None, prior: Any = None) -> Any:
                found, now = model.losses(batch, answers, free), model.parameters()
                for pull in forces.pulls:
                    for name, gradient in pull(now).items():
                        found = found + (now[name] * gradient.detach()).sum() / len(found)
                return found

        return real(Penalised(), *front, train.Forces(), trainable, answers, rng)

    return wrong


def _seeded(real: Any) -> Any:
    draw = lambda count: np.random.default_rng(11).random(count)  # noqa: E731
    return lambda: SimpleNamespace(uniform=draw)


def _only_the_last_domain(real: Any) -> Any:
    def paid(lines: Any, unit: str) -> Any:
        last = [line["place"]["domain"] for line in lines][-1:]
        return real([line for line in lines if [line["place"]["domain"]] == last], unit)

    return paid


def _optimistic(rate: float, noise: float, width: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=width,
        pessimistic_estimate=False,
        use_connect_dots=False,
    )


def _one_is_silent(real: Any) -> Any:
    calls: list[int] = []

    def share(self: Any, size: int, secret: bytes) -> Any:
        calls.append(1)
        return np.zeros(size, np.int64) if len(calls) == 1 else real(self, size, secret)

    return share


BUGS: tuple[Bug, ...] = (
    # Noise.
    Bug("no noise", "guard", "the noise must have mean 0", no_noise, a_round),
    Bug("noise / sqrt(batch)", "guard", "standard deviation", scaled_noise, a_round),
    Bug("noise reused in the next step", "guard", "same came twice", reused_noise, a_round),
    Bug(
        "noise restored in the next round",
        "guard",
        "same came twice",
        restored_noise,
        two_domains,
    ),
    Bug(
        "noise seed restored in a new process",
        "test",
        "one noise",
        restored_noise,
        noise_is_new_in_each_process,
    ),
    Bug(
        "a stream of noise that can be stored",
        "test",
        "written to a checkpoint",
        in_place_of(stream.Stream, "__reduce__", lambda real: lambda self: (stream.Stream, ())),
        streams_are_never_stored,
    ),
    Bug(
        "sums not rounded to a grid",
        "test",
        "last bits",
        in_place_of(
            steps,
            "with_noise",
            lambda real: lambda total, normals, std: total + std * torch.from_numpy(normals),
        ),
        sums_lie_on_a_grid,
    ),
    Bug(
        "an empty batch steps without noise",
        "guard",
        "not released",
        in_place_of(steps._Steps, "release", _skips_empty_noise),
        an_empty_step,
    ),
    # The clip.
    Bug(
        "a step's sum carried into the next",
        "guard",
        "the sum of 0 has",
        in_place_of(steps._Steps, "release", _carried_over),
        a_step_then_an_empty_one,
    ),
    Bug("no clipping", "guard", "norm of at most 1", unclipped, a_round),
    Bug(
        "no clipping, and norms that lie",
        "test",
        "clipped one by one",
        in_place_of(per_example.Activations, "add", _silent_norms),
        each_record_is_clipped,
    ),
    Bug(
        "clipping tensor by tensor",
        "guard",
        "norm of at most 1",
        in_place_of(per_example.Activations, "add", _clip_per_tensor),
        a_round,
    ),
    Bug(
        "averaging before clipping",
        "test",
        "clipped one by one",
        in_place_of(per_example.Activations, "add", _clip_of_the_mean),
        each_record_is_clipped,
    ),
    # Model and optimizer.
    Bug(
        "a stale optimizer over copies",
        "guard",
        "the optimizer must hold every tensor",
        in_place_of(
            train,
            "_optimizer",
            lambda real: (
                lambda table, given: real(
                    table,
                    [
                        {**g, "params": [p.detach().clone().requires_grad_() for p in g["params"]]}
                        for g in given
                    ],
                )
            ),
        ),
        a_round,
    ),
    Bug(
        "a tensor left out of the optimizer",
        "guard",
        "the optimizer must hold every tensor",
        in_place_of(
            train,
            "_optimizer",
            lambda real: (
                lambda table, given: real(
                    table, [{**group, "params": group["params"][:-1]} for group in given]
                )
            ),
        ),
        a_round,
    ),
    Bug("tensors of a copy train", "guard", "train privately", _copied_parameters, a_round),
    Bug(
        "a copy trains and the original is sent",
        "guard",
        "not one value of it moved",
        in_place_of(site, "train", lambda real: lambda m, *given: real(copy.deepcopy(m), *given)),
        the_answer_is_noise,
    ),
    Bug(
        "an adapter swapped while it trains",
        "guard",
        "was replaced",
        _swapped_adapter,
        a_round,
    ),
    # Who is drawn.
    Bug(
        "empty batches skipped",
        "test",
        "were empty",
        in_place_of(
            dp_sgd,
            "poisson",
            lambda real: lambda *given: (batch for batch in real(*given) if len(batch)),
        ),
        as_many_steps_as_charged,
    ),
    Bug(
        "drawn at twice the rate that is charged",
        "test",
        "charged at",
        in_place_of(
            dp_sgd,
            "poisson",
            lambda real: lambda strata, q, replay, n: real(strata, 2 * q, replay, n),
        ),
        as_drawn_as_charged,
    ),
    Bug(
        "shuffled batches of one size",
        "test",
        "no Poisson samples",
        in_place_of(
            dp_sgd,
            "poisson",
            lambda real: (
                lambda strata, q, replay, n: none.shuffled(
                    len(strata), round(q * len(strata)), round(q * n), np.random.default_rng()
                )
            ),
        ),
        each_record_by_itself,
    ),
    Bug(
        "sampling from a seed",
        "test",
        "tells who is drawn",
        in_place_of(dp_sgd, "Stream", _seeded),
        nobody_foresees_who_is_drawn,
    ),
    Bug(
        "a delta above 1 / records",
        "test",
        "was accepted",
        in_place_of(dp_sgd, "_check_delta", lambda real: lambda *_: None),
        a_delta_for_these_records,
    ),
    # The ledger.
    Bug(
        "ledger written after training",
        "test",
        "before their charge",
        _charged_after,
        charged_before_training,
    ),
    Bug(
        "ledger reset per domain",
        "test",
        "after three domains",
        in_place_of(ledger, "_paid", _only_the_last_domain),
        the_ledger_is_for_life,
    ),
    Bug(
        "ledger deleted before the next domain",
        "check",
        "was deleted",
        _harmed(lambda folder: (folder / LEDGER).unlink()),
        two_domains,
    ),
    Bug("a line cut off the ledger", "check", "Lines were cut off", _harmed(_cut), two_domains),
    Bug("a charge made smaller", "check", "must be whole", _harmed(_edited), two_domains),
    Bug(
        "one ledger for two clients",
        "check",
        "must be of 00001-",
        _example(ledger=lambda real: lambda folder, client: real(folder.parent, client)),
        two_clients,
    ),
    Bug(
        "privacy switched off in a later domain",
        "check",
        "holds a promise of privacy",
        _example(
            ledger=lambda real: (
                lambda folder, client: (
                    none.NoLedger(folder, "example")
                    if (folder / LEDGER).exists()
                    else real(folder, client)
                )
            )
        ),
        two_domains,
    ),
    Bug(
        "a promise loosened in a later domain",
        "check",
        "which would break it",
        _example(
            ledger=lambda real: (
                lambda folder, client: ledger.open_ledger(
                    folder,
                    client,
                    unit="example",
                    epsilon=99.0 if (folder / LEDGER).exists() else 50.0,
                    delta=1e-3,
                )
            )
        ),
        two_domains,
    ),
    Bug(
        "replay uncharged",
        "test",
        "only {'clinic'} paid",
        _example(spends=lambda real: lambda strata, epochs: real(strata, epochs)[:1]),
        replay_is_charged,
    ),
    Bug(
        "replay charged to the new records",
        "test",
        "only {'clinic'} paid",
        in_place_of(
            promise,
            "strata_of",
            lambda real: lambda records, domain, *_: one_cohort(len(records), domain),
        ),
        replay_is_charged,
    ),
    Bug(
        "epsilon of the cohort that spent least",
        "test",
        "one cohort spent",
        in_place_of(
            ledger,
            "worst",
            lambda real: lambda accounts, delta: min(real([each], delta) for each in accounts),
        ),
        the_maximum_is_told,
    ),
    Bug(
        "a budget gate that stays open",
        "test",
        "under a promise of 3",
        lambda patch: patch.setattr(ledger, "_TOLERANCE", 1e9),
        the_gate_is_shut,
    ),
    Bug(
        "privacy losses rounded down",
        "test",
        "where dp-accounting says",
        lambda patch: patch.setattr(accounting, "_one_step", _optimistic),
        never_below_dp_accounting,
    ),
    # What leaves a client.
    Bug(
        "loss and times sent along",
        "test",
        "loss, seconds",
        lambda patch: patch.setattr(promise.Promise, "holds", property(lambda self: False)),
        nothing_else_leaves,
    ),
    Bug(
        "weights by count, in the client",
        "test",
        "how many records",
        in_place_of(site.Site, "_weight", lambda real: lambda self, count: float(count)),
        nothing_else_leaves,
    ),
    Bug(
        "weights by count, in the config",
        "check",
        "must be 'uniform' in a private run",
        setting('round.weight="records"', "round.max_weight=200.0"),
        config_is_sound,
    ),
    Bug(
        "scores of clients",
        "check",
        "scores of clients' records",
        setting('evaluate.where="clients"'),
        config_is_sound,
    ),
    Bug(
        "resend with fresh noise",
        "test",
        "with two noises",
        in_place_of(ClientStore, "recall", lambda real: lambda *_: None),
        a_resend_is_free,
    ),
    Bug(
        "an answer that leaves before it is synced",
        "test",
        "before it is kept",
        in_place_of(
            ClientStore,
            "remember",
            lambda real: (
                lambda self, ticket, salt, kept, sync: real(self, ticket, salt, kept, sync=False)
            ),
        ),
        the_answer_is_synced,
    ),
    # What steers training.
    Bug(
        "a penalty in the loss in place of a pull",
        "test",
        "changes nothing",
        in_place_of(train, "train", _penalty_in_the_loss),
        pulls_are_felt,
    ),
    Bug(
        "statistics of records uncharged",
        "test",
        "was not charged",
        in_place_of(
            site.Site,
            "_summed",
            lambda real: (
                lambda self, asked, rows, records, clip: self.promise.example.summed(rows, clip)
            ),
        ),
        statistics_are_charged_and_noised,
    ),
    Bug(
        "statistics of records without noise",
        "test",
        "has no noise",
        _example(summed=lambda real: lambda rows, clip: added(rows, None, clip)),  # type: ignore[arg-type]
        statistics_are_charged_and_noised,
    ),
    Bug(
        "a continual method on raw records",
        "check",
        "computes from raw records",
        in_place_of(forgets, "build", _not_private),
        config_is_sound,
    ),
    # Sums that are private to users.
    Bug(
        "one secret for all clients",
        "test",
        "from one secret",
        lambda patch: patch.setattr(answers, "secrets", SimpleNamespace(token_bytes=bytes)),
        secrets_are_fresh,
    ),
    Bug(
        "one noise for all clients",
        "test",
        "out of its range",
        in_place_of(
            shares.Shares, "share", lambda real: lambda self, size, _: real(self, size, bytes(32))
        ),
        noise_is_as_planned,
    ),
    Bug(
        "one client of ten without noise",
        "test",
        "times the planned one",
        in_place_of(shares.Shares, "share", _one_is_silent),
        noise_is_as_planned,
    ),
    Bug(
        "a scale that follows the updates",
        "guard",
        "must be the clip",
        in_place_of(sealed.SealedSum, "scale", lambda real: lambda self, peak, most: 1.5 * peak),
        the_scale_is_the_clip,
    ),
    Bug(
        "the peak told beside the values",
        "test",
        "tells of the update",
        in_place_of(
            codec,
            "Bounded",
            lambda real: (
                lambda values, cut, peak: Bounded(values, cut, float(np.abs(values).max()))
            ),
        ),
        figures_tell_nothing,
    ),
    Bug(
        "rounding that is not drawn again",
        "test",
        "where the clip is",
        both(
            in_place_of(shares.Shares, "_within", lambda real: lambda *_: True),
            in_place_of(shares.Shares, "kept", lambda real: lambda self, size: self.norm),
        ),
        rounding_keeps_the_clip,
    ),
    Bug(
        "sums of fewer shares than are counted on",
        "check",
        "no sum with less noise is ever opened",
        setting("user_privacy.clients=4", "shards.num_clients=5"),
        config_is_sound,
    ),
    Bug(
        "a server that adds no noise",
        "test",
        "the server's noise has",
        in_place_of(central, "_noised", lambda real: lambda total, deviation: total),
        the_servers_noise_is_as_planned,
    ),
    Bug(
        "noise for the clip without its rounding",
        "test",
        "and noise is for",
        in_place_of(plain._PlainSum, "sensitivity", lambda real: lambda self, clip, size: clip),
        sensitivity_counts_the_rounding,
    ),
    Bug(
        "a round that forgets the server's noise",
        "test",
        "has no noise in it",
        in_place_of(exchange, "_noised", lambda real: lambda room, waiting, opened: opened),
        two_runs_differ,
        long=True,
    ),
    Bug(
        "a server that opens sums of any number",
        "check",
        "a sum needs at least 5 clients",
        in_place_of(exchange, "quorum", lambda real: lambda room, size: 1),
        no_sum_of_fewer_is_opened,
        long=True,
    ),
    Bug(
        "such a server, and no masks",
        "check",
        "a sum must be over at least 5 clients",
        both(
            in_place_of(exchange, "quorum", lambda real: lambda room, size: 1),
            setting("secure_sum.masks=false"),
        ),
        no_sum_of_fewer_is_opened,
        long=True,
    ),
    # The same with every guard taken away.
    Bug(
        "no noise, no guards",
        "audit",
        "canaries show at least",
        both(unguarded, no_noise),
        the_claim_stands,
        long=True,
    ),
    Bug(
        "noise / sqrt(batch), no guards",
        "audit",
        "canaries show at least",
        both(unguarded, scaled_noise),
        the_claim_stands,
        long=True,
    ),
    Bug(
        "noise reused in the next step, no guards",
        "audit",
        "canaries show at least",
        both(unguarded, reused_noise),
        the_claim_stands,
        long=True,
    ),
    Bug(
        "no clipping, no guards",
        "audit",
        "canaries show at least",
        both(unguarded, unclipped),
        the_claim_stands,
        long=True,
    ),
)
"""Every mutation of the suite."""
