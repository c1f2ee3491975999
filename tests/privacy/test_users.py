"""Sums that are private to users: what clients add is bounded, and the noise is what was planned.

Proven through the real path, ciphertexts, masks and key holder: the noise of an opened sum has the
planned variance, with clients missing too; no digit wraps; what a client sends tells nothing else
of its data; a reseal repeats its noise and another update never does.
"""

import math
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from perennial.core import plugins
from perennial.core.errors import ConfigError, PrivacyError, RunError
from perennial.core.parts import SecureSum, UserPrivatizer
from perennial.core.private import Noise
from perennial.core.sums import Chance, Figures, Pact, Party
from perennial.privacy import bfv, ckks, masks, plain
from perennial.privacy.codec import Front
from perennial.privacy.packing import Packing, for_bfv, for_words
from perennial.privacy.shares import Shares, cut_to_norm

# A level is 2**-11: whole levels are float32 values, and rounding leaves them alone.
UNIT = 2.0**-11
CLIP = 127 * UNIT
SIZE, CLIENTS = 10_000, 10
# Worth 2540 levels.
NOISE = Noise(20 * CLIP, 1.0, CLIENTS)
SCALED = {"clip": CLIP, "bits": 8, "capacity": 16}


class Cohort:
    """A server, a key holder and clients, without any transport."""

    def __init__(self, sums, folder, key_files, num=CLIENTS):
        self.sums, self.rounds = sums, 0
        found = key_files(sums.scheme) if sums.scheme else ("", None, None)
        self.key, path, self.holder = found
        self.parties = {node: Party(node, folder / str(node), path) for node in range(num)}
        for party in self.parties.values():
            party.folder.mkdir(exist_ok=True)
        self.cards = {n: sums.join(p, "run-0") for n, p in self.parties.items()}

    def pact(self, size=SIZE, **changes):
        self.rounds += 1
        scale, session = self.sums.scale(0.0, 1.0), os.urandom(16).hex()
        fields = Pact("run-0", 0, self.rounds, 0, "m", session, size, scale, self.key)
        return replace(fields, **changes)

    def seal(self, node, row, pact, notes, secret=None, figures=None):
        chance = Chance(np.random.default_rng(node), secret or os.urandom(32))
        figures, note = figures or Figures(1.0, 0.5), notes.get(node, b"")
        return self.sums.seal(row, figures, pact, note, self.parties[node], chance)

    def total(self, rows, gone=(), secrets=None):
        """The opened sum of the rows of those who are not gone; all were paired."""
        pact = self.pact(rows.shape[1])
        nodes = range(len(rows))
        notes = self.sums.pair(pact, {node: self.cards[node] for node in nodes})
        total, counted = None, [node for node in nodes if node not in gone]
        for node in nodes:
            body = self.seal(node, rows[node], pact, notes, secrets and secrets[node])
            if node in counted:
                total = self.sums.add(total, body, 1.0, pact)
        asks = self.sums.ask(pact, notes, counted)
        reveals = {n: self.sums.reveal(pact, ask, self.parties[n]) for n, ask in asks.items()}
        closed = self.sums.close(total, pact)
        opened = self.holder.open(pact, counted, closed) if self.holder else closed
        return self.sums.result(opened, pact, counted, asks, reveals)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, key_files):
    made = {}

    def cohort(name, noise=NOISE, num=CLIENTS, **options):
        place = (name, noise, num, *sorted(options.items()))
        if place not in made:
            build = {"bfv": bfv.build, "masks": masks.build}[name]
            sums = build(**{**SCALED, **options}, noise=noise)
            made[place] = Cohort(sums, tmp_path_factory.mktemp("cohort"), key_files, num)
        return made[place]

    return cohort


def levels_of(seed, count, size=SIZE, norm=2400.0):
    """Whole levels [count, size], each row's L2 norm a little below `norm`."""
    found = np.random.default_rng(seed).normal(size=(count, size))
    found *= norm / np.sqrt((found**2).sum(axis=1, keepdims=True))
    return np.clip(np.trunc(found), -127, 127).astype(int)


