"""Rows of the head, averaged over the clients that hold their label."""

import numpy as np
import pytest
import torch
from asking import NOTHING, answered, client, delta, start, task_of

from perennial.client.label_rows import by_label, scales
from perennial.client.site import Site
from perennial.core.values import Manifest

TEXT = """
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 4
split = "dirichlet"
alpha = 0.05
[continual]
name = "none"
[train]
batch_size = 16
loss_over = "seen"
balanced = true
"""


def test_scales_by_hand():
    # New: a and b, of 8 records 6 and 2, so shares 3/4 and 1/4 of two labels. Old: d has all.
    found = scales(("a", "b", "c", "d"), (6, 2, 0, 5), ("a", "b"))
    assert found.tolist() == [1.5, 0.5, 0.0, 2.0]
    assert scales(("a", "b"), (3, 3), ("a", "b")).tolist() == [1.0, 1.0]
    assert scales(("a", "b"), (0, 0), ("a",)).tolist() == [0.0, 0.0]
    assert scales(("a", "b", "c"), (4, 0, 2), ()).tolist() == [2.0, 0.0, 1.0]


def test_the_server_s_mean_is_then_one_over_the_records_of_each_label():
    draws = np.random.default_rng(0)
    counts = np.array([[30, 0, 0], [0, 25, 5], [0, 5, 25]])  # each label 30 times in all
    manifest = Manifest(("layer.lora_A", "head.weight", "head.bias"), ((2, 2), (3, 4), (3,)))
    changes = draws.normal(size=(3, manifest.size)).astype(np.float32)
    sent = [
        by_label(change, manifest, scales("abc", own.tolist(), "abc"))
        for change, own in zip(changes, counts, strict=True)
    ]
    weights = counts.sum(1)
    mean = manifest.unpack(np.average(sent, axis=0, weights=weights).astype(np.float32))
    each = [manifest.unpack(change) for change in changes]
    for name in ("head.weight", "head.bias"):
        for label in range(3):
            rows = [views[name][label] for views in each]
            wanted = np.average(rows, axis=0, weights=counts[:, label])
            np.testing.assert_allclose(mean[name][label], wanted, rtol=1e-5)
    rest = np.average([v["layer.lora_A"] for v in each], axis=0, weights=weights)
    np.testing.assert_allclose(mean["layer.lora_A"], rest, rtol=1e-5)


@pytest.mark.parametrize("balanced", [True, False])
def test_a_label_that_a_client_lacks_is_left_alone(tmp_path, balanced):
    torch.manual_seed(5)
    site = Site(TEXT.replace("balanced = true", f"balanced = {str(balanced).lower()}"), {})
    task = task_of(site, domain=0)
    params = start(site, task)
    for index in range(4):
        one = client(site, tmp_path, index)
        held = set(site.holdings.mine(one, task.domain.name).targets)
        lacked = [i for i, label in enumerate(site.model.labels) if label not in held]
        if held and lacked:
            break
    body, _ = answered(site, one, task, params, NOTHING)
    moved = site.model.manifest.unpack(delta(site, body, task))["head.bias"]
    assert moved[[i for i in range(len(moved)) if i not in lacked]].any()
    assert bool(moved[lacked].any()) != balanced
