from pathlib import Path

import numpy as np
import pytest

from perennial.core.sums import Chance, Figures, Pact, Party
from perennial.core.values import ServerState
from perennial.privacy import plain
from perennial.strategies import fedavg


def state(rule, values):
    params = np.array(values, np.float32)
    return ServerState(0, 0, params, rule.init(params))


def test_two_clients_by_hand():
    # (1*[3, 0, 3] + 3*[-1, 4, 1]) / 4
    deltas, weights = np.array([[3.0, 0, 3], [-1, 4, 1]], np.float32), [1.0, 3.0]
    total, pact = None, Pact("r", 0, 0, 0, "", "0" * 32, 3, 0.0, "")
    sums, rng, party = plain.build(), np.random.default_rng(0), Party(1, Path())
    for delta, weight in zip(deltas, weights, strict=True):
        body = sums.seal(delta, Figures(weight), pact, b"", party, Chance(rng))
        total = sums.add(total, body, weight, pact)
    opened = sums.result(sums.close(total, pact), pact, [1, 2], {}, {})
    mean = (opened.total / sum(weights)).astype(np.float32)
    rule = fedavg.build()
    after = rule.apply(state(rule, [1, 1, 1]), mean)
    assert after.params.tolist() == [1.0, 4.0, 2.5]
    reference = 1 + np.average(deltas, axis=0, weights=weights)
    assert np.allclose(after.params, reference)


def test_plain_averaging_remembers_nothing():
    rule = fedavg.build()
    assert rule.init(np.ones(3, np.float32)) == {}


def test_the_server_step_by_hand():
    rule = fedavg.build(server_lr=0.5)
    after = rule.apply(state(rule, [1, 2]), np.array([2, -4], np.float32))
    assert after.params.tolist() == [2.0, 0.0]


def test_momentum_by_hand():
    # v: 1, 0.5*1 + 1 = 1.5, 0.5*1.5 + 0 = 0.75; w = 2 * (1 + 1.5 + 0.75)
    rule = fedavg.build(server_lr=2.0, momentum=0.5)
    now = state(rule, [0])
    for change in (1.0, 1.0, 0.0):
        now = rule.apply(now, np.array([change], np.float32))
    assert now.params.tolist() == [6.5]
    assert now.slots["velocity"].tolist() == [0.75]


def test_momentum_equals_torch_sgd():
    torch = pytest.importorskip("torch")
    rule = fedavg.build(server_lr=0.3, momentum=0.9)
    start = np.array([0.5, -1.0, 2.0], np.float32)
    now = state(rule, start)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    sgd = torch.optim.SGD([weight], lr=0.3, momentum=0.9)
    draws = np.random.default_rng(0)
    for _ in range(5):
        change = draws.normal(size=3).astype(np.float32)
        now = rule.apply(now, change)
        weight.grad = torch.from_numpy(-change)
        sgd.step()
    assert np.allclose(now.params, weight.detach().numpy(), atol=1e-6)