def updates(levels):
    return (levels * UNIT).astype(np.float32)


def is_planned(noise, variance):
    """Whether whole numbers [n] have mean 0 and `variance`, by the chi-square test."""
    statistic = (noise**2).sum() / variance
    p = stats.chi2.cdf(statistic, noise.size)
    mean = abs(noise.mean()) < 5 * math.sqrt(variance / noise.size)
    return 1e-6 < p < 1 - 1e-6 and mean


# The noise of an opened sum


@pytest.mark.parametrize(
    ("name", "gone", "options"),
    [
        ("bfv", (), {}),
        ("bfv", (3, 8), {}),
        ("bfv", (3, 8), {"bits": 12, "clip": 2047 * UNIT}),
        ("bfv", (0,), {"keys": "public", "masks": False}),
        ("masks", (), {}),
        ("masks", (), {"bits": 16, "clip": 32767 * UNIT, "capacity": 64}),
    ],
    ids=str,
)
def test_the_noise_of_an_opened_sum_has_the_planned_variance(name, gone, options, cohort):
    world = cohort(name, **options)
    levels = levels_of(1, CLIENTS)
    found = world.total(updates(levels), gone)
    counted = CLIENTS - len(gone)
    left = [node for node in range(CLIENTS) if node not in gone]
    noise = found.total / UNIT - levels[left].sum(axis=0)
    assert np.array_equal(noise, np.rint(noise)), "levels are whole"
    variance = counted / CLIENTS * 2540.0**2
    assert is_planned(noise, variance)
    assert not is_planned(noise, variance * 1.2)
    assert not is_planned(noise, variance / 1.2)
    assert stats.kstest(noise / math.sqrt(variance), "norm").pvalue > 1e-6
    # The noise says nothing of the signal.
    signal = levels[left].sum(axis=0)
    assert abs(np.corrcoef(noise, signal)[0, 1]) < 5 / math.sqrt(SIZE)
    assert found.weight == counted


def test_fewer_clients_than_were_planned_have_as_much_less_noise(cohort):
    # With masks each client sees that there are fewer, and sends nothing.
    world = cohort("bfv", masks=False)
    levels = levels_of(2, 8)
    noise = world.total(updates(levels)).total / UNIT - levels.sum(axis=0)
    assert is_planned(noise, 0.8 * 2540.0**2)


def test_more_clients_than_were_planned_have_as_much_more(cohort):
    world = cohort("bfv", replace(NOISE, clients=5))
    levels = levels_of(3, CLIENTS)
    noise = world.total(updates(levels)).total / UNIT - levels.sum(axis=0)
    assert is_planned(noise, 2.0 * 2540.0**2)


@pytest.mark.parametrize("name", ["bfv", "masks"])
def test_with_next_to_no_noise_the_sum_is_exact(name, cohort):
    world = cohort(name, replace(NOISE, multiplier=1e-12))
    levels = levels_of(4, CLIENTS)
    assert np.array_equal(world.total(updates(levels)).total / UNIT, levels.sum(axis=0))


