"""Static INT8: the range of every activation is looked up once, on held-out texts, and then fixed.

Three ways to choose a range: `minmax`, `percentile`, and `kl`, the range under which the rounded
distribution is nearest to the true one (Migacz 2017, "8-bit inference with TensorRT"). ONNX
Runtime's own Entropy calibrator has as many bins as steps when nothing is said, and so nothing to
search; here it has eight bins for each step.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from pydantic import Field

from ..core.errors import ModelError
from ..core.parts import Bars, Batches, Export
from .blocks import quiet
from .rounding import embeddings_in_int8, initializers, is_product, need_products
from .smoothing import smooth

BARS = Bars(
    size=0.27, loss=1.5, domain_loss=5.0, agreement=0.95, changed=0.001, cpu_1=0.55, cpu_32=0.50
)
_STEPS, _BINS_A_STEP = 128, 8
Method = Literal["minmax", "percentile", "kl"]


def build(
    *,
    method: Method = "minmax",
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99,
    batches: Annotated[int, Field(ge=1)] = 8,
) -> Export:
    """INT8 with fixed ranges.

    Args:
        method: how ranges are chosen.
        percentile: of `percentile`: values beyond it are cut.
        batches: of 32 held-out texts, that ranges are looked up on.
    """

    def write(source: Path, given: Batches, target: Path) -> None:
        quantise(source, given, target, method, percentile)

    return Export(write=write, bars=BARS, batches=batches)


def quantise(
    source: Path, batches: Batches, target: Path, method: Method, percentile: float
) -> None:
    """Write `source` to `target` with static INT8 products and int8 embeddings.

    Args:
        source: a graph in float32.
        batches: inputs to look ranges up on.
        target: the file to write.
        method: how ranges are chosen.
        percentile: of `percentile`.

    Raises:
        ModelError: nothing in the graph can be rounded, or there are no texts.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.load(source)
    need_products(model)
    smooth(model)
    embeddings_in_int8(model)
    held = initializers(model)
    products = [node for node in model.graph.node if is_product(node, held)]
    for place, node in enumerate(products):
        node.name = node.name or f"product_{place}"
    ranges = _ranges(model, batches(), method, percentile)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        quantizer: Any = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[node.name for node in products],
            nodes_to_exclude=[],
            op_types_to_quantize=["MatMul"],
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), False)


class _Reader:
    """One batch, as the runtime's calibrators take them."""

    def __init__(self, batch: Mapping[str, npt.NDArray[np.int64]]) -> None:
        self._batch: Mapping[str, npt.NDArray[np.int64]] | None = batch

    def get_next(self) -> Mapping[str, npt.NDArray[np.int64]] | None:
        """The batch, and then None."""
        batch, self._batch = self._batch, None
        return batch


def _ranges(
    model: onnx.ModelProto,
    batches: Iterable[Mapping[str, npt.NDArray[np.int64]]],
    method: Method,
    percentile: float,
) -> Any:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "kl": CalibrationMethod.Entropy,
    }
    options: dict[str, Any] = {}
    if method == "percentile":
        options = {"percentile": percentile, "num_bins": _STEPS * _BINS_A_STEP}
    elif method == "kl":
        options = {"num_bins": _STEPS * _BINS_A_STEP, "num_quantized_bins": _STEPS}
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        calibrator: Any = create_calibrator(
            source,
            ["MatMul"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kinds[method],
            extra_options=options,
        )
        seen = False
        for batch in batches:  # one at a time: a calibrator keeps all that it is given
            calibrator.collect_data(_Reader(batch))
            seen = True
        if not seen:
            raise ModelError(
                "static ranges are looked up on held-out texts, and there are none; name some "
                "with --set data.validation=FILE, or take the profile balanced"
            )
        return calibrator.compute_data()
