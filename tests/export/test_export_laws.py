"""What holds for every profile in `export/`, so for a new file at once."""

import hashlib

import numpy as np
import onnx
import pytest

from perennial.core import plugins
from perennial.core.errors import ModelError
from perennial.core.parts import Export
from perennial.export.session import open_session, padded, scores

SHARED = {"fast", "blocks"}
"""Profiles whose scores may depend a little on who else is in the batch."""


@pytest.fixture(params=plugins.names("export", Export))
def named(request):
    return request.param, plugins.load("export", request.param, {}, Export)


def written(export, graph, folder):
    path, tokens = graph
    drawn = [padded(tokens[i : i + 32]) for i in range(0, 32 * export.batches, 32) if tokens[i:]]
    target = folder / f"small{export.suffix}"
    export.write(path, lambda: drawn, target)
    return target


def test_answers_are_those_of_the_graph_it_was_made_of(named, graph, tmp_path):
    name, export = named
    path, tokens = graph
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    target = written(export, graph, tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert target.stat().st_size <= path.stat().st_size
    session = open_session(target)
    mine, theirs = scores(session, tokens, 32), scores(open_session(path), tokens, 32)
    # The base is random, so that answers are closer to each other than in any trained one.
    alike = np.corrcoef(mine.ravel(), theirs.ravel())[0, 1]
    assert alike >= (0.9 if name == "small" else 0.99), (name, alike)
    alone = scores(session, tokens, 1)
    if name not in SHARED:
        np.testing.assert_allclose(alone, mine, atol=2e-4)
    assert (alone.argmax(1) == mine.argmax(1)).mean() >= 0.95


def test_a_graph_without_products_is_refused_by_name(named, tmp_path):
    name, export = named
    if name in ("fp32", "fp16"):
        return
    table = onnx.numpy_helper.from_array(np.ones((4, 6), np.float32), "table")
    node = onnx.helper.make_node("Gather", ["table", "input_ids"], ["logits"])
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch"])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 6])
    body = onnx.helper.make_graph([node], "g", [ids], [out], [table])
    onnx.save(onnx.helper.make_model(body), tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=r"Gather.*--profile fp32"):
        export.write(tmp_path / "odd.onnx", lambda: [], tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize("method", ["percentile", pytest.param("kl", marks=pytest.mark.slow)])
def test_static_ranges_can_be_chosen_in_other_ways(method, graph, tmp_path):
    export = plugins.load("export", "static", {"method": method, "batches": 2}, Export)
    session = open_session(written(export, graph, tmp_path))
    mine = scores(session, graph[1], 32).argmax(1)
    assert (mine == scores(open_session(graph[0]), graph[1], 32).argmax(1)).mean() >= 0.8


def test_static_without_texts_says_what_to_do(graph, tmp_path):
    export = plugins.load("export", "static", {}, Export)
    with pytest.raises(ModelError, match="held-out texts"):
        export.write(graph[0], lambda: [], tmp_path / "small.onnx")