@pytest.mark.parametrize("name", ["bfv", "masks"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_full_cohort_at_its_extremes_does_not_wrap(name, sign, cohort):
    world = cohort(name, replace(NOISE, clients=1), 16)
    levels = np.zeros((16, 3000), int)
    levels[:, :300] = sign * 127
    found = world.total(updates(levels)).total / UNIT - levels.sum(axis=0)
    # Of 16 shares, each as wide as the plan for one.
    assert np.abs(found).max() < 6 * 4 * 2540
    assert is_planned(found, 16 * 2540.0**2)


def test_noise_is_new_each_round_and_for_each_client_and_the_same_in_a_reseal(cohort):
    world = cohort("bfv")
    zeros = np.zeros((CLIENTS, SIZE), np.float32)
    secrets = [os.urandom(32) for _ in range(CLIENTS)]
    first = world.total(zeros, secrets=secrets).total
    again = world.total(zeros, secrets=secrets).total
    other = world.total(zeros).total
    assert first.any()
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 5 / math.sqrt(SIZE)
    codec, pact = world.sums.codec, world.pact()
    shares = [codec.shares.share(pact.size, secret) for secret in secrets]
    assert np.array_equal(np.sum(shares, axis=0), np.rint(first / UNIT))
    assert abs(np.corrcoef(shares)[~np.eye(CLIENTS, dtype=bool)]).max() < 6 / math.sqrt(SIZE)


# What leaves a client


def sent(codec, row, pact, secret=b"s" * 32, figures=None, seed=0):
    """Slots that a client wraps, before any mask."""
    chance = Chance(np.random.default_rng(seed), secret)
    return codec.encode(row, figures or Figures(1.0, 0.5), pact, chance)


def values_in(codec, slots, size):
    """Levels [size] of one client, read as an opened sum of one is."""
    front = Front(codec.packing.bits).size
    return codec._unpacked(slots, front, size)[front : front + size] - codec.half


@pytest.mark.parametrize("name", ["bfv", "masks"])
def test_no_message_has_the_update_without_noise(name, cohort, monkeypatch):
    world = cohort(name, num=CLIENTS)
    seen = []
    wrap = type(world.sums.wrapping).wrap

    def watched(self, slots, pact, party):
        seen.append(slots.copy())
        return wrap(self, slots, pact, party)

    monkeypatch.setattr(type(world.sums.wrapping), "wrap", watched)
    levels = levels_of(5, CLIENTS)
    world.total(updates(levels))
    assert len(seen) == CLIENTS
    for slots, row in zip(seen, levels, strict=True):
        found = values_in(world.sums.codec, slots, SIZE)
        assert abs(np.corrcoef(found, row)[0, 1]) < 5 / math.sqrt(SIZE), "masks hide it all"
    # And without the masks, each share has its own noise.
    codec, pact = world.sums.codec, world.pact()
    for row in levels[:3]:
        slots = sent(codec, updates(row), pact, os.urandom(32))
        assert int(slots.max()) < codec.modulus
        assert is_planned(values_in(codec, slots, SIZE) - row, 2540.0**2 / CLIENTS)


def test_figures_tell_nothing(cohort):
    codec, pact = cohort("bfv").sums.codec, cohort("bfv").pact()
    packing, front = codec.packing, Front(codec.packing.bits).size
    rows = [np.zeros(SIZE, np.float32), np.full(SIZE, 1.0, np.float32), updates(levels_of(6, 1)[0])]
    read = []
    for row, loss in zip(rows, [0.5, 7.0, math.nan], strict=True):
        slots = sent(codec, row, pact, figures=Figures(1.0, loss))
        read.append(codec._unpacked(slots, front, SIZE)[:front])
    assert all(np.array_equal(digits, read[0]) for digits in read)
    assert packing.tail > 0
    opened = codec.decode(slots, 1, pact)
    assert (opened.weight, opened.saturated, opened.peak) == (1.0, 0, 0.0)
    assert math.isnan(opened.loss)


@pytest.mark.parametrize("multiplier", [0.0, 1.0])
def test_another_scale_or_weight_never_leaves_a_client(multiplier, cohort):
    world = cohort("bfv", replace(NOISE, multiplier=multiplier))
    row, pact = updates(levels_of(7, 1)[0]), world.pact()
    for scale in (CLIP / 2, CLIP * 2, math.nextafter(CLIP, 1.0)):
        with pytest.raises(PrivacyError, match=r"scale .* must be the clip"):
            world.seal(0, row, replace(pact, scale=scale), {})
    for weight in (0.0, 2.0, 250.0):
        with pytest.raises(PrivacyError, match=r"weight .* must be 1"):
            world.seal(0, row, pact, {}, figures=Figures(weight, 0.5))


@pytest.mark.parametrize("secret", [b"", b"x" * 31, b"x" * 33])
def test_without_its_secret_a_client_sends_nothing_and_spends_no_mask(secret, cohort):
    world = cohort("bfv", num=3)
    pact = world.pact()
    note, party = world.sums.pair(pact, world.cards)[0], world.parties[0]
    chance = Chance(np.random.default_rng(0), secret)
    with pytest.raises(PrivacyError, match="32 secret bytes"):
        world.sums.seal(np.zeros(SIZE, np.float32), Figures(1.0), pact, note, party, chance)
    assert not (party.folder / "pairs" / "session.json").exists()


@pytest.mark.parametrize("name", ["bfv", "masks"])
def test_a_server_that_pairs_fewer_clients_than_the_noise_counts_on_gets_nothing(name, cohort):
    world = cohort(name)
    pact = world.pact()
    few = {node: world.cards[node] for node in range(CLIENTS - 1)}
    notes = world.sums.pair(pact, few)
    with pytest.raises(PrivacyError, match=r"noise from 10 clients, and this node sees 9"):
        world.seal(0, np.zeros(SIZE, np.float32), pact, notes)
    notes = world.sums.pair(pact, world.cards)
    assert world.seal(0, np.zeros(SIZE, np.float32), pact, notes)


@pytest.mark.parametrize("build", [bfv.build, masks.build])
def test_neighbours_are_as_many_as_the_noise_needs(build, tmp_path):
    noise = replace(NOISE, clients=1000)
    large = {**SCALED, "capacity": 1024, "min_clients": 1000, "clip": CLIP}
    with pytest.raises(ConfigError, match=r"\[secure_sum.neighbours\] must be 0, or 999 or more"):
        build(**large, neighbours=2, noise=noise)
    assert build(**large, neighbours=2, noise=replace(noise, multiplier=0.0)).pairwise
    assert "masks with all 999 others" in build(**large, noise=noise).describe(1000)
    pins = tmp_path / "identities"
    pins.write_text("\n".join(f"{i:064x}" for i in range(1000)))
    with pytest.raises(ConfigError, match="must be 0, or 999 or more"):  # pins pair nobody
        build(**large, neighbours=2, identities=str(pins), noise=noise)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_never_leaves_a_client(value, cohort):
    world = cohort("bfv")
    row = np.zeros(SIZE, np.float32)
    row[7] = value
    with pytest.raises(RunError, match="finite"):
        world.seal(0, row, world.pact(), {})


def test_the_scale_is_the_clip_whatever_the_peaks_were(cohort):
    sums = cohort("bfv").sums
    assert {sums.scale(peak, most) for peak in (0.0, 1e-3, 9.0) for most in (1.0, 250.0)} == {CLIP}


def test_clients_and_servers_with_other_noise_never_add_up(cohort):
    world = cohort("masks")
    pact = world.pact()
    notes = world.sums.pair(pact, world.cards)
    body = world.seal(0, np.zeros(SIZE, np.float32), pact, notes)
    others = [
        None,
        replace(NOISE, multiplier=math.nextafter(1.0, 2.0)),
        replace(NOISE, clip=math.nextafter(NOISE.clip, 9.0)),
        replace(NOISE, clients=9),
    ]
    assert world.sums.add(None, body, 1.0, pact) is not None
    for noise in others:
        with pytest.raises(ValueError, match="must be"):
            masks.build(**SCALED, noise=noise).add(None, body, 1.0, pact)


@pytest.mark.parametrize("name", ["bfv", "masks"])
def test_garbage_is_noticed(name, cohort):
    codec, pact = cohort(name).sums.codec, cohort(name).pact()
    rng = np.random.default_rng(0)
    slots = rng.integers(0, codec.modulus, (codec.blocks(SIZE), codec.width), np.uint64)
    with pytest.raises(ValueError, match="garbage"):
        codec.decode(slots, CLIENTS, pact)
    for wrong in (8.0, -8.0):  # one value that noise does not explain, in a sum that is sound
        good = sent(codec, np.zeros(SIZE, np.float32), pact)
        digits = np.zeros(codec.packing.per_slot * good.size, np.int64)
        digits[Front(8).size + 5] = int(wrong * 2540 + math.copysign(300, wrong))
        extra = np.mod(codec.packing.pack(digits, good.size), codec.modulus).astype(np.uint64)
        bad = (good + extra.reshape(good.shape)) % np.uint64(codec.modulus)
        assert codec.decode(good, 1, pact).weight == 1.0
        with pytest.raises(ValueError, match="garbage"):
            codec.decode(bad, 1, pact)


# The bound


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from([8, 12, 16]),
    ratio=st.floats(0.5, 200.0),
    size=st.integers(1, 3000),
    spread=st.sampled_from([1e-4, 0.01, 0.5, 1.0, 100.0]),
    kind=st.sampled_from(["normal", "halves", "one", "flat"]),
    seed=st.integers(0, 2**32),
)
def test_what_a_client_adds_is_within_the_clip_whatever_it_holds(
    bits, ratio, size, spread, kind, seed
):
    half, rng = 2 ** (bits - 1) - 1, np.random.default_rng(seed)
    shares = Shares(Noise(ratio, 0.0, 1), half, 1.0)
    values = {
        "normal": rng.normal(size=size),
        "halves": (rng.integers(-half, half, size) + 0.5) / half / spread,
        "one": np.eye(1, size)[0] * 1e9,
        "flat": np.full(size, 1.0),
    }[kind]
    values = np.clip(values * spread, -1.0, 1.0).astype(np.float32)
    try:
        kept = shares.kept(size)
    except ValueError:
        with pytest.raises(PrivacyError, match="levels or more"):
            shares.part(values, rng)
        return
    levels = shares.part(values, rng)
    assert levels.dtype == np.int64
    assert sum(int(x) ** 2 for x in levels) <= shares.norm**2
    assert np.abs(levels).max() <= half
    # Within a level of the values, cut to a norm of `kept` levels.
    exact = values.astype(float) * half
    exact *= min(1.0, kept / max(np.linalg.norm(exact), 1e-30))
    assert np.abs(levels - exact).max() < 1.0 + 1e-6


def test_an_update_at_the_edge_of_the_clip_is_rounded_without_bias():
    shares = Shares(Noise(6.0, 0.0, 1), 127, 1.0)
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000).astype(np.float32)
    values *= np.float32(6.5 / np.linalg.norm(values))
    exact = values.astype(float) * 127 * shares.kept(values.size) / 127 / np.linalg.norm(values)
    errors = np.mean([shares.part(values, rng) - exact for _ in range(40)], axis=0)
    assert abs(errors.mean()) < 5 * 0.5 / math.sqrt(40 * errors.size)
    assert abs((errors * np.sign(exact)).mean()) < 5 * 0.5 / math.sqrt(40 * errors.size)


