"""Clipped sums of both routes against one example at a time by plain autograd, and Opacus."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from perennial.core import plugins
from perennial.core.errors import PrivacyError
from perennial.core.parts import Model
from perennial.core.values import Records
from perennial.privacy import opacus_route, per_example, steps
from perennial.privacy.stream import Stream

ROUTES = {"activations": per_example.opened, "opacus": opacus_route.opened}
WORDS = ["book", "a", "table", "for", "my", "friend", "tonight", "cancel", "the", "card", "left"]


@pytest.fixture(params=ROUTES)
def opened(request):
    return ROUTES[request.param]


def records(count=8, labels=5):
    draw = np.random.default_rng(0)
    texts = tuple(" ".join(draw.choice(WORDS, draw.integers(2, 14))) for _ in range(count))
    ids = tuple(f"r{i}" for i in range(count))
    targets = tuple(f"l{i % labels}" for i in range(count))
    return Records(ids, texts, targets, ("d",) * count, ("",) * count)


def filled(model):
    """With every trained tensor away from 0, so that no gradient vanishes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters().values():
            parameter.normal_(0, 0.05)
    return model


def classifier(name, **options):
    model = plugins.load("models", name, options, Model)
    model.fit_labels([f"l{i}" for i in range(5)])
    return filled(model)


def clipped_sum(model, losses, clip, opened):
    parameters = dict(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters.values()]
    with opened(model.module, parameters) as route:
        norms = route.add(losses(), clip, sums)
    return torch.cat([s.double().flatten() for s in sums]), norms


def one_at_a_time(parameters, losses):
    """Flat gradients [b, n] in float64, each from its own call of autograd."""
    rows = []
    for i in range(len(losses)):
        found = torch.autograd.grad(losses[i], parameters, retain_graph=True)
        rows.append(torch.cat([g.double().flatten() for g in found]))
    return torch.stack(rows)


def expected(rows, clip):
    norms = rows.norm(dim=1)
    return (rows * (clip / norms).clamp(max=1.0)[:, None]).sum(0)


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


MODELS = {
    "tiny, top layer": ("tiny", {}),
    "tiny, both": ("tiny", {"layers": 0}),
    "minilm, top layer": ("encoder_classifier", {"layers": 1}),
    "minilm, two layers": ("encoder_classifier", {"layers": 2}),
    "minilm, q and v": ("encoder_classifier", {"layers": 0, "targets": ("query", "value")}),
    "minilm, all linears": ("encoder_classifier", {"layers": 0}),
}


# Three more loads of a base; the same code runs on the others.
SLOWER = {"minilm, two layers", "minilm, q and v"}


@pytest.mark.parametrize(
    "named",
    [pytest.param(n, marks=[pytest.mark.integration] * (n in SLOWER)) for n in MODELS],
)
def test_clipped_sums_equal_one_example_at_a_time(named, opened):
    name, options = MODELS[named]
    model = classifier(name, **options)
    encoded = model.encode(records())
    batch = encoded.batch(np.arange(8))
    rows = one_at_a_time(list(model.parameters().values()), model.losses(batch, ()))
    clip = float(rows.norm(dim=1).median())
    found, norms = clipped_sum(model, lambda: model.losses(batch, ()), clip, opened)
    assert error(found, expected(rows, clip)) <= 1e-6
    wanted = rows.norm(dim=1).clamp(max=clip)
    assert torch.allclose(norms.double(), wanted, rtol=1e-5)
    assert 0 < int((rows.norm(dim=1) > clip).sum()) < 8


def test_in_float64_each_example_by_itself_gives_the_same_to_the_last_digits(opened):
    model = classifier("encoder_classifier", layers=0)
    model.module.double()
    encoded = model.encode(records(6))
    parameters = list(model.parameters().values())
    single = [model.losses(encoded.batch(np.array([i])), ()) for i in range(6)]
    rows = torch.cat([one_at_a_time(parameters, losses) for losses in single])
    clip = float(rows.norm(dim=1).median())
    batch = encoded.batch(np.arange(6))
    found, _ = clipped_sum(model, lambda: model.losses(batch, ()), clip, opened)
    assert error(found, expected(rows, clip)) <= 1e-12


