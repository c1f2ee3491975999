"""What holds for every sum in `privacy/`, so for a new file at once."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest

from perennial.core import plugins
from perennial.core.errors import ConfigError, RunError
from perennial.core.parts import SecureSum
from perennial.core.sums import Chance, Figures, Pact, Party

# Options that a sum requires; one that is not here is built with its defaults.
OPTIONS = {
    "bfv": {"clip": 1.0, "bits": 16},
    "ckks": {"clip": 1.0},
    "masks": {"clip": 1.0},
}
# Largest error of a value over the weight it is summed with, or over the scale for a sealed one.
ERROR = {"plain": 2.0**-32, "bfv": 1 / 32767, "masks": 1 / 32767, "ckks": 2.0**-20}

WEIGHTS = [3.0, 0.0, 1.0, 250.0]
MOST = 256.0
SIZE = 37


@pytest.fixture(params=plugins.names("privacy", SecureSum))
def named(request):
    name = request.param
    return name, plugins.load("privacy", name, OPTIONS.get(name, {}), SecureSum)


@pytest.fixture
def cohort(named, tmp_path, key_files):
    return Cohort(named[1], tmp_path, key_files)


class Cohort:
    """A server, a key holder and clients, without any transport."""

    def __init__(self, sums, folder, key_files, names=(11, 12, 13, 14)):
        self.sums, self.rounds = sums, 0
        found = key_files(sums.scheme) if sums.scheme else ("", None, None)
        self.key, self.client_key, self.holder = found
        self.parties = {node: Party(node, folder / str(node), self.client_key) for node in names}
        for party in self.parties.values():
            party.folder.mkdir(exist_ok=True)
        self.cards = {n: sums.join(p, "run-0") for n, p in self.parties.items()}

    def pact(self, size=SIZE, **changes):
        scale = self.sums.scale(0.0, MOST)
        # A key holder opens each round once.
        self.rounds += 1
        fields = Pact("run-0", 0, self.rounds, 0, "m", os.urandom(16).hex(), size, scale, self.key)
        return replace(fields, **changes)

    def seal(self, rows, weights, pact, notes, losses=None):
        """Bodies by node, in the order of the nodes."""
        bodies = {}
        losses = losses or [0.5] * len(rows)
        for node, row, weight, loss in zip(self.parties, rows, weights, losses, strict=False):
            chance = Chance(np.random.default_rng(node))
            figures = Figures(weight, loss)
            note = notes.get(node, b"")
            bodies[node] = self.sums.seal(row, figures, pact, note, self.parties[node], chance)
        return bodies

    def open(self, bodies, weights, pact, notes, order=None):
        """The sum of `bodies`; whoever was paired and is not in it has dropped out."""
        total, weight_of = None, dict(zip(self.parties, weights, strict=False))
        for node in order or bodies:
            total = self.sums.add(total, bodies[node], weight_of[node], pact)
        asks = self.sums.ask(pact, notes, list(bodies))
        reveals = {n: self.sums.reveal(pact, ask, self.parties[n]) for n, ask in asks.items()}
        closed = self.sums.close(total, pact)
        opened = self.holder.open(pact, sorted(bodies), closed) if self.holder else closed
        return self.sums.result(opened, pact, sorted(bodies), asks, reveals)

    def total(self, rows, weights, **kwargs):
        pact = self.pact(rows.shape[1])
        notes = self.sums.pair(pact, self.cards)
        return self.open(self.seal(rows, weights, pact, notes), weights, pact, notes, **kwargs)


def deltas(count, size=SIZE):
    return np.random.default_rng(count).uniform(-1, 1, (count, size)).astype(np.float32)


def tolerance(name, weights):
    unit = ERROR.get(name, 0.0)
    return unit * (sum(weights) if name == "plain" else MOST * len(weights))


def test_the_sum_of_sealed_deltas_is_the_weighted_sum(named, cohort):
    rows = deltas(4)
    found = cohort.total(rows, WEIGHTS)
    wanted = np.array(WEIGHTS) @ rows.astype(np.float64)
    assert found.total.dtype == np.float64
    assert np.abs(found.total - wanted).max() <= tolerance(named[0], WEIGHTS)


def test_weight_loss_and_peak_come_with_a_sealed_sum(cohort):
    if cohort.sums.single_updates:
        pytest.skip("they travel in the clear")
    rows = deltas(4) / 2
    found = cohort.total(rows, WEIGHTS)
    peak = max(w * float(np.abs(row).max()) for w, row in zip(WEIGHTS, rows, strict=True))
    assert found.weight == sum(WEIGHTS)
    assert found.loss == pytest.approx(0.5 * sum(WEIGHTS), rel=2e-3)
    assert peak <= found.peak <= peak * 2**0.26
    assert found.saturated == 0


def test_values_above_the_clip_are_cut_and_those_above_the_scale_are_counted(named, cohort):
    if cohort.sums.single_updates:
        pytest.skip("plain has no clip")
    rows = np.zeros((4, SIZE), np.float32)
    rows[0, :3] = 5.0, -5.0, 0.5
    pact = cohort.pact(scale=MOST / 4)
    notes = cohort.sums.pair(pact, cohort.cards)
    weights = [MOST, 1.0, 1.0, 1.0]
    found = cohort.open(cohort.seal(rows, weights, pact, notes), weights, pact, notes)
    assert found.saturated == 3
    assert found.total[:4] / MOST == pytest.approx([0.25, -0.25, 0.25, 0.0], abs=1e-3)


def test_zero_stays_exactly_zero(cohort):
    found = cohort.total(np.zeros((4, SIZE), np.float32), WEIGHTS)
    assert not found.total.any()


def test_the_order_does_not_count(cohort):
    rows = deltas(4)
    first = cohort.total(rows, WEIGHTS).total
    for order in ([14, 13, 12, 11], [12, 14, 11, 13]):
        assert np.array_equal(cohort.total(rows, WEIGHTS, order=order).total, first)


@pytest.mark.parametrize("size", [1, 5000])
def test_any_length(named, cohort, size):
    rows = deltas(4, size)
    found = cohort.total(rows, [1.0] * 4)
    assert found.total.shape == (size,)
    error = np.abs(found.total - rows.astype(np.float64).sum(axis=0)).max()
    assert error <= tolerance(named[0], [1.0] * 4)


def test_sealing_leaves_the_delta_alone_and_adding_the_body(cohort):
    rows, pact = deltas(4), cohort.pact()
    notes = cohort.sums.pair(pact, cohort.cards)
    bodies = cohort.seal(rows, WEIGHTS, pact, notes)
    kept = {node: bytes(bytearray(body)) for node, body in bodies.items()}
    cohort.open(bodies, WEIGHTS, pact, notes)
    assert bodies == kept
    assert np.array_equal(rows, deltas(4))


@pytest.mark.parametrize("count", [0, 1, 4, 52, 53, 1000])
def test_a_body_of_another_length_is_refused(cohort, count):
    pact = cohort.pact()
    with pytest.raises(ValueError, match="must"):
        cohort.sums.add(None, b"x" * count, 1.0, pact)


def test_a_body_of_another_size_round_session_or_scale_is_refused(cohort):
    pact = cohort.pact()
    notes = cohort.sums.pair(pact, cohort.cards)
    body = next(iter(cohort.seal(deltas(4), WEIGHTS, pact, notes).values()))
    others = [replace(pact, size=SIZE + 5000)]
    if not cohort.sums.single_updates:
        others += [
            replace(pact, round=99),
            replace(pact, attempt=1),
            replace(pact, session="0" * 32),
            replace(pact, scale=pact.scale * 2),
            replace(pact, key="0" * 32),
            replace(pact, run="other"),
        ]
    for other in others:
        with pytest.raises(ValueError, match="must"):
            cohort.sums.add(None, body, 1.0, other)


def test_a_refused_body_leaves_the_total_as_it_was(cohort):
    rows, pact = deltas(4), cohort.pact()
    notes = cohort.sums.pair(pact, cohort.cards)
    bodies = cohort.seal(rows, WEIGHTS, pact, notes)
    total = None
    for node, weight in zip(bodies, WEIGHTS, strict=True):
        total = cohort.sums.add(total, bodies[node], weight, pact)
        body = bytearray(bodies[node])
        before = cohort.sums.close(total, pact)
        with pytest.raises(ValueError, match="must"):
            cohort.sums.add(total, bytes(body[:-1]), weight, pact)
        if not cohort.sums.single_updates:
            body[-1] ^= 1
            with pytest.raises(ValueError, match="must"):
                cohort.sums.add(total, bytes(body), weight, pact)
        assert cohort.sums.close(total, pact) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_never_leaves_a_client(cohort, value):
    if cohort.sums.single_updates:
        pytest.skip("the server sees it and leaves it out")
    rows, pact = deltas(4), cohort.pact()
    rows[0, 5] = value
    notes = cohort.sums.pair(pact, cohort.cards)
    with pytest.raises(RunError, match="finite"):
        cohort.seal(rows, WEIGHTS, pact, notes)


@pytest.mark.parametrize("weight", [-1.0, 0.5, 2.0**21, math.nan])
def test_a_weight_that_is_not_whole_never_leaves_a_client(cohort, weight):
    if cohort.sums.single_updates:
        pytest.skip("the server sees it and leaves it out")
    pact = cohort.pact()
    notes = cohort.sums.pair(pact, cohort.cards)
    with pytest.raises(RunError, match="whole"):
        cohort.seal(deltas(4), [weight] * 4, pact, notes)


def test_who_dropped_out_is_not_in_the_sum(named, cohort):
    rows, pact = deltas(4), cohort.pact()
    notes = cohort.sums.pair(pact, cohort.cards)
    bodies = cohort.seal(rows, WEIGHTS, pact, notes)
    del bodies[12]
    if not cohort.sums.drops:
        # The masks of the lost one stand in the sum: it must not look like one.
        with pytest.raises((ValueError, RunError)):
            cohort.open(bodies, WEIGHTS, pact, notes)
        return
    found = cohort.open(bodies, WEIGHTS, pact, notes)
    left = [0, 2, 3]
    wanted = np.array(WEIGHTS)[left] @ rows[left].astype(np.float64)
    assert np.abs(found.total - wanted).max() <= tolerance(named[0], WEIGHTS)


def test_garbage_in_a_sealed_sum_is_noticed(named, cohort):
    if cohort.sums.single_updates:
        pytest.skip("the server judges each update by itself")
    pact = cohort.pact(5000)
    notes = cohort.sums.pair(pact, cohort.cards)
    bodies = cohort.seal(deltas(4, 5000), WEIGHTS, pact, notes)
    total = None
    for body in bodies.values():
        total = cohort.sums.add(total, body, 1.0, pact)
    closed = cohort.sums.close(total, pact)
    rng = np.random.default_rng(0)
    if cohort.holder:
        opened = cohort.holder.open(pact, sorted(bodies), closed)
        blocks = cohort.sums.codec.blocks(pact.size)
        slots = cohort.sums.wrapping.unwrap(opened, blocks)
        noise = (rng.random(slots.shape) * (cohort.sums.codec.modulus or 2.0**20)).astype(
            slots.dtype
        )

        class Garbage:
            unwrap = staticmethod(lambda *_: noise)

        broken = replace(cohort.sums, wrapping=Garbage, pairs=None)
        with pytest.raises(ValueError, match="garbage"):
            broken.result(opened, pact, sorted(bodies), {}, {})
    else:
        with pytest.raises(ValueError, match="garbage"):
            cohort.sums.result(rng.bytes(len(closed)), pact, sorted(bodies), {}, {})


def test_single_updates_can_be_read_only_where_the_sum_says_so(named, cohort):
    row, pact = deltas(1), cohort.pact()
    notes = cohort.sums.pair(pact, cohort.cards)
    body = cohort.seal(row, [3.0], pact, notes)[11]
    if not cohort.sums.single_updates:
        with pytest.raises(ValueError, match="must"):
            cohort.sums.single(body, pact)
        return
    read = cohort.sums.single(body, pact)
    assert read.dtype == np.float32
    assert np.abs(read - row[0]).max() <= ERROR[named[0]]
    with pytest.raises(ValueError, match="must"):
        cohort.sums.single(b"x", pact)


def test_a_sum_of_fewer_than_three_cannot_be_configured(named):
    name, sums = named
    if sums.single_updates:
        pytest.skip("the server sees every update anyway")
    with pytest.raises(ConfigError, match="min_clients"):
        plugins.load("privacy", name, {**OPTIONS[name], "min_clients": 2}, SecureSum)
    with pytest.raises(ConfigError, match="clip"):
        plugins.load("privacy", name, {}, SecureSum)


def test_it_says_in_one_line_how_it_protects(named):
    line = named[1].describe(12)
    assert line.strip()
    assert "\n" not in line
