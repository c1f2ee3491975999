"""Sealed sums of whole numbers are exact, digit by digit, up to the last client there is room for.

Proven: what is opened is the sum of the digits that the codec drew, masks on and up to 30 % of the
clients gone; the largest and the smallest digits of a full cohort neither carry nor wrap; rounding
is without bias and by less than one step; no nan passes.
"""

import math
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perennial.core import plugins
from perennial.core.errors import RunError
from perennial.core.parts import SecureSum
from perennial.core.sums import Chance, Figures, Pact, Party
from perennial.privacy.codec import LEAST_SCALE, Front, IntCodec, bound
from perennial.privacy.packing import for_bfv

pytestmark = pytest.mark.integration  # half a minute of sums

# The sizes that were measured: (bits, capacity).
FORMS = [(8, 16), (8, 64), (12, 64), (16, 64), (8, 256)]
MOST = 250


@dataclass
class Keeping:
    """A codec that keeps what goes through it."""

    codec: IntCodec
    sealed: list
    opened: list

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def encode(self, delta, figures, pact, chance):
        slots = self.codec.encode(delta, figures, pact, chance)
        self.sealed.append(slots)
        return slots

    def decode(self, slots, num_clients, pact):
        self.opened.append(slots)
        return self.codec.decode(slots, num_clients, pact)