@pytest.fixture(scope="module")
def gpt2_folder(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.AutoTokenizer.from_pretrained(llama_folder).save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_causal_models_too(base, opened, request, pairs):
    folder = str(request.getfixturevalue(f"{base}_folder"))
    model = filled(plugins.load("models", "causal_lm", {"base": folder, "rank": 2}, Model))
    batch = model.encode(pairs).batch(np.arange(4))
    rows = one_at_a_time(list(model.parameters().values()), model.losses(batch, ()))
    clip = float(rows.norm(dim=1).median())
    found, _ = clipped_sum(model, lambda: model.losses(batch, ()), clip, opened)
    assert error(found, expected(rows, clip)) <= 1e-6


@pytest.mark.integration
def test_checkpointed_layers_run_twice_and_count_once():
    plain = classifier("encoder_classifier", layers=2)
    again = classifier("encoder_classifier", layers=2, gradient_checkpointing=True)
    batch = plain.encode(records()).batch(np.arange(8))
    sums = [
        clipped_sum(model, lambda model=model: model.losses(batch, ()), 0.5, per_example.opened)[0]
        for model in (plain, again)
    ]
    assert error(sums[1], sums[0]) <= 1e-6


class Own:
    """A module of ours in the shape that the helpers take."""

    def __init__(self, module):
        self.module = module

    def parameters(self):
        return dict(self.module.named_parameters())


def agree(module, losses, opened=per_example.opened, clip=0.7, bound=1e-6):
    own = Own(module)
    rows = one_at_a_time(list(module.parameters()), losses())
    found, norms = clipped_sum(own, losses, clip, opened)
    assert error(found, expected(rows, clip)) <= bound
    assert torch.allclose(norms.double(), rows.norm(dim=1).clamp(max=clip), rtol=1e-4)


class Twice(nn.Module):
    """Runs one layer on two inputs of different lengths."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, one, two):
        return self.head(torch.tanh(self.layer(one)).mean(1) + self.layer(two).mean(1))


def cross(logits):
    targets = torch.arange(len(logits)) % logits.shape[1]
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def test_a_layer_that_runs_twice_sums_both_uses(opened):
    torch.manual_seed(0)
    module, one, two = Twice(), torch.randn(5, 3, 6), torch.randn(5, 4, 6)
    agree(module, lambda: cross(module(one, two)), opened)


@pytest.mark.parametrize("shape", [(5, 7), (5, 4, 7), (5, 2, 3, 7), (1, 4, 7)])
@pytest.mark.parametrize("width", [2, 60])
def test_linears_of_any_width_on_any_number_of_tokens(shape, width, opened):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, 40))
    inputs = torch.randn(shape)

    def losses():
        out = module(inputs)
        return cross(out.reshape(len(out), -1, 40).mean(1))

    agree(module, losses, opened)


def test_an_operation_in_place_on_an_output_changes_nothing():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 3)
    module = nn.Sequential(nn.Linear(4, 4), first, nn.ReLU(inplace=True), second)
    agree(module, lambda: cross(module(torch.ones(4, 4).cumsum(0))))


def test_the_norm_of_a_wide_layer_is_right_where_tokens_cancel():
    torch.manual_seed(0)
    module = nn.Linear(64, 64, bias=False)
    inputs = torch.randn(4, 1, 64).repeat(1, 2, 1)
    inputs[:, 1] += 1e-4 * torch.randn(4, 64)
    weights = torch.randn(64)

    def losses():
        out = module(inputs)
        return ((out[:, 0] - out[:, 1]) * weights).sum(1)

    rows = one_at_a_time([module.weight], losses())
    _, norms = clipped_sum(Own(module), losses, 1e9, per_example.opened)
    assert torch.allclose(norms.double(), rows.norm(dim=1), rtol=1e-3)


def test_parts_add_up_to_the_whole(opened):
    model = classifier("tiny", layers=0)
    encoded, parameters = model.encode(records(9)), dict(model.parameters())
    sums = [[torch.zeros_like(p) for p in parameters.values()] for _ in range(2)]
    with opened(model.module, parameters) as route:
        route.add(model.losses(encoded.batch(np.arange(9)), ()), 0.5, sums[0])
        for part in (np.arange(4), np.arange(4, 5), np.arange(5, 9)):
            route.add(model.losses(encoded.batch(part), ()), 0.5, sums[1])
    for whole, parts in zip(*sums, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)


def test_only_the_tensors_that_train_are_summed():
    model = classifier("tiny", layers=0)
    for name, tensor in model.parameters().items():
        tensor.requires_grad_(not name.endswith("lora_A"))
    left = {n: p for n, p in model.parameters().items() if p.requires_grad}
    batch = model.encode(records()).batch(np.arange(8))
    rows = one_at_a_time(list(left.values()), model.losses(batch, ()))
    sums = [torch.zeros_like(p) for p in left.values()]
    with per_example.opened(model.module, left) as route:
        route.add(model.losses(batch, ()), 0.3, sums)
    assert error(torch.cat([s.double().flatten() for s in sums]), expected(rows, 0.3)) <= 1e-6


# What Opacus itself makes of the same batch and the same generator.


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("named", ["tiny, both", "minilm, top layer"])
def test_the_noisy_gradient_is_that_of_opacus_with_the_same_generator(named, route):
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    name, options = MODELS[named]
    model = classifier(name, **options)
    other = copy.deepcopy(model)
    batch = model.encode(records()).batch(np.arange(8))
    clip, noise, size = 0.5, 0.8, 6
    shapes = [p.shape for p in model.parameters().values()]

    def normals(count):
        generator = torch.Generator().manual_seed(7)
        drawn = [torch.normal(0, clip * noise, shape, generator=generator) for shape in shapes]
        flat = torch.cat([d.flatten() for d in drawn]).double() / (clip * noise)
        assert len(flat) == count
        return flat.numpy()

    theirs = dict(other.parameters())
    inner = GradSampleModule(other.module, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(list(theirs.values()), lr=0.1),
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=size,
        generator=torch.Generator().manual_seed(7),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        other.losses(batch, ()).sum().backward()
    optimizer.pre_step()
    inner.remove_hooks()

    ours = dict(model.parameters())
    own = torch.optim.SGD(list(ours.values()), lr=0.1)
    with steps.session(
        model.module, ours, size, clip=clip, noise_multiplier=noise, route=route, normals=normals
    ) as session:
        session.backward(model.losses(batch, ()), 8)
        session.release(own)
    found = torch.cat([p.grad.flatten() for p in ours.values()])
    wanted = torch.cat([p.grad.flatten() for p in theirs.values()])
    assert error(found, wanted) <= 2e-6


# Refusals.


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def refused(module, losses, message, opened=per_example.opened):
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    sums = [torch.zeros_like(p) for p in parameters.values()]
    with pytest.raises(PrivacyError, match=message), opened(module, parameters) as route:
        route.add(losses(), 1.0, sums)
    assert all(not torch.any(total) for total in sums)
    assert all(p.requires_grad for p in parameters.values())
    assert not any(layer._forward_hooks for layer in module.modules())


def test_a_layer_without_a_rule_is_refused_by_name():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    refused(module, lambda: cross(module(torch.ones(2, 3))), r'1\.weight .*LayerNorm.*"opacus"')


def test_opacus_has_a_rule_for_layers_that_are_not_linear():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    agree(module, lambda: cross(module(inputs)), opacus_route.opened)


def test_a_batch_that_is_not_first_is_refused():
    module = linear()
    inputs = torch.randn(5, 4, 3)  # [tokens, batch, features]
    refused(module, lambda: cross(module(inputs).mean(0)), r"batch of 4; it saw \[5, 4, 3\]")
    assert inputs.shape[0] != 4


def test_a_batch_that_is_not_first_is_found_where_both_sizes_are_the_same():
    module = linear()
    inputs = torch.randn(4, 4, 3)
    refused(module, lambda: cross(module(inputs).mean(0)), "depend on that example alone")


@pytest.mark.parametrize(
    "mix",
    [
        lambda out: out - out.mean(0),
        lambda out: out / out.detach().abs().amax() + 0.1 * out.roll(1, 0),
        lambda out: (out - out.mean(0)) / out.std(0),
    ],
)
def test_losses_that_mix_examples_are_refused(mix):
    module = linear()
    inputs = torch.randn(6, 3)
    refused(module, lambda: cross(mix(module(inputs))), "depend on that example alone")


def test_a_layer_that_did_not_run_is_refused_and_gets_no_zero():
    module = linear()
    refused(module, lambda: cross(module[0](torch.ones(3, 3))), "1 trains but did not run")


def test_a_layer_without_a_share_in_the_losses_is_refused():
    module = linear()

    def losses():
        module(torch.ones(3, 3))
        return cross(module(torch.ones(3, 3)))

    refused(module, losses, "without a share in the losses")


def test_what_a_layer_saw_must_not_change():
    module = nn.Sequential(nn.Linear(3, 3))

    def losses():
        inputs = torch.ones(2, 3)
        out = module(inputs)
        inputs.add_(1.0)
        return cross(out)

    refused(module, losses, "must stay as it is")


def test_an_input_by_name_is_refused():
    module = nn.Sequential(nn.Linear(3, 3))
    refused(module, lambda: cross(module[0](input=torch.ones(2, 3))), "0 must get its input by pos")


def test_hooks_of_others_are_refused():
    module = linear()
    handle = module[0].register_forward_hook(lambda *_: None)
    parameters = dict(module.named_parameters())
    with (
        pytest.raises(PrivacyError, match="hooks of others"),
        per_example.opened(module, parameters),
    ):
        pass
    handle.remove()


def test_a_backward_pass_of_the_callers_is_refused():
    module = linear()
    with per_example.opened(module, dict(module.named_parameters())):
        losses = cross(module(torch.ones(3, 3)))
        with pytest.raises(PrivacyError, match="own backward pass"):
            losses.sum().backward()


def test_reentrant_checkpoints_are_refused():
    from torch.utils.checkpoint import checkpoint

    module = linear()
    inputs = torch.ones(3, 3, requires_grad=True)
    refused(
        module,
        lambda: cross(checkpoint(module, inputs, use_reentrant=True)),
        "did not run|share in the losses",
    )


def test_opacus_refuses_eval_mode_and_two_batches_at_once():
    module = linear().eval()
    refused(module, lambda: cross(module(torch.ones(3, 3))), "train mode", opacus_route.opened)
    module = linear()

    def losses():
        module(torch.ones(3, 3))
        return cross(module(torch.ones(3, 3)))

    refused(module, losses, "one gradient per example", opacus_route.opened)


def test_scoring_without_gradients_leaves_no_trace():
    module = linear()
    inputs = torch.randn(4, 3)
    sums = [torch.zeros_like(p) for p in module.parameters()]
    with per_example.opened(module, dict(module.named_parameters())) as route:
        losses = cross(module(inputs))
        with torch.no_grad():
            module(inputs * 2)
        norms = route.add(losses, 1e9, sums)
    rows = one_at_a_time(list(module.parameters()), cross(module(inputs)))
    assert torch.allclose(norms.double(), rows.norm(dim=1), rtol=1e-5)


def test_nothing_is_kept_of_a_part(opened):
    module = linear()
    inputs = torch.randn(4, 2, 3)
    with opened(module, dict(module.named_parameters())) as route:
        sums = [torch.zeros_like(p) for p in module.parameters()]
        losses = cross(module(inputs).mean(1))
        route.add(losses, 1.0, sums)
        seen = weakref.ref(inputs)
        del inputs, losses
        gc.collect()
        assert seen() is None
    assert not any("grad_sample" in vars(p) for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_a_gpu_gives_what_a_cpu_gives(precision, bound):
    found = []
    for device, kind in (("cpu", "fp32"), ("cuda", precision)):
        model = classifier("encoder_classifier", layers=0)
        model.place(device, kind)
        parameters = dict(model.parameters())
        fixed = Stream(bytes(32)).normal
        with steps.session(
            model.module, parameters, 8, clip=0.5, noise_multiplier=1e-6, normals=fixed
        ) as session:
            batch = model.encode(records()).batch(np.arange(8))
            session.backward(model.losses(batch, ()), 8)
            session.release(torch.optim.SGD(list(parameters.values()), lr=0.1))
        assert all(p.grad.dtype == torch.float32 for p in parameters.values())
        found.append(torch.cat([p.grad.double().cpu().flatten() for p in parameters.values()]))
    assert error(found[1], found[0]) <= bound