def test_a_rounding_is_rarely_drawn_again():
    shares, redrawn = Shares(Noise(6.0, 0.0, 1), 127, 1.0), []
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000).astype(np.float32)
    within = Shares._within
    for _ in range(200):
        exact = values * (shares.kept(values.size) / np.linalg.norm(values))
        drawn = np.floor(exact) + (rng.random(values.size) < exact - np.floor(exact))
        redrawn.append(not within(shares, drawn.astype(np.int64)))
    assert sum(redrawn) <= 2


def test_a_rounding_outside_the_clip_is_drawn_again_and_at_last_cut_towards_zero():
    class Up:
        """Rounds all up, a few times."""

        def __init__(self, times):
            self.times, self.drawn = times, 0

        def random(self, size):
            self.drawn += 1
            return np.zeros(size) if self.drawn <= self.times else np.ones(size) * 0.999999

    shares = Shares(Noise(3.0, 0.0, 1), 127, 1.0)
    values = np.full(10_000, 3.7 / 127, np.float32)
    for times, draws in ((0, 1), (1, 2), (5, 6)):
        rng = Up(times)
        assert np.dot(*[shares.part(values, rng)] * 2) <= shares.norm**2
        assert rng.drawn == draws
    assert set(shares.part(values, Up(10**9))) == {3}


