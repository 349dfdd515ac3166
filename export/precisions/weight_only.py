"""int8-weight and int4-weight: the weights of MatMuls as small integers, the arithmetic in floats as before.

With calibration frames weights are rounded by GPTQ, so that their errors make up for each other on what these frames
multiply them with, and the error at the mean input goes into a bias. Without frames they are rounded to the nearest.

Two ways to say it:

"dequantize": DequantizeLinear(weight, scale) -> MatMul, standard ONNX that TensorRT reads. int8 with one scale per output
column, int4 with one per block of 32 inputs of a column (opset 21). ONNX Runtime 1.31 makes MatMulNBits of the pair when
it loads the graph, at accuracy level 4; without that fusion it would unpack the weight to fp32. With `compute` the MatMuls
and what belongs to them are in half precision, as `rfedge.export.precisions.half` has it: for a GPU, whose fp32 MatMuls
are slow.

"matmul-nbits": com.microsoft.MatMulNBits, ONNX Runtime's own operator, one scale per block and, for int4, one zero-point.
`accuracy_level` is the least exact format that the kernel may compute in: 0 leaves it to ONNX Runtime, 1 is fp32, 2 fp16,
3 bf16, 4 int8, for which activations are rounded block by block in every call.

Scales of blocks, and the matrices and kernels that stay in float, are stored in fp16 (`half_storage`); beside 4 bits the
kernels of convolutions over features are in int8, one scale per output. That over the camera is not: it reads bytes, whose
mean its bias takes off again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from rfedge.errors import ConfigError
from rfedge.export.int8.matmuls import QUERY_ATTENTION, MatMul, as_matmul
from rfedge.export.passes.graph_files import WeightProgress, file_bytes, read_graph, write_graph
from rfedge.export.passes.slim import infer_shapes
from rfedge.export.precisions.form_report import FormReport, choose_matmuls
from rfedge.export.precisions.half import HALF_TYPES, to_half
from rfedge.export.precisions.half_storage import store_weights_half
from rfedge.export.precisions.rounded_weights import RoundedWeights, dequantize_kernel
from rfedge.export.precisions.weight_calibration import Frame
from rfedge.export.precisions.weight_rounding import BLOCK_SIZE, WeightRounding

__all__ = ["ACCURACY_LEVELS", "BLOCK_SIZE", "Compute", "WeightKernel", "make_int4_weight", "make_int8_weight"]

WeightKernel = Literal["dequantize", "matmul-nbits"]
Compute = Literal["fp32", "fp16", "bf16"]
ACCURACY_LEVELS: Final = (0, 1, 2, 3, 4)

# int4 tensors and blocks of a DequantizeLinear came with this version; of the operators in our graphs it only widened types.
_INT4_OPSET: Final = 21
_EIGHT_BITS: Final = "int8-weight"


def make_int8_weight(
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] | None = None,
    frames: Sequence[Frame] = (),
    kernel: WeightKernel = "dequantize",
    compute: Compute = "fp32",
    accuracy_level: int | None = None,
    on_weight: WeightProgress = lambda *_: None,
    on_frame: WeightProgress = lambda *_: None,
) -> FormReport:
    """Write the graph at `source` with int8 weights to `target`; both may be the same path.

    Args:
        source: fp32 graph, weights in it or in a file beside it.
        target: the file to write; weights above 1.5 GB go into `target` + ".data".
        keep_float: beginnings of the names of blocks that stay in fp32; None for none.
        frames: inputs of the graph by name, to round by; none rounds to the nearest.
        kernel: see the module; "dequantize" is symmetric per column, "matmul-nbits" symmetric per block of 32.
        compute: what the MatMuls compute in, of "dequantize" alone.
        accuracy_level: of MatMulNBits, 0 to 4; without one 4, the fastest.
        on_weight: called with (weights written, weights in all).
        on_frame: called with (frames done, frames in all passes over them).

    Raises:
        ArtifactError: `source` is no graph.
        ConfigError: no block begins with one of `keep_float`, or no such `accuracy_level`.
        ExportError: a weight holds NaN or Inf, which the text names; or the graph is not in fp32.
    """
    form = _Form("int8-weight", bits=8, symmetric=True, kernel=kernel, compute=compute, accuracy_level=accuracy_level)
    return _make(form, source, target, keep_float or (), frames, on_weight, on_frame)


def make_int4_weight(
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] | None = None,
    frames: Sequence[Frame] = (),
    kernel: WeightKernel = "dequantize",
    compute: Compute = "fp32",
    symmetric: bool = False,
    accuracy_level: int | None = None,
    on_weight: WeightProgress = lambda *_: None,
    on_frame: WeightProgress = lambda *_: None,
) -> FormReport:
    """Write the graph at `source` with int4 weights in blocks of 32; arguments and errors as `make_int8_weight`.

    Args:
        keep_float: None rounds what is most sensitive, `QUERY_ATTENTION`, to 8 bits, and all else to 4; any names, or none
            of them, replace that.
        symmetric: no zero-points. TensorRT needs it, so "dequantize" is always symmetric.
    """
    form = _Form(
        "int4-weight",
        bits=4,
        symmetric=symmetric or kernel == "dequantize",
        kernel=kernel,
        compute=compute,
        accuracy_level=accuracy_level,
        eight_bits=QUERY_ATTENTION if keep_float is None else (),
    )
    return _make(form, source, target, keep_float or (), frames, on_weight, on_frame)


class _Form:
    """How the weights of one graph are rounded and stored."""

    def __init__(
        self,
        name: str,
        *,
        bits: int,
        symmetric: bool,
        kernel: WeightKernel,
        compute: Compute,
        accuracy_level: int | None,
        eight_bits: Sequence[str] = (),
    ) -> None:
        if accuracy_level is not None and (kernel == "dequantize" or accuracy_level not in ACCURACY_LEVELS):
            expected = "0 to 4" if kernel == "matmul-nbits" else "none, because only MatMulNBits has levels"
            raise ConfigError(
                "accuracy_level", got=accuracy_level, expected=expected, remedy="4 rounds activations to int8."
            )
        if compute != "fp32" and kernel != "dequantize":
            raise ConfigError(
                "compute", got=repr(compute), expected="'fp32' with matmul-nbits", remedy="Choose the kernel dequantize."
            )
        self.name, self.bits, self.symmetric, self.compute = name, bits, symmetric, compute
        self.kernel, self.accuracy_level = kernel, ACCURACY_LEVELS[-1] if accuracy_level is None else accuracy_level
        self.eight_bits = eight_bits

    def of(self, matmul: MatMul) -> WeightRounding:
        """Return how the weight of one MatMul is rounded."""
        bits = 8 if matmul.begins_with_any(self.eight_bits) else self.bits
        return WeightRounding(bits, self.symmetric or bits == 8, packed=self.kernel == "matmul-nbits")


def _make(
    form: _Form,
    source: Path,
    target: Path,
    keep_float: Sequence[str],
    frames: Sequence[Frame],
    on_weight: WeightProgress,
    on_frame: WeightProgress,
) -> FormReport:
    model = read_graph(source)
    size_before = file_bytes(source)
    graph = model.graph
    matmuls = choose_matmuls(graph, keep_float)
    if form.compute != "fp32":
        infer_shapes(model)
    for node in list(matmuls.converted):
        matmul = as_matmul(node)
        reason = form.of(matmul).reason_to_keep(matmul)
        if reason is not None:
            matmuls.keep(node, reason)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        weights = RoundedWeights(graph, form.of, form.accuracy_level)
        if frames:
            weights.round_by_frames(source, [as_matmul(node) for node in matmuls.converted], frames, Path(folder), on_frame)
        lower = {}
        for place, node in enumerate(matmuls.converted):
            matmul = as_matmul(node)
            matmuls.converted[place] = new = weights.insert(matmul)
            if form.of(matmul).bits > form.bits:
                lower[new] = _EIGHT_BITS
        if form.bits == 4 and form.compute == "fp32":
            for node in matmuls.kernels_of_features():
                del matmuls.kept[node]
                matmuls.converted.append(node)
                lower[node] = _EIGHT_BITS
                dequantize_kernel(graph, node)
        if form.kernel == "matmul-nbits":
            graph.opset_imports["com.microsoft"] = 1
        elif form.bits == 4:
            graph.opset_imports[""] = max(graph.opset_imports[""], _INT4_OPSET)
            model.ir_version = max(model.ir_version, 10)
        if form.compute == "fp32":
            store_weights_half(graph)
        else:
            to_half(model, matmuls, HALF_TYPES[form.compute])
        files = write_graph(model, target, on_weight=on_weight)
    return FormReport(
        form=form.name,
        converted=matmuls.names(),
        kept=matmuls.reasons(),
        blocks=matmuls.blocks(form.name, lower),
        bytes_before=size_before,
        bytes_after=file_bytes(target),
        files=tuple(files),
    )
