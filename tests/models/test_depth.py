import numpy as np
import pytest
import torch
import transformers

from perennial.core.errors import ModelError
from perennial.models import bases
from perennial.models.depth import CutEncoder, Ragged, find_layers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
DISTIL = {"vocab_size": 64, "dim": 16, "hidden_dim": 32, "n_layers": 3, "n_heads": 2}
# Families whose layers return a tensor, a tuple, or choose their mask by kind.
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES),
    "roberta": transformers.RobertaConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(**DISTIL),
    "mpnet": transformers.MPNetConfig(**SIZES),
    "deberta": transformers.DebertaV2Config(**SIZES, relative_attention=True),
    "modernbert": transformers.ModernBertConfig(
        **SIZES,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=4,
    ),
}
IDS = torch.arange(2, 26).reshape(3, 8)
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])


@pytest.fixture(params=CONFIGS)
def encoder(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.AutoModel.from_config(CONFIGS[request.param])
    bases.without_dropout(encoder)
    return encoder


@pytest.mark.parametrize("cut", [1, 2])
def test_the_cut_encoder_is_the_uncut_one(encoder, cut):
    parts = CutEncoder(encoder, cut)
    with torch.no_grad():
        wanted = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        activations = parts.below(IDS, MASK)
        found = parts.above(activations, MASK)
        again = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    there = MASK.bool()
    assert torch.equal(found[there], wanted[there])
    assert torch.equal(again[there], wanted[there])  # and the encoder is left as it was
    assert activations.shape == (3, 8, 16)
    assert not torch.equal(activations[there], wanted[there])


def test_the_lower_layers_are_not_run_again(encoder):
    parts = CutEncoder(encoder, 2)
    ran = []
    _, layers = find_layers(encoder)
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    activations = parts.below(IDS, MASK)
    assert ran == [0, 1]
    parts.above(activations, MASK)
    assert ran == [0, 1, 2]
    assert not activations.requires_grad


def test_a_failure_inside_leaves_the_encoder_whole(encoder):
    parts = CutEncoder(encoder, 1)
    name, layers = find_layers(encoder)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever this family raises
        parts.above(torch.zeros(3, 8, 5), MASK)
    assert encoder.get_submodule(name) is layers


def test_a_base_without_a_list_of_layers_is_refused():
    lone = torch.nn.Linear(2, 2)
    lone.config = transformers.BertConfig(num_hidden_layers=3)
    with pytest.raises(ModelError, match="3 layers stand in one list"):
        find_layers(lone)


def test_ragged_rows_by_hand():
    rows = Ragged.of([torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6])])
    values, mask = rows.padded(np.array([2, 0]))
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (values * mask).tolist() == [[5, 6, 0], [1, 2, 3]]
    values, mask = rows.padded(np.array([1, 1]))
    assert values.tolist() == [[4], [4]]
    assert mask.tolist() == [[1], [1]]


def test_ragged_rows_of_activations():
    rows = Ragged.of([torch.ones(2, 3), 2 * torch.ones(1, 3)])
    values, mask = rows.padded(np.array([0, 1]))
    assert values.shape == (2, 2, 3)
    assert (values * mask[..., None]).sum().item() == 12