def test_of_many_values_and_few_levels_a_client_refuses_and_a_server_says_so():
    sums = bfv.build(**SCALED, noise=Noise(2 * CLIP, 1.0, 3))
    assert sums.sensitivity(2 * CLIP, 20_000) == 2 * CLIP
    with pytest.raises(ValueError, match=r"Raise \[secure_sum\] bits"):
        sums.sensitivity(2 * CLIP, 300_000)
    with pytest.raises(PrivacyError, match=r"Raise \[secure_sum\] bits"):
        sums.codec.shares.part(np.zeros(300_000, np.float32), np.random.default_rng(0))


# What it says of itself


def test_sensitivities():
    sums = bfv.build(**SCALED, noise=NOISE)
    assert sums.sensitivity(NOISE.clip, SIZE) == NOISE.clip
    assert masks.build(**SCALED, noise=NOISE).sensitivity(NOISE.clip, SIZE) == NOISE.clip
    assert plain.build().sensitivity(1.0, 2**20) == 1.0 + 2.0**-23
    for other in (bfv.build(**SCALED), ckks.build(clip=1.0)):
        with pytest.raises(ValueError, match="private to users"):
            other.sensitivity(1.0, SIZE)


def test_the_rounding_of_a_sum_in_the_clear_is_in_its_sensitivity():
    sums, rng = plain.build(), np.random.default_rng(0)
    pact = Pact("run", 0, 0, 0, "", "0" * 32, 1000, 0.0, "")
    row = cut_to_norm(rng.normal(size=1000).astype(np.float32), 1e-6)
    closed = sums.close(sums.add(None, row.tobytes(), 1.0, pact), pact)
    found = sums.result(closed, pact, [0], {}, {})
    assert np.linalg.norm(found.total) <= sums.sensitivity(1e-6, 1000)


