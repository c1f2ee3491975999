import numpy as np
import pytest
import torch

from perennial.core.errors import ModelError
from perennial.models import adapter, tiny


def test_the_factors_have_short_names_in_a_fixed_order():
    model = tiny.build(rank=3, targets=("query", "value"), layers=1)
    model.fit_labels(["a", "b"])
    at = "encoder.layer.1.attention.self"
    assert model.manifest.names == (
        f"{at}.query.lora_A",
        f"{at}.query.lora_B",
        f"{at}.value.lora_A",
        f"{at}.value.lora_B",
        "head.weight",
        "head.bias",
    )
    assert model.manifest.shapes == ((3, 32), (32, 3), (3, 32), (32, 3), (2, 32), (2,))


def test_the_adapter_adds_alpha_over_rank_times_b_a():
    model = tiny.build(rank=2, alpha=6.0, targets=("query",), layers=0)
    draw = np.random.default_rng(0)
    model.load(draw.normal(size=model.manifest.size).astype(np.float32))
    parameters = model.parameters()
    linear = model.module.encoder.get_submodule(
        "base_model.model.encoder.layer.0.attention.self.query"
    )
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    at = "encoder.layer.0.attention.self.query"
    product = parameters[f"{at}.lora_B"] @ parameters[f"{at}.lora_A"]
    wanted = linear.base_layer(inputs) + 3.0 * inputs @ product.T
    assert torch.allclose(linear(inputs), wanted, atol=1e-5)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_only_the_top_layers_are_adapted(layers):
    names = tiny.build(layers=layers).manifest.names
    adapted = {name.split(".")[2] for name in names if "lora" in name}
    assert adapted == ({"1"} if layers == 1 else {"0", "1"})


@pytest.mark.parametrize("targets", [(), ("qurey",), ("query", "nope"), ("lora_A",)])
def test_targets_that_are_not_there_are_refused_with_what_is(targets):
    with pytest.raises(
        ModelError, match=r"must be 'all' or names of linears .* has: dense, key, query, value"
    ):
        tiny.build(targets=targets)


def test_a_base_without_linears_says_so():
    lora = adapter.Lora(2, 4.0, ("all",))
    with pytest.raises(ModelError, match="This base has: none"):
        adapter.attach(torch.nn.Sequential(torch.nn.Embedding(3, 2)), lora, [""], None)


def test_flatten_and_fill_of_nothing():
    assert adapter.flatten({}).shape == (0,)
    adapter.fill({}, np.zeros(0, np.float32))
    assert adapter.manifest({}).size == 0


def test_fill_takes_any_memory_and_keeps_none_of_it():
    parameters = {"w": torch.nn.Parameter(torch.zeros(2, 2))}
    read_only = np.frombuffer(np.arange(4, dtype="<f4").tobytes(), "<f4")
    adapter.fill(parameters, read_only)
    assert parameters["w"].tolist() == [[0, 1], [2, 3]]
    strided = np.arange(8, dtype=np.float32)[::2]
    adapter.fill(parameters, strided)
    strided[:] = 9
    assert parameters["w"].tolist() == [[0, 2], [4, 6]]
