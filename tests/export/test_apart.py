"""An adapter apart from its base: swapped without reloading, checked, read back."""

import json

import numpy as np
import pytest

from perennial.core.errors import DataError, ModelError
from perennial.export import apart, merge
from perennial.export.exporting import held_out

pytestmark = pytest.mark.integration  # a whole export


def write(held, folder, found, labels, target):
    identity = found.model.identity()
    apart.write_adapter(held, folder / "base.onnx", labels, target, identity=identity)


@pytest.fixture(scope="module")
def made(tmp_path_factory, origin_of):
    folder = tmp_path_factory.mktemp("apart")
    found = merge.restored(origin_of())
    apart.write_base(found.model, folder / "base.onnx")
    held = apart.parameters(found.model)
    write(held, folder, found, found.model.labels, folder / "one.adapter")
    return folder, found, held


def test_base_and_adapter_answer_as_the_model_does_and_are_swapped(made, tmp_path):
    folder, found, held = made
    records = held_out(found).test
    tokens = found.model.tokenizer(list(records.texts))["input_ids"]
    loaded = apart.open_base(folder / "base.onnx")
    with pytest.raises(DataError, match="must be put in place"):
        loaded.logits(tokens)
    loaded.swap(folder / "one.adapter")
    wanted = found.logits(records)
    mine = loaded.logits(tokens)
    assert (mine.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    assert loaded.labels == found.model.labels
    # A later domain: other factors, and two labels more.
    later = {name: value * np.float16(0.5) for name, value in held.items()}
    more = np.zeros((32, 2), np.float16)
    later["head.weight"] = np.concatenate([later["head.weight"], more], 1)
    later["head.bias"] = np.concatenate([later["head.bias"], np.full(2, 60.0, np.float16)])
    labels = [*found.model.labels, "x", "y"]
    write(later, folder, found, labels, tmp_path / "two.adapter")
    loaded.swap(tmp_path / "two.adapter")
    assert loaded.labels == tuple(labels)
    assert (loaded.logits(tokens).argmax(1) >= 6).all()
    loaded.swap(folder / "one.adapter")
    np.testing.assert_array_equal(loaded.logits(tokens), mine)


def test_what_was_written_reads_back_the_same(made):
    import onnxruntime

    folder, _, held = made
    read = onnxruntime.AdapterFormat.read_adapter(str(folder / "one.adapter")).get_parameters()
    assert {name: value.numpy().tolist() for name, value in read.items()} == {
        name: value.tolist() for name, value in held.items()
    }


def test_another_base_and_a_changed_adapter_are_refused_and_the_old_one_stays(made, tmp_path):
    folder, found, _ = made
    loaded = apart.open_base(folder / "base.onnx")
    loaded.swap(folder / "one.adapter")
    for name in ("one.adapter", "one.adapter.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    told = json.loads((tmp_path / "one.adapter.json").read_text())
    (tmp_path / "one.adapter.json").write_text(json.dumps({**told, "base": "f" * 64}))
    with pytest.raises(DataError, match=r"of the base ffff.*Load the base"):
        loaded.swap(tmp_path / "one.adapter")
    (tmp_path / "one.adapter.json").write_text(json.dumps(told))
    body = bytearray((tmp_path / "one.adapter").read_bytes())
    body[-1] ^= 1
    (tmp_path / "one.adapter").write_bytes(body)
    with pytest.raises(DataError, match="not the file that was exported"):
        loaded.swap(tmp_path / "one.adapter")
    with pytest.raises(DataError, match="cannot be read"):
        loaded.swap(tmp_path / "none.adapter")
    assert loaded.labels == found.model.labels


def test_an_adapter_of_another_base_rank_or_number_of_labels_is_not_written(made, tmp_path):
    folder, found, held = made
    labels, target = found.model.labels, tmp_path / "two.adapter"
    with pytest.raises(ModelError, match=r"trained on the base beef; .* was made of"):
        apart.write_adapter(held, folder / "base.onnx", labels, target, identity="beef")
    name = next(name for name in held if name.endswith(".lora_A"))
    with pytest.raises(ModelError, match=rf"{name} does not"):
        write({**held, name: held[name][:, :2]}, folder, found, labels, target)
    with pytest.raises(ModelError, match=rf"{name} does not"):
        write({k: v for k, v in held.items() if k != name}, folder, found, labels, target)
    with pytest.raises(ModelError, match=r"head\.bias does not"):
        write(held, folder, found, [*labels, "x"], target)
    assert not list(tmp_path.iterdir())