def test_multipliers_follow_from_the_shares_that_were_counted():
    sums = bfv.build(**SCALED, noise=NOISE)
    for counted in (3, 8, 10, 16):
        found = sums.multiplier(SIZE, counted)
        assert 0.99 * math.sqrt(counted / 10) < found < math.sqrt(counted / 10)
    assert sums.noise == NOISE
    for other in (
        bfv.build(**SCALED),
        bfv.build(**SCALED, noise=replace(NOISE, multiplier=0.0)),
        plain.build(),
        ckks.build(clip=1.0),
    ):
        assert other.multiplier(SIZE, 10) == 0.0


def test_it_says_that_clients_add_noise():
    assert "noise, 1 times the clip" in bfv.build(**SCALED, noise=NOISE).describe(10)
    assert "noise" not in bfv.build(**SCALED).describe(10)


@pytest.mark.parametrize("name", ["bfv", "masks"])
@pytest.mark.parametrize("noise", [{"clip": 1.0, "multiplier": 1.0, "clients": 3}, 1.0, "on"])
def test_noise_is_never_written_by_a_user(name, noise):
    with pytest.raises(ConfigError, match="noise"):
        plugins.load("privacy", name, {"clip": 1.0, "noise": noise}, SecureSum)


@pytest.mark.parametrize("name", ["bfv", "masks"])
def test_noise_comes_through_the_loader(name):
    assert plugins.load("privacy", name, {"clip": 1.0, "noise": NOISE}, SecureSum).noise == NOISE


@pytest.mark.parametrize("build", [bfv.build, masks.build])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clients": 17}, "clients"),
        ({"clients": 0}, "clients"),
        ({"clip": math.nan}, "clip"),
        ({"clip": 0.0}, "clip"),
        ({"multiplier": math.inf}, "noise_multiplier"),
        ({"multiplier": -1.0}, "noise_multiplier"),
        ({"multiplier": 1e9}, "noise_multiplier"),
    ],
)
def test_noise_that_cannot_be_added_is_refused(build, changes, words):
    with pytest.raises(ConfigError, match=words):
        build(**SCALED, noise=replace(NOISE, **changes))


