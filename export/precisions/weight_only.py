"""int8-weight and int4-weight: the weights of MatMuls as small integers, the arithmetic in floats as before.

With calibration frames weights are rounded by GPTQ, and the error at the mean input goes into a bias; without frames they
are rounded to the nearest.

A weight is DequantizeLinear(weight, scale) -> MatMul, standard ONNX that TensorRT reads: int8 with one scale per output
column, int4 with one per block of 32 inputs of a column (opset 21). ONNX Runtime 1.31 makes MatMulNBits of the pair when
it loads the graph, at accuracy level 4; without that fusion it would unpack the weight to fp32.

Scales of blocks, and the matrices and kernels that stay in float, are stored in fp16 (`half_storage`); beside 4 bits the
kernels of convolutions over features are in int8, one scale per output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from rfedge.export.int8.matmuls import QUERY_ATTENTION, MatMul, as_matmul
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.precisions.form_matmuls import choose_matmuls
from rfedge.export.precisions.half_storage import store_weights_half
from rfedge.export.precisions.rounded_weights import RoundedWeights, WeightRounding, dequantize_kernel
from rfedge.jobs.progress import Count
from rfedge.recurrence import Arrays

# int4 tensors and blocks of a DequantizeLinear came with this version; of the operators in our graphs it only widened types.
_INT4_OPSET: Final = 21


def make_weight_only(
    bits: Literal[4, 8],
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] | None = None,
    frames: Sequence[Arrays] = (),
    on_weight: Count = lambda *_: None,
    on_frame: Count = lambda *_: None,
) -> list[Path]:
    """Write the graph at `source` to `target`, which may be `source`, with int8 or int4 weights; return the files written.

    `keep_float` None keeps none, and with 4 bits rounds what is most sensitive, `QUERY_ATTENTION`, to 8. Without `frames`
    weights are rounded to the nearest.
    """
    eight_bits = QUERY_ATTENTION if keep_float is None else ()

    def rounding_of(matmul: MatMul) -> WeightRounding:
        return WeightRounding(8 if matmul.begins_with_any(eight_bits) else bits)

    model = read_graph(source)
    graph = model.graph
    chosen = choose_matmuls(graph, keep_float or ())
    matmuls = [matmul for matmul in map(as_matmul, chosen.converted) if rounding_of(matmul).fits(matmul)]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        weights = RoundedWeights(graph, rounding_of)
        if frames:
            weights.round_by_frames(source, matmuls, frames, Path(folder), on_frame)
        for matmul in matmuls:
            weights.insert(matmul)
        if bits == 4:
            for node in chosen.kernels:
                dequantize_kernel(graph, node)
            graph.opset_imports[""] = max(graph.opset_imports[""], _INT4_OPSET)
            model.ir_version = max(model.ir_version, 10)
        store_weights_half(graph)
        return write_graph(model, target, on_weight=on_weight)