class Cohort:
    """Up to `capacity` clients of one sum; made once, for their keys take time."""

    def __init__(self, name, options, folder, key_files):
        sums = plugins.load("privacy", name, {"clip": 1.0, **options}, SecureSum)
        self.codec = sums.codec
        self.kept = Keeping(sums.codec, [], [])
        self.sums = replace(sums, codec=self.kept)
        key, path, holder = key_files(sums.scheme) if sums.scheme else ("", None, None)
        self.key, self.holder, self.round = key, holder, 0
        self.folder, self.path, self.parties, self.cards = folder, path, {}, {}

    def party(self, node):
        if node not in self.parties:
            self.parties[node] = Party(node, self.folder / str(node), self.path)
            self.parties[node].folder.mkdir()
            self.cards[node] = self.sums.join(self.parties[node], "run")
        return self.parties[node]

    def total(self, rows, weights, scale, gone=()):
        """(the sum, the digits it was opened to, the sum of the digits that were sealed)."""
        nodes = range(1, len(rows) + 1)
        parties = {node: self.party(node) for node in nodes}
        self.round += 1
        session = os.urandom(16).hex()
        pact = Pact("run", 0, self.round, 0, "m", session, rows.shape[1], scale, self.key)
        notes = self.sums.pair(pact, {node: self.cards[node] for node in nodes})
        counted, total = [node for node in nodes if node not in gone], None
        wanted = np.zeros(0, np.int64)
        for node, row, weight in zip(nodes, rows, weights, strict=True):
            chance = Chance(np.random.default_rng([self.round, node]))
            figures, note = Figures(float(weight), 0.5), notes.get(node, b"")
            body = self.sums.seal(row, figures, pact, note, parties[node], chance)
            slots = self.kept.sealed.pop()
            if node in counted:
                total = self.sums.add(total, body, 1.0, pact)
                digits = self.digits(slots)
                assert digits.min() >= 0
                assert digits.max() < 2**self.codec.packing.bits
                wanted = wanted + digits if wanted.size else digits
        asks = self.sums.ask(pact, notes, counted)
        reveals = {n: self.sums.reveal(pact, ask, parties[n]) for n, ask in asks.items()}
        closed = self.sums.close(total, pact)
        opened = self.holder.open(pact, counted, closed) if self.holder else closed
        found = self.sums.result(opened, pact, counted, asks, reveals)
        return found, self.digits(self.kept.opened.pop()), wanted

    def digits(self, slots):
        packing = self.codec.packing
        return packing.unpack(slots.reshape(-1), packing.per_slot * slots.size)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, key_files):
    made = {}

    def cohort(name, **options):
        place = (name, *sorted(options.items()))
        if place not in made:
            made[place] = Cohort(name, options, tmp_path_factory.mktemp("cohort"), key_files)
        return made[place]

    return cohort


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["bfv", "bfv", "masks"]),
    form=st.sampled_from([(8, 16), (8, 64), (12, 64), (16, 64), (12, 16), (16, 16)]),
    num=st.integers(4, 12),
    gone=st.floats(0.0, 0.3),
    size=st.integers(1, 3000),
    scale=st.floats(1e-9, 1e6),
    spread=st.sampled_from([0.0, 1e-6, 0.01, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
@example("bfv", (8, 16), 12, 0.3, 700, 0.06, 0.01, 0)
@example("bfv", (16, 64), 4, 0.0, 1, 1.0, 1e3, 0)
def test_what_is_opened_is_the_sum_of_the_digits(
    cohort, name, form, num, gone, size, scale, spread, seed
):
    bits, capacity = form
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((num, size)) * spread * scale).astype(np.float32)
    weights = rng.integers(0, MOST, num)
    # At least two of a node's neighbours stay, and three in all.
    lost = rng.choice(num, min(int(gone * num), num - 3), replace=False) + 1
    lost = lost if name == "bfv" else ()
    world = cohort(name, bits=bits, capacity=capacity)
    found, opened, wanted = world.total(rows, weights, scale, lost)
    assert np.array_equal(opened, wanted)
    counted = [i for i in range(num) if i + 1 not in lost]
    start, half = Front(bits).size, world.codec.half
    levels = wanted[start:][:size] - len(counted) * half
    assert np.array_equal(found.total, levels.astype(float) * (scale / half))
    assert found.weight == weights[counted].sum()
    # And these digits are those of the vectors: each within a step of what it stands for.
    limit = np.array([min(1.0, scale / w) if w else 1.0 for w in weights])[:, None]
    kept = (np.clip(rows.astype(float), -limit, limit) * weights[:, None])[counted].sum(axis=0)
    assert np.abs(found.total - kept).max() <= len(counted) * scale / half * (1 + 1e-3)


@pytest.mark.parametrize("sign", [1, -1], ids=["all at +h", "all at -h"])
@pytest.mark.parametrize(("bits", "capacity"), FORMS)
def test_the_extremes_of_a_full_cohort_neither_carry_nor_wrap(bits, capacity, sign, cohort):
    # Neighbours are few because all of them would take minutes for 256.
    world = cohort("bfv", bits=bits, capacity=capacity, neighbours=4)
    rows = np.full((capacity, 50), sign, np.float32)
    found, opened, wanted = world.total(rows, [1.0] * capacity, 1.0)
    assert np.array_equal(opened, wanted)
    assert set(wanted[Front(bits).size :][:50]) == {capacity * world.codec.half * (1 + sign)}
    assert (found.total == sign * capacity).all()
    assert found.weight == capacity
    assert found.saturated == 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_values_that_are_cut_stay_within_the_digits(bits, sign):
    # The quotient scale / weight is rounded to float32, and up as often as down.
    codec = IntCodec(1.0, for_bfv(bits, 64, public=False), 4096, 2**60)
    rng, delta = np.random.default_rng(0), np.full(20_000, 10.0 * sign, np.float32)
    for _ in range(60):
        weight, scale = float(rng.integers(1, 500)), float(rng.uniform(0.001, 500))
        pact = Pact("run", 0, 0, 0, "m", "0" * 32, delta.size, scale, "")
        slots = codec.encode(delta, Figures(weight), pact, Chance(rng))
        front = Front(bits).size
        digits = codec.packing.unpack(slots.reshape(-1), front + delta.size)[front:]
        limit = min(1.0, scale / weight) * weight / scale * codec.half
        level = codec.half + sign * limit
        assert digits.min() >= max(0, math.floor(level - 1e-2))
        assert digits.max() <= min(2 * codec.half, math.ceil(level + 1e-2))


def drawn(bits, values, seed):
    """(levels, what they stand for) of float32 `values` at scale and weight 1."""
    codec = IntCodec(1.0, for_bfv(bits, 64, public=False), 4096, 2**60)
    levels = codec._digits(values, 1.0, np.random.default_rng(seed)).astype(np.int64) - codec.half
    return levels, values * np.float32(codec.half)


@pytest.mark.parametrize("value", [0.9, -0.9, 0.123, -0.3, 1e-5, 0.99999])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_rounding_has_no_bias_and_errs_by_less_than_a_step(bits, value):
    values, num, rounds = np.full(500_000, value, np.float32), 0, 8
    total, squares = 0.0, 0.0
    for seed in range(rounds):
        levels, exact = drawn(bits, values, seed)
        errors = levels - exact.astype(float)
        assert np.abs(errors).max() < 1.0
        total, squares, num = total + errors.sum(), squares + (errors**2).sum(), num + errors.size
    sigma = math.sqrt(squares / num / num)
    assert abs(total / num) < 5 * sigma
    assert sigma < 0.5 / math.sqrt(num) + 1e-12


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_whole_levels_are_not_rounded_at_all(bits):
    half = 2 ** (bits - 1) - 1
    values = (np.arange(-half, half + 1) / half).astype(np.float32)
    whole = values * np.float32(half) == np.arange(-half, half + 1)
    assert whole[[0, half, -1]].all()
    for seed in range(50):
        levels, _ = drawn(bits, values, seed)
        assert np.array_equal(levels[whole], np.arange(-half, half + 1)[whole])


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1, width=32), st.sampled_from([8, 12, 16]), st.integers(0, 2**32))
def test_a_value_and_its_negative_are_rounded_alike(value, bits, seed):
    levels, exact = drawn(bits, np.full(4000, value, np.float32), seed)
    mirror, _ = drawn(bits, np.full(4000, -value, np.float32), seed)
    assert set(levels) <= {math.floor(exact[0]), math.ceil(exact[0])}
    assert set(-mirror) <= {math.floor(exact[0]), math.ceil(exact[0])}