def test_noise_that_no_slot_has_room_for_is_refused():
    with pytest.raises(ValueError, match=r"bits = 16 and capacity = 64 and noise .* multiplier"):
        for_bfv(16, 64, public=True, tail=2**50)
    with pytest.raises(ValueError, match=r"bits = 16 and capacity = 64 and noise .* multiplier"):
        for_words(16, 64, tail=2**60)


def test_the_radix_has_room_for_the_noise_on_either_side():
    packing = bfv.build(**SCALED, noise=NOISE).codec.packing
    assert packing.tail == pytest.approx(8 * 2540 * math.sqrt(1.6), rel=1e-3)
    assert packing.radix == 16 * 255 + 1 + 2 * packing.tail
    assert Packing(8, 16, 2).radix == 16 * 255 + 1


@settings(max_examples=100, deadline=None)
@given(
    form=st.sampled_from([(8, 16, 3, 500), (12, 64, 1, 10**6), (8, 3, 4, 9)]),
    count=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_signed_digits_add_up(form, count, seed):
    rng, size, packing = np.random.default_rng(seed), 25, Packing(*form)
    low, high = -packing.tail // 3, (packing.radix - 2 * packing.tail) // 3
    digits = rng.integers(low, high, (count, size))
    num, modulus = packing.num_slots(size), packing.radix**packing.per_slot
    total = sum(np.mod(packing.pack(row, num), modulus).astype(np.uint64) for row in digits)
    room = packing.pack(np.full(packing.per_slot * num, packing.tail, np.uint64), num)
    found = packing.unpack((total + room) % np.uint64(modulus), size).astype(int) - packing.tail
    assert np.array_equal(found, digits.sum(axis=0))


# Central: clients keep the clip, the server adds the noise

CENTRAL = {"epsilon": 8.0, "delta": 1e-5, "clip": 2.0, "noise_multiplier": 1.5}
DISTRIBUTED = {**CENTRAL, "clients": 7}


@cache
def central(**changes):
    return plugins.load("privacy", "central", {**CENTRAL, **changes}, UserPrivatizer)


@cache
def distributed(**changes):
    return plugins.load("privacy", "distributed", {**DISTRIBUTED, **changes}, UserPrivatizer)


def test_clients_that_only_keep_the_clip_send_as_many_bytes_and_the_sum_is_exact(cohort):
    world = cohort("bfv", replace(NOISE, multiplier=0.0, clients=1))
    assert world.sums.scheme == bfv.build(**SCALED).scheme
    levels = levels_of(8, CLIENTS)
    found = world.total(updates(levels))
    assert np.array_equal(found.total / UNIT, levels.sum(axis=0))
    assert (found.weight, found.saturated, found.peak) == (CLIENTS, 0, 0.0)


def test_a_client_beyond_the_clip_adds_no_more_than_it(cohort):
    world = cohort("bfv", replace(NOISE, multiplier=0.0, clients=1))
    rows = updates(levels_of(9, 3, norm=10_000.0))
    rows[1:] = 0.0
    found = world.total(rows).total
    assert 0.99 * NOISE.clip < np.linalg.norm(found) <= world.sums.sensitivity(NOISE.clip, SIZE)


def test_the_servers_noise_has_the_planned_variance_and_is_new_each_time():
    add = central().add
    total = np.random.default_rng(0).normal(size=SIZE)
    first, second = add(total, 2.0), add(total, 2.0)
    for noised in (first, second):
        noise = noised - total
        assert 1e-6 < stats.chi2.cdf((noise**2).sum() / 3.0**2, SIZE) < 1 - 1e-6
        assert stats.kstest(noise / 3.0, "norm").pvalue > 1e-6
        assert np.array_equal(noised, np.rint(noised * 2**19) / 2**19), "on a grid"
        assert np.abs(noised * 2**18 - np.rint(noised * 2**18)).max() > 0, "of that width"
    assert abs(np.corrcoef(first - total, second - total)[0, 1]) < 5 / math.sqrt(SIZE)


@pytest.mark.parametrize("sensitivity", [0.0, -1.0, math.nan, math.inf])
def test_a_sum_whose_sensitivity_is_unknown_is_not_noised_but_refused(sensitivity):
    with pytest.raises(PrivacyError, match="deviation"):
        central().add(np.zeros(3), sensitivity)
    with pytest.raises(PrivacyError, match="finite"):
        central().add(np.array([0.0, math.nan]), 1.0)


@settings(max_examples=100, deadline=None)
@given(
    clip=st.floats(1e-6, 1e6),
    spread=st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e30]),
    size=st.integers(0, 3000),
    seed=st.integers(0, 2**32),
)
def test_an_updates_norm_is_cut_to_the_clip(clip, spread, size, seed):
    row = (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)
    before = row.copy()
    found = cut_to_norm(row, clip)
    assert found.dtype == np.float32
    assert np.array_equal(row, before)
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in row))
    assert math.sqrt(math.fsum(float(x) ** 2 for x in found)) <= clip * (1 + 1e-12)
    if norm <= clip * (1 - 1e-12):
        assert np.array_equal(found, row)
    else:
        assert np.allclose(found, row * (clip / norm), rtol=1e-6, atol=1e-40)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_norm_of_an_update_that_is_not_finite_cannot_be_cut(value):
    for privatizer in (central(), distributed()):
        with pytest.raises(PrivacyError, match="finite"):
            privatizer.bound(np.array([1.0, value], np.float32))


