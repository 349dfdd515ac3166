"""int8-weight and int4-weight: the weights of products as small integers, the arithmetic in floats as before.

Two ways to say it:

"dequantize": DequantizeLinear(weight, scale) -> MatMul, standard ONNX that TensorRT reads. int8 with one scale per output
column, int4 with one per block of 32 inputs of a column (opset 21). ONNX Runtime 1.31 makes MatMulNBits of the pair when
it loads the graph, at accuracy level 4; without that fusion it would unpack the weight to fp32. With `compute` the products
and what belongs to them are in half precision, as `rfedge.export.forms.half` has it: the form for a GPU, whose fp32 products
are slow.

"matmul-nbits": com.microsoft.MatMulNBits, ONNX Runtime's own operator, one scale per block and, for int4, one zero-point.
`accuracy_level` is the least exact format that the kernel may compute in: 0 leaves it to ONNX Runtime, 1 is fp32, 2 fp16,
3 bf16, 4 int8, for which activations are rounded block by block in every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rfedge.errors import ConfigError, explain
from rfedge.export.forms.block_quantization import (
    pack_blocks,
    quantize_blocks,
    quantize_columns,
)
from rfedge.export.forms.form_report import FormReport, choose_products
from rfedge.export.forms.half import HALF_TYPES, to_half
from rfedge.export.forms.weight_parts import WeightParts, finite_weight, weight_shape
from rfedge.export.passes.graph_files import WeightProgress, file_bytes, read_graph, write_graph
from rfedge.export.passes.graph_queries import add_computed, replace_node
from rfedge.export.passes.slim import infer_shapes

__all__ = ["ACCURACY_LEVELS", "BLOCK_SIZE", "Compute", "WeightKernel", "make_int4_weight", "make_int8_weight"]

Array = npt.NDArray[Any]
WeightKernel = Literal["dequantize", "matmul-nbits"]
Compute = Literal["fp32", "fp16", "bf16"]
BLOCK_SIZE: Final = 32
ACCURACY_LEVELS: Final = (0, 1, 2, 3, 4)

# int4 tensors and blocks of a DequantizeLinear came with this version; of the operators in our graphs it only widened types.
_INT4_OPSET: Final = 21


def make_int8_weight(
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] = (),
    kernel: WeightKernel = "dequantize",
    compute: Compute = "fp32",
    accuracy_level: int | None = None,
    on_weight: WeightProgress = lambda *_: None,
) -> FormReport:
    """Write the graph at `source` with int8 weights to `target`; both may be the same path.

    Args:
        source: fp32 graph, weights in it or in a file beside it.
        target: the file to write; weights above 1.5 GB go into `target` + ".data".
        keep_float: beginnings of the names of blocks that stay in fp32.
        kernel: see the module; "dequantize" is symmetric per column, "matmul-nbits" symmetric per block of 32.
        compute: what the products compute in, of "dequantize" alone.
        accuracy_level: of MatMulNBits, 0 to 4; without one 4, the fastest.
        on_weight: told (weights written, weights in all).

    Raises:
        ArtifactError: `source` is no graph.
        ConfigError: no block begins with one of `keep_float`, or no such `accuracy_level`.
        ExportError: a weight holds NaN or Inf, which the text names; or the graph is not in fp32.
    """
    form = _Form("int8-weight", bits=8, symmetric=True, kernel=kernel, compute=compute, accuracy_level=accuracy_level)
    return _make(form, source, target, keep_float, on_weight)


def make_int4_weight(
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] = (),
    kernel: WeightKernel = "matmul-nbits",
    compute: Compute = "fp32",
    symmetric: bool = False,
    accuracy_level: int | None = None,
    on_weight: WeightProgress = lambda *_: None,
) -> FormReport:
    """Write the graph at `source` with int4 weights in blocks of 32; arguments and errors as `make_int8_weight`.

    Args:
        symmetric: no zero-points. TensorRT needs it, so "dequantize" is always symmetric; asymmetric is more exact.
    """
    symmetric = symmetric or kernel == "dequantize"
    form = _Form("int4-weight", bits=4, symmetric=symmetric, kernel=kernel, compute=compute, accuracy_level=accuracy_level)
    return _make(form, source, target, keep_float, on_weight)


class _Form:
    """What to make of one weight."""

    def __init__(
        self,
        name: str,
        *,
        bits: int,
        symmetric: bool,
        kernel: WeightKernel,
        compute: Compute,
        accuracy_level: int | None,
    ) -> None:
        if accuracy_level is not None and (kernel == "dequantize" or accuracy_level not in ACCURACY_LEVELS):
            expected = "0 to 4" if kernel == "matmul-nbits" else "none, because only MatMulNBits has levels"
            raise ConfigError(
                explain("accuracy_level", got=accuracy_level, expected=expected, remedy="4 rounds activations to int8.")
            )
        if compute != "fp32" and kernel != "dequantize":
            raise ConfigError(
                explain(
                    "compute", got=repr(compute), expected="'fp32' with matmul-nbits", remedy="Choose the kernel dequantize."
                )
            )
        self.name, self.bits, self.symmetric, self.compute = name, bits, symmetric, compute
        self.kernel, self.accuracy_level = kernel, ACCURACY_LEVELS[-1] if accuracy_level is None else accuracy_level


def _make(form: _Form, source: Path, target: Path, keep_float: Sequence[str], on_weight: WeightProgress) -> FormReport:
    model = read_graph(source)
    size_before = file_bytes(source)
    graph = model.graph
    products = choose_products(graph, keep_float)
    if form.compute != "fp32":
        infer_shapes(model)
    for node in list(products.converted):
        reason = _reason_to_keep(node, form)
        if reason is not None:
            products.keep(node, reason)
    dequantized: dict[ir.Value, ir.Value] = {}
    packed: dict[ir.Value, _PackedWeight] = {}
    for place, node in enumerate(products.converted):
        weight = node.inputs[1]
        assert weight is not None, f"{node.name} has a weight"
        if form.kernel == "dequantize":
            if weight not in dequantized:
                dequantized[weight] = _dequantize(graph, node, weight, form)
            node.replace_input_with(1, dequantized[weight])
        else:
            if weight not in packed:
                packed[weight] = _PackedWeight(graph, weight, form)
            products.converted[place] = _matmul_nbits(node, packed[weight], form)
        if not weight.uses() and not weight.is_graph_output():
            del graph.initializers[str(weight.name)]
    if form.kernel == "matmul-nbits":
        graph.opset_imports["com.microsoft"] = 1
    elif form.bits == 4:
        graph.opset_imports[""] = max(graph.opset_imports[""], _INT4_OPSET)
        model.ir_version = max(model.ir_version, 10)
    if form.compute != "fp32":
        to_half(model, products, HALF_TYPES[form.compute])
    files = write_graph(model, target, on_weight=on_weight)
    return FormReport(
        form=form.name,
        converted=products.names(),
        kept=products.reasons(),
        blocks=products.blocks(form.name),
        bytes_before=size_before,
        bytes_after=file_bytes(target),
        files=tuple(files),
    )


def _reason_to_keep(node: ir.Node, form: _Form) -> str | None:
    if node.op_type == "Gemm" and (form.kernel == "matmul-nbits" or form.bits == 4):
        return "a Gemm, for which there is no kernel with packed weights"
    num_inputs = weight_shape(node.inputs[1])[0]
    if form.bits == 4 and form.kernel == "dequantize" and num_inputs % BLOCK_SIZE:
        return f"{num_inputs} inputs, which blocks of {BLOCK_SIZE} do not divide"
    return None


def _dequantize(graph: ir.Graph, node: ir.Node, weight: ir.Value, form: _Form) -> ir.Value:
    """Put DequantizeLinear before the product; return its output."""
    rows, columns = weight_shape(weight)
    read, name = finite_weight(weight), str(weight.name)
    # A Gemm may hold its weight transposed, one row per output.
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1

    def by_column() -> Mapping[str, Array]:
        array = read()
        numbers, scales = quantize_columns(array.T if transposed else array)
        return {"numbers": numbers.T if transposed else numbers, "scales": scales}

    def by_block() -> Mapping[str, Array]:
        blocks = quantize_blocks(read(), bits=4, block_size=BLOCK_SIZE, symmetric=True)
        signed = (blocks.numbers.astype(np.int8) - 8).reshape(rows, columns)
        return {"numbers": signed.astype(ml_dtypes.int4), "scales": blocks.scales}

    if form.bits == 8:
        parts, dtype = WeightParts(by_column), ir.DataType.INT8
        shape: tuple[int, ...] = (rows if transposed else columns,)
        attributes = {"axis": 0 if transposed else 1}
    else:
        parts, dtype, shape = WeightParts(by_block), ir.DataType.INT4, (rows // BLOCK_SIZE, columns)
        attributes = {"axis": 0, "block_size": BLOCK_SIZE}
    numbers = add_computed(graph, f"{name}/int{form.bits}", parts.part("numbers"), dtype, (rows, columns))
    scales = add_computed(graph, f"{name}/scale", parts.part("scales"), ir.DataType.FLOAT, shape)
    new = ir.node("DequantizeLinear", [numbers, scales], attributes=attributes, name=f"{node.name}/dequantize")
    new.metadata_props.update(node.metadata_props)
    output = new.outputs[0]
    output.name, output.type, output.shape = f"{name}/dequantized", ir.TensorType(ir.DataType.FLOAT), weight.shape
    graph.insert_before(node, new)
    return output


class _PackedWeight:
    """The constants that MatMulNBits reads for one weight."""

    def __init__(self, graph: ir.Graph, weight: ir.Value, form: _Form) -> None:
        self.rows, self.columns = weight_shape(weight)
        blocks, read, name = -(-self.rows // BLOCK_SIZE), finite_weight(weight), str(weight.name)

        def pack() -> Mapping[str, Array]:
            quantized = quantize_blocks(read(), bits=form.bits, block_size=BLOCK_SIZE, symmetric=form.symmetric)
            return pack_blocks(quantized, bits=form.bits, symmetric=form.symmetric)

        parts, byte = WeightParts(pack), ir.DataType.UINT8
        shape = (self.columns, blocks, BLOCK_SIZE * form.bits // 8)
        self.constants = [
            add_computed(graph, f"{name}/int{form.bits}", parts.part("B"), byte, shape),
            add_computed(graph, f"{name}/scale", parts.part("scales"), ir.DataType.FLOAT, (self.columns, blocks)),
        ]
        if not form.symmetric:
            width = -(-blocks * form.bits // 8)
            zero_point = parts.part("zero_points")
            self.constants.append(add_computed(graph, f"{name}/zero_point", zero_point, byte, (self.columns, width)))


def _matmul_nbits(node: ir.Node, packed: _PackedWeight, form: _Form) -> ir.Node:
    attributes = {"K": packed.rows, "N": packed.columns, "bits": form.bits, "block_size": BLOCK_SIZE}
    if form.accuracy_level:
        attributes["accuracy_level"] = form.accuracy_level
    new = ir.node(
        "MatMulNBits", [node.inputs[0], *packed.constants], attributes=attributes, domain="com.microsoft", name=node.name
    )
    replace_node(node, new)
    return new
