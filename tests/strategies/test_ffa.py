import numpy as np

from perennial.core.values import Manifest
from perennial.strategies import ffa

MANIFEST = Manifest(
    ("layer.5.query.lora_A", "layer.5.query.lora_B", "head.weight", "head.bias"),
    ((2, 5), (5, 2), (3, 5), (3,)),
)


def test_everything_but_a_trains_in_every_round():
    for round_ in range(3):
        chosen = ffa.build().trainable(MANIFEST, round_)
        assert chosen == {"layer.5.query.lora_B", "head.weight", "head.bias"}


def product(vector):
    arrays = MANIFEST.unpack(vector)
    return arrays["layer.5.query.lora_B"] @ arrays["layer.5.query.lora_A"]


def test_the_mean_of_products_is_the_product_of_means_where_a_is_frozen():
    draw, weights = np.random.default_rng(0), [1.0, 2.0, 5.0]
    start = draw.normal(size=MANIFEST.size).astype(np.float32)

    def clients(trains):
        free = np.zeros(MANIFEST.size, bool)
        for part in MANIFEST.slices(trains):
            free[part] = True
        return [start + free * draw.normal(size=MANIFEST.size).astype(np.float32) for _ in weights]

    frozen = clients(ffa.build().trainable(MANIFEST, 0))
    wanted = np.average([product(v) for v in frozen], axis=0, weights=weights)
    assert np.allclose(product(np.average(frozen, axis=0, weights=weights)), wanted, atol=1e-5)
    both = clients(MANIFEST.names)  # the reason for the rule: with A free it does not hold
    wanted = np.average([product(v) for v in both], axis=0, weights=weights)
    assert not np.allclose(product(np.average(both, axis=0, weights=weights)), wanted, atol=0.1)


def test_the_names_of_a_real_model_match():
    from perennial.models import tiny

    model = tiny.build(layers=0)
    model.fit_labels(["a", "b"])
    left_out = set(model.manifest.names) - ffa.build().trainable(model.manifest, 0)
    factors_a = {n for n, p in model.parameters().items() if p.shape[0] == 4 and "lora" in n}
    assert left_out == factors_a
    assert len(left_out) == 12  # six linears in each of two layers