def test_a_bound_update_is_within_the_clip():
    row = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    for privatizer in (central(), distributed()):
        assert 1.999 < np.linalg.norm(privatizer.bound(row).astype(float)) <= 2.0


def test_what_they_promise():
    server, clients = central(updates=52), distributed()
    assert (server.unit, clients.unit) == ("user", "user")
    assert (server.noise, clients.noise) == (Noise(2.0, 0.0, 1), Noise(2.0, 1.5, 7))
    assert (server.multiplier, clients.multiplier) == (1.5, 0.0)
    assert (server.terms["where"], clients.terms["where"]) == ("server", "clients")
    assert server.terms["updates"] == 52
    for privatizer in (server, clients):
        for key in ("epsilon", "delta", "clip", "noise_multiplier"):
            assert privatizer.terms[key] == CENTRAL[key]
    total = np.arange(3.0)
    assert clients.add(total, 1.0) is total


@pytest.mark.parametrize("build", [central, distributed])
@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"clip": 0.0},
        {"noise_multiplier": 0.0},
        {"updates": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(build, changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        build(**changes)


@pytest.mark.parametrize("name", ["central", "distributed"])
def test_nothing_of_a_promise_has_a_default(name):
    with pytest.raises(ConfigError) as error:
        plugins.load("privacy", name, {}, UserPrivatizer)
    needed = set(CENTRAL if name == "central" else DISTRIBUTED)
    assert {fault.place.split(".")[1] for fault in error.value.faults} == needed


@pytest.mark.parametrize("build", [central, distributed])
def test_their_ledger_is_of_users(build, tmp_path):
    pytest.importorskip("perennial.privacy.ledger")
    statement = build().ledger(tmp_path, "client-1").statement()
    assert (statement.unit, statement.target, statement.delta) == ("user", 8.0, 1e-5)
    assert (statement.epsilon, statement.releases) == (0.0, 0)


def test_a_whole_sum_with_central_noise(cohort):
    world = cohort("bfv", replace(NOISE, multiplier=0.0, clients=1))
    privatizer = central(clip=NOISE.clip, noise_multiplier=0.5)
    levels = levels_of(10, CLIENTS)
    opened = world.total(np.stack([privatizer.bound(row) for row in updates(levels)]))
    noised = privatizer.add(opened.total, world.sums.sensitivity(NOISE.clip, SIZE))
    noise = noised - levels.sum(axis=0) * UNIT
    assert is_planned(noise, (0.5 * NOISE.clip) ** 2)
