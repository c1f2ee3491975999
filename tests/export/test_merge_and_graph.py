"""Merged is the adapter's own model, the graph is the merged one; what does not fit is named."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from perennial.core.errors import DataError, ModelError, RunError
from perennial.export import merge
from perennial.export.classifier import whole
from perennial.export.exporting import held_out, tokens_of
from perennial.export.graph import need_equal, write_graph
from perennial.models.merged import merged

ANSWERS = {
    "linear": {},
    "frozen": {"width": 40},
    "blended": {"width": 0, "blend": 0.25},
    "adapted": {"width": 40, "encoder": "refresh"},
    "both": {"width": 40, "encoder": "both"},
}


SLOW = {"blended", "adapted"}


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ANSWERS]
)
def test_the_graph_answers_as_the_run_does(name, origin_of, tmp_path):
    found = merge.restored(origin_of(**ANSWERS[name]))
    assert (found.answer is None) == (name == "linear")
    model, held = whole(found.model, found.answer), held_out(found)
    assert merge.need_same(found, model, held.test.texts[:16]) <= merge.PARITY
    write_graph(model, tmp_path / "model.onnx")
    tokens = tokens_of(model, tmp_path / "tokenizer.json", held.test)
    wanted = found.logits(held.test)
    assert np.abs(wanted).max() > 0.1
    assert need_equal(model, tmp_path / "model.onnx", tokens, wanted) <= 1e-3
    graph = onnx.load(tmp_path / "model.onnx").graph
    axes = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert axes == {name: ["batch", "tokens"] for name in ("input_ids", "attention_mask")}
    with pytest.raises(RunError, match=r"within 0\.001"):
        need_equal(model, tmp_path / "model.onnx", tokens, wanted + 0.01)


def test_merging_adds_the_scaled_product_of_the_factors(origin_of):
    found = merge.restored(origin_of())
    factors = {n: p.detach().clone() for n, p in found.model.parameters().items()}
    name = "encoder.layer.1.attention.self.query"
    before = found.model.module.encoder.get_base_model().get_submodule(name).base_layer.weight
    after = merged(found.model.module.encoder).get_submodule(name).weight
    product = factors[f"{name}.lora_B"] @ factors[f"{name}.lora_A"]
    torch.testing.assert_close(after, before + 16.0 / 4 * product, atol=1e-6, rtol=1e-5)
    assert product.abs().max() > 0.01


def test_a_quantised_base_is_not_merged_into(origin_of):
    found = merge.restored(origin_of())
    found.model.module.encoder.get_base_model().half()
    with pytest.raises(ModelError, match=r"float32; this one is of float16.*quantise what"):
        merged(found.model.module.encoder)


def changed(origin, tmp_path, report=None):
    folder = tmp_path / "run"
    shutil.copytree(origin.folder, folder)
    if report:
        (folder / "report.json").write_text(json.dumps({**origin.report, **report}))
    return merge.origin(folder, origin.text, {"run": "run"})


def test_the_adapter_of_another_base_is_refused(origin_of, tmp_path):
    source = changed(origin_of(), tmp_path, {"model": {"identity": "0" * 16}})
    with pytest.raises(ModelError, match=r"trained on the base 0000.*Use the base"):
        merge.restored(source)


@pytest.mark.parametrize("file", ["labels.json", "head.safetensors", "adapter_model.safetensors"])
def test_a_missing_or_damaged_file_is_named(file, origin_of, tmp_path):
    source = changed(origin_of(), tmp_path)
    (source.adapter / file).write_bytes(b"[]")
    with pytest.raises(ModelError, match=file):
        merge.restored(source)
    (source.adapter / file).unlink()
    with pytest.raises(ModelError, match=file):
        merge.restored(source)


def test_an_adapter_of_another_shape_is_refused(origin_of, tmp_path):
    source = changed(origin_of(), tmp_path)
    other = merge.Origin(
        source.folder, source.text.replace("rank = 4", "rank = 2"), source.report, {}
    )
    with pytest.raises(ModelError, match=r"lora_A is \(4, 32\), and must be \(2, 32\)"):
        merge.restored(other)


def test_a_run_that_has_not_ended_and_a_model_without_base_are_refused(origin_of, tmp_path):
    with pytest.raises(DataError, match=r"report\.json"):
        merge.origin(tmp_path, "", {})
    source = changed(origin_of(), tmp_path)
    tiny = merge.Origin(source.folder, '[data]\nname = "sample"\n[model]\nname = "tiny"\n', {}, {})
    with pytest.raises(ModelError, match="'tiny' cannot be exported"):
        merge.restored(tiny)


def test_routed_adapters_are_no_graph(origin_of):
    found = merge.restored(origin_of())
    with pytest.raises(ModelError, match="adapters of their own"):
        whole(found.model, object())
