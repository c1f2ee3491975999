"""A CKKS sum opens to a function of the messages alone, so that seeing it does not give the key.

Proven: the attack of Li and Micciancio (2021, ePrint 2020/1533) finds the secret key from what SEAL
decrypts, and does not from what the key holder answers; sums of a full cohort are exact to the last
bit; two encryptions of the same vectors open to the same bytes.
"""

import dataclasses
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from perennial.core import plugins
from perennial.core.errors import ConfigError, RefusedError
from perennial.core.parts import SecureSum
from perennial.core.sums import Chance, Figures, Pact
from perennial.privacy import ckks, keys, lattice, limits
from perennial.privacy.audit_log import AuditLog
from perennial.privacy.codec import Front
from perennial.privacy.holder import Holder
from perennial.privacy.ring import Form, add

FORMS = [(preset, model) for preset in ("tight", "nvflare") for model in ("public", "symmetric")]
FULL = limits.MOST_SUMMED
NODES = range(FULL)


@dataclass
class World:
    """Key holder, raw opener and clients of one key."""

    codec: ckks._FloatCodec
    scheme: object
    sealer: lattice.Sealer
    raw: lattice.Opener
    holder: Holder
    rounds: int = 0

    def encoded(self, seed, size=3000, spread=1.0):
        """Slots [P, N / 2] of one client."""
        rng = np.random.default_rng(seed)
        row = (rng.uniform(-1, 1, size) * spread).astype(np.float32)
        pact = Pact("run", 0, 0, 0, "m", "0" * 32, size, 1.0, "")
        return self.codec.encode(row, Figures(1.0, 0.5), pact, Chance(rng))

    def total(self, rows):
        """c0 and c1 of the sum, and the body that a server makes of them."""
        form, total = Form(self.scheme, seeded=self.scheme.model == "symmetric"), None
        for row in rows:
            sent = form.write(*self.sealer.encrypt(row))
            total = add(total, *form.read(sent, len(row)), self.scheme.primes)
        return total.c0, total.c1, Form(self.scheme, seeded=False).write(total.c0, total.c1)

    def answer(self, body):
        self.rounds += 1
        key = self.holder.fingerprint()
        pact = Pact("run", 0, self.rounds, 0, "m", "0" * 32, 1000, 1.0, key)
        return self.holder.open(pact, NODES, body)

    def slots(self, body):
        return np.frombuffer(self.answer(body), "<f8").reshape(-1, self.codec.width)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = {}

    def world(preset, model):
        if (preset, model) not in made:
            sums = ckks.build(clip=1.0, preset=preset, keys=model)
            secret, public = lattice.generate(sums.scheme)
            card = keys.Card("f" * 32, sums.scheme, "", 1)
            log = AuditLog(tmp_path_factory.mktemp("ckks") / "audit.jsonl")
            sealer = lattice.Sealer(sums.scheme, secret if model == "symmetric" else public)
            opener, kept = lattice.Opener(sums.scheme, secret), Holder(card, secret, 3, log)
            made[preset, model] = World(sums.codec, sums.scheme, sealer, opener, kept)
        return made[preset, model]

    return world


def transform(values, root, q):
    """sum_k values[k] * root**(i k) modulo q, for every i; root is of the order of the length."""
    if len(values) == 1:
        return values
    even, odd = (transform(values[i::2], root * root % q, q) for i in (0, 1))
    odd = odd * powers(root, len(odd), q) % q
    return np.concatenate([even + odd, even - odd]) % q


def powers(root, count, q):
    return np.array([pow(root, k, q) for k in range(count)], object)