ODD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", ODD)
@pytest.mark.parametrize("name", ["bfv", "masks", "ckks"])
def test_no_nan_passes(name, bad, cohort):
    world = cohort(name) if name != "ckks" else cohort(name, preset="tight")
    pact = Pact("run", 0, 0, 0, "m", "0" * 32, 5, 1.0, world.key)
    party, chance = world.party(1), Chance(np.random.default_rng(0))
    row = np.array([0, 0.1, bad, 0.3, 0], np.float32)
    for delta, weight, scale in (
        (row, 1.0, 1.0),
        (row, 0.0, 1.0),
        (row[:2].repeat(3)[:5], bad, 1.0),
        (row[:2].repeat(3)[:5], 1.0, bad),
        (row[:2].repeat(3)[:5], 1.0, 0.0),
        (row[:2].repeat(3)[:5], 1.0, -1.0),
        (row[:2].repeat(3)[:5], 1.0, 5e-324),
        (row[:2].repeat(3)[:5], 1.0, LEAST_SCALE / 2),
    ):
        changed = replace(pact, scale=scale)
        with pytest.raises(RunError, match="must be"):
            world.sums.seal(delta, Figures(weight), changed, b"", party, chance)
    assert not (party.folder / "pairs" / "session.json").exists(), "no mask was spent"


@pytest.mark.parametrize("bad", ODD)
def test_a_loss_that_is_none_is_told_as_nothing(bad, cohort):
    world = cohort("bfv", masks=False)
    pact = Pact("run", 0, 0, 0, "m", "0" * 32, 5, 1.0, world.key)
    chance = Chance(np.random.default_rng(0))
    slots = world.codec.encode(np.zeros(5, np.float32), Figures(7.0, bad), pact, chance)
    found = world.codec.decode(slots, 1, pact)
    assert (found.weight, found.loss) == (7.0, 0.0)


@settings(max_examples=200, deadline=None)
@given(
    scale=st.floats(LEAST_SCALE, 1e300),
    weight=st.integers(0, 2**20),
    bits=st.sampled_from([8, 12, 16]),
    seed=st.integers(0, 2**32),
)
def test_any_scale_that_is_let_in_gives_digits(scale, weight, bits, seed):
    codec = IntCodec(1.0, for_bfv(bits, 16, public=False), 4096, 2**60)
    rng = np.random.default_rng(seed)
    wild = np.array([0.0, 1.0, -1.0, 1e-45, -1e-38, 3e38, *rng.standard_normal(20)], np.float32)
    pact = Pact("run", 0, 0, 0, "m", "0" * 32, wild.size, scale, "")
    bounded = bound(wild, float(weight), 1.0, pact)
    digits = codec._digits(bounded.values, weight / scale, rng)
    assert digits.max() <= 2 * codec.half
    assert digits[0] == codec.half
