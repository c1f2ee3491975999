import numpy as np
import torch

from perennial.strategies import fedavg, fedprox


def test_the_pull_is_the_gradient_of_the_papers_term():
    # Equation 2: (mu / 2) |w - w_t|^2, by autograd.
    draw = torch.Generator().manual_seed(0)
    anchor = {"a": torch.randn(2, 3, generator=draw), "b": torch.randn(4, generator=draw)}
    weights = {n: torch.randn(t.shape, generator=draw).requires_grad_() for n, t in anchor.items()}
    mu = 0.37
    sum((mu / 2) * ((weights[n] - anchor[n]) ** 2).sum() for n in anchor).backward()
    found = fedprox.build(mu=mu).pull(weights, anchor)
    assert found.keys() == anchor.keys()
    for name in anchor:
        assert torch.allclose(found[name], weights[name].grad, atol=1e-7)


def test_without_mu_it_is_federated_averaging():
    rule = fedprox.build(mu=0.0)
    assert not rule.pull({"w": np.ones(2)}, {"w": np.zeros(2)})["w"].any()


def test_the_server_half_is_that_of_federated_averaging():
    from perennial.core.values import ServerState

    prox, avg = (m.build(server_lr=0.5, momentum=0.5) for m in (fedprox, fedavg))
    params, change = np.ones(3, np.float32), np.array([1, 2, 3], np.float32)
    mine = prox.apply(ServerState(0, 0, params, prox.init(params)), change)
    theirs = avg.apply(ServerState(0, 0, params, avg.init(params)), change)
    assert np.array_equal(mine.params, theirs.params)