def secret_by_the_openings(scheme, c0, c1, slots):
    """Coefficients of s from two ciphertexts and what they opened to; ternary if it worked.

    For p = c0 + c1 s the real parts of the slots give p(X) + p(1/X), whose noise is in it. With
    q at hand that is, at each root of X**N + 1, one equation in s there and at its inverse.
    """
    n, q = scheme.degree, scheme.primes[0]
    roots = (pow(g, (q - 1) // (2 * n), q) for g in range(2, 100))
    root = next(r for r in roots if pow(r, n, q) == q - 1)
    root = min(pow(root, k, q) for k in range(1, 2 * n, 2))  # SEAL's choice
    # Words are values at root**(2 i + 1), i with its bits reversed.
    order = [int(f"{i:0{n.bit_length() - 1}b}"[::-1], 2) for i in range(n)]
    a, b = (words[0, :2].astype(object)[:, order] for words in (c0, c1))
    sums = []
    for row in slots[:2]:
        spectrum = np.zeros(2 * n)
        spectrum[[pow(3, j, 2 * n) for j in range(n // 2)]] = row
        twice = np.rint(np.fft.fft(spectrum).real[:n] * 4 / n * scheme.scale)
        whole = np.array([int(x) for x in twice], object)
        sums.append(transform(whole * powers(root, n, q) % q, root * root % q, q))
    (t, u), (b0, b1) = (np.array(sums) - a - a[:, ::-1]), b
    bottom = (b0 * b1[::-1] - b0[::-1] * b1) % q
    inverse = np.array([pow(x, -1, q) for x in bottom], object)
    s = (t * b1[::-1] - u * b0[::-1]) * inverse % q
    back = pow(root, -1, q)
    s = transform(s, back * back % q, q) * powers(back, n, q) * pow(n, -1, q) % q
    return np.where(s > q // 2, s - q, s)


@pytest.mark.parametrize("model", ["public", "symmetric"])
def test_the_key_follows_from_raw_slots_and_not_from_the_answer(world, model):
    parties = world("tight", model)
    c0, c1, body = parties.total([parties.encoded(seed, spread=0.01) for seed in range(4)])
    found = secret_by_the_openings(parties.scheme, c0, c1, parties.raw.decrypt(c0, c1))
    assert set(found) == {-1, 0, 1}
    again = secret_by_the_openings(parties.scheme, c0, c1, parties.slots(body))
    assert len(set(again)) > 4000
    assert not set(again) <= {-1, 0, 1}


@pytest.mark.parametrize(("preset", "model"), FORMS)
def test_the_sum_of_a_full_cohort_is_exact_and_the_noise_far_from_half_a_step(world, preset, model):
    parties = world(preset, model)
    step = limits.grid(parties.scheme)
    rows = [parties.encoded(seed, 6000) for seed in range(FULL)]
    for row in rows:  # one ciphertext of extremes: its first coefficient is the largest there is
        row[0] = 1.0
        row[1, ::2] = -1.0
    wanted = np.sum(rows, axis=0)
    c0, c1, body = parties.total(rows)
    noise = np.abs(parties.raw.decrypt(c0, c1) - wanted)
    assert np.array_equal(parties.slots(body), wanted)
    assert step / 100 < noise.max() < step / 3


@pytest.mark.parametrize(("preset", "model"), FORMS)
def test_two_encryptions_open_to_the_same_bytes(world, preset, model):
    parties = world(preset, model)
    rows = [parties.encoded(seed) for seed in range(3)]
    rows.append(-sum(rows))  # so that all slots are zero
    for some in (rows[:3], rows):
        first, second = (parties.total(some)[2] for _ in range(2))
        assert first != second
        assert parties.answer(first) == parties.answer(second)
    assert parties.answer(second) == bytes(8 * rows[0].size), "no sign of the noise in a zero"


def test_rounding_by_the_key_holder_alone_would_tell_the_sign_of_the_noise(world):
    parties = world("tight", "public")
    between = [parties.encoded(0) + limits.grid(parties.scheme) / 2]
    first, second = (parties.slots(parties.total(between)[2]) for _ in range(2))
    assert 0.2 < (first != second).mean() < 0.8


def test_what_is_not_finite_is_refused(world, monkeypatch):
    parties = world("tight", "public")
    body = parties.total([parties.encoded(0)])[2]
    for bad in (math.nan, math.inf):
        opener = SimpleNamespace(decrypt=lambda *_, bad=bad: np.full((1, 2048), bad))
        monkeypatch.setattr(parties.holder, "_opener", opener)
        with pytest.raises(RefusedError, match="slots must be finite"):
            parties.answer(body)


@pytest.mark.parametrize(("preset", "model"), FORMS)
def test_the_grid(preset, model):
    power = -20 if model == "public" else -24
    sums = ckks.build(clip=1.0, preset=preset, keys=model)
    assert limits.grid(sums.scheme) == sums.codec.grid == 2.0**power
    assert sums.codec.grid <= 2.0**-ckks._BITS, "figures in front are multiples"
    # Twice the room, of a coefficient with its sign, that a full sum of ones takes.
    assert math.prod(sums.scheme.primes) > 3.99 * FULL * sums.scheme.scale
    coarse = dataclasses.replace(sums.scheme, scale=sums.scheme.scale / 8)
    assert limits.grid(coarse) == 8 * sums.codec.grid


def test_of_the_models_the_slots_differ_in_noise_as_the_grid_says(world):
    # Public keys: the noise of a slot is as wide as the key is large there.
    for model in ("public", "symmetric"):
        parties = world("tight", model)
        c0, c1, _ = parties.total([np.zeros((48, 2048))])
        sigma = np.sqrt((parties.raw.decrypt(c0, c1) ** 2).mean(axis=0))
        widest = sigma.max() * math.sqrt(FULL)
        assert 20 * widest < 1.5 * limits.grid(parties.scheme)  # 48 samples say so much
        assert (sigma.max() / np.median(sigma) > 2) == (model == "public")


def test_uploads_stay_below_twelve_bytes_a_value():
    sums = ckks.build(clip=1.0, keys="symmetric")
    size = 10**6
    assert sums.wrapping.size_bytes(sums.codec.blocks(size)) < 12 * size


def test_more_clients_than_the_grid_is_for_cannot_be_configured():
    options = {"clip": 1.0, "capacity": FULL}
    assert plugins.load("privacy", "ckks", options, SecureSum).capacity == FULL
    with pytest.raises(ConfigError, match="capacity"):
        plugins.load("privacy", "ckks", {**options, "capacity": FULL + 1}, SecureSum)


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-7, 1 - 2.0**-24])
def test_rounding_has_no_bias_and_errs_by_less_than_a_step(value):
    codec, num = ckks.build(clip=1.0).codec, 400_000
    row = np.full(num, value, np.float32)
    pact = Pact("run", 0, 0, 0, "m", "0" * 32, num, 1.0, "")
    chance = Chance(np.random.default_rng(0))
    slots = codec.encode(row, Figures(1.0), pact, chance).reshape(-1)
    values = slots[Front(ckks._BITS).size :][:num]
    errors = (values - float(row[0])) / codec.grid
    assert np.abs(errors).max() < 1.0
    assert len(set(values)) == 2
    assert abs(errors.mean()) < 5 * 0.5 / math.sqrt(num)


@pytest.mark.parametrize(("weight", "scale"), [(1.0, 1.0), (3.0, 0.7), (250.0, 2.0**-90)])
def test_slots_are_multiples_of_at_most_one_and_zero_stays_zero(weight, scale):
    codec = ckks.build(clip=1.0).codec
    rng = np.random.default_rng(0)
    row = rng.uniform(-1, 1, 5000).astype(np.float32)
    row[:100], row[100:110], row[110:120] = 0.0, 1.0, -1.0
    pact = Pact("run", 0, 0, 0, "m", "0" * 32, row.size, scale, "")
    slots = codec.encode(row, Figures(weight, 0.5), pact, Chance(rng)).reshape(-1)
    assert np.array_equal(slots, np.rint(slots / codec.grid) * codec.grid)
    assert np.abs(slots).max() <= 1.0
    values = slots[Front(ckks._BITS).size :]
    assert not values[:100].any()
    assert not values[row.size :].any()
