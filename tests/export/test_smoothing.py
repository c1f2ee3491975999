"""Factors before a product change nothing but the rounding, and make that smaller."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perennial.core import plugins
from perennial.core.parts import Export
from perennial.export import balanced, smoothing
from perennial.export.session import open_session, padded, scores

WIDTH, LABELS, VOCABULARY = 64, 5, 400
RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(0, VOCABULARY, n).tolist() for n in RNG.integers(3, 12, 80)]


def encoders(extra=()):
    """Two encoders that share a matrix, and have one each, behind normalisations of their own.

    Channel 7 is 60 times larger than the others, as some are in trained transformers.
    """
    gain = np.ones(WIDTH, np.float32)
    gain[7] = 60.0
    held = {
        "words": RNG.normal(size=(VOCABULARY, WIDTH)),
        "gain1": gain,
        "gain2": 0.5 * gain,
        "shared": RNG.normal(size=(WIDTH, LABELS)),
        "own1": RNG.normal(size=(WIDTH, LABELS)),
        "own2": RNG.normal(size=(WIDTH, LABELS)),
    }
    for name in ("shared", "own1", "own2"):
        held[name][7] /= 60.0
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["rows"])]
    nodes.append(helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT))
    for i in "12":
        normal = helper.make_node("LayerNormalization", ["rows", f"gain{i}"], [f"even{i}"], axis=-1)
        nodes += [
            normal,
            helper.make_node("MatMul", [f"even{i}", "shared"], [f"a{i}"]),
            helper.make_node("MatMul", [f"even{i}", f"own{i}"], [f"b{i}"]),
        ]
    nodes.append(helper.make_node("Sum", ["a1", "b1", "a2", "b2"], ["tokens"]))
    nodes.append(helper.make_node("Unsqueeze", ["seen", "last"], ["mask"]))
    nodes.append(helper.make_node("Mul", ["tokens", "mask"], ["masked"]))
    nodes.append(helper.make_node("ReduceSum", ["masked", "middle"], ["logits"], keepdims=0))
    tensors = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in held.items()]
    tensors += [
        numpy_helper.from_array(np.array([axis], np.int64), name)
        for name, axis in (("last", -1), ("middle", 1))
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LABELS])
    body = helper.make_graph([*nodes, *extra], "g", inputs, [out], tensors)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def asked(model, folder):
    onnx.save(model, folder / "asked.onnx")
    return scores(open_session(folder / "asked.onnx"), TEXTS, 32)


def matrix(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def test_answers_in_float32_stay_and_shared_matrices_are_multiplied_once(tmp_path):
    model = encoders()
    before, shared = asked(model, tmp_path), matrix(model, "shared")
    smoothing.smooth(model)
    np.testing.assert_allclose(asked(model, tmp_path), before, rtol=1e-4, atol=1e-4)
    factor = matrix(model, "shared") / shared
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1], factor.shape), rtol=1e-5)
    assert factor[7, 0] > 5 * np.median(factor[:, 0])
    assert sum(t.name.startswith("smoothing.") for t in model.graph.initializer) == 1


def test_a_matrix_that_something_else_reads_is_left_alone():
    model = encoders([helper.make_node("Transpose", ["shared"], ["elsewhere"])])
    before = model.SerializeToString()
    smoothing.smooth(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("profile", ["balanced", "static", "blocks", "small"])
def test_rounding_a_graph_with_a_large_channel_costs_less(profile, tmp_path, monkeypatch):
    onnx.save(encoders(), tmp_path / "float32.onnx")
    right = scores(open_session(tmp_path / "float32.onnx"), TEXTS, 32)
    export = plugins.load("export", profile, {}, Export)
    inputs = [padded([text]) for text in TEXTS]

    def error():
        export.write(tmp_path / "float32.onnx", lambda: inputs, tmp_path / "small.onnx")
        found = scores(open_session(tmp_path / "small.onnx"), TEXTS, 32)
        return np.sqrt(np.mean((found - right) ** 2))

    smooth = error()
    place = {"small": "blocks"}.get(profile, profile)
    monkeypatch.setattr(f"perennial.export.{place}.smooth", lambda model: None)
    assert smooth < 0.7 * error()


def test_the_default_profile_smooths(tmp_path):
    onnx.save(encoders(), tmp_path / "float32.onnx")
    balanced.write(tmp_path / "float32.onnx", lambda: [], tmp_path / "small.onnx")
    names = {t.name for t in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert "smoothing.0" in names
