"""Read back what a graph really computes in: per block from the graph, and in all from the kernels the runtime chose.

An int8 request that silently runs in fp32 is the oldest failure of this trade, so the request is never reported.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import onnx
import onnxruntime
from onnx import TensorProto

from rfedge.bundle.block_names import SCOPES_KEY, block_of_scopes
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS, INTEGER_KERNELS
from rfedge.bundle.precision import BlockPrecision
from rfedge.errors import ExportError

_FLOATS: Final[dict[int, str]] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
QUANTIZED: Final[dict[int, str]] = {TensorProto.INT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.INT4: "int4"}


def _weight_matmuls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the MatMul and Gemm nodes whose second factor is a weight (directly or through DequantizeLinear or Cast).

    MatMuls of constants alone are left out (the first resampler layer's queries): the runtime folds them when it loads.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    varying = {value.name for value in model.graph.input}
    found = []
    for node in model.graph.node:  # in topological order, as ONNX demands
        if varying.isdisjoint(node.input):
            continue
        varying.update(node.output)
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight, source = node.input[1], producers.get(node.input[1])
        # dequantized, or stored in fp16 and computed with in fp32
        hands_on = source is not None and source.op_type in ("DequantizeLinear", "Cast") and source.input[0] in constants
        if weight in constants or hands_on:
            found.append(node)
    return found


def block_of_node(node: onnx.NodeProto) -> str:
    """Return the PyTorch block a node came from, such as "vision.blocks.3" or "decoder.layers.0.cross_attention"."""
    return block_of_scopes({prop.key: prop.value for prop in node.metadata_props}.get(SCOPES_KEY))


def graph_matmuls(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield every MatMul with a weight, convolutions included, and the precision that the graph asks for.

    "int8" needs both factors quantized; a weight alone is "int8-weight" or "int4-weight".
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in [*_weight_matmuls(model), *(node for node in model.graph.node if node.op_type == "Conv")]:
        weight, activation = producers.get(node.input[1]), producers.get(node.input[0])
        if weight is not None and weight.op_type == "DequantizeLinear":
            stored = QUANTIZED.get(types.get(weight.input[0], 0), "unknown")
            both = activation is not None and activation.op_type == "DequantizeLinear"
            yield node, stored if both else f"{stored}-weight"
        elif weight is not None and weight.op_type == "Cast":  # stored in one float and computed with in another
            yield node, _FLOATS.get(next(item.i for item in weight.attribute if item.name == "to"), "unknown")
        else:
            yield node, _FLOATS.get(types.get(node.input[1], 0), "unknown")


def effective_precisions(graph: Path) -> dict[str, BlockPrecision]:
    """Return PyTorch block -> what its MatMuls compute in, read back from the file."""
    kinds: dict[str, list[str]] = {}
    for node, kind in graph_matmuls(onnx.load(graph, load_external_data=False)):
        kinds.setdefault(block_of_node(node), []).append(kind)
    return {block: BlockPrecision.count(found) for block, found in kinds.items()}


def write_optimised(path: Path, folder: Path, *, disabled_optimizers: Sequence[str] = ()) -> Path:
    """Write the graph at `path` to `folder` as ONNX Runtime rewrites it for this CPU, large weights in a file beside it."""
    target = folder / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Beyond this level are forms that fit one machine's caches, such as those of the patch convolution.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled_optimizers) or None
    )
    return target


def require_integer_kernels(path: Path, *, num_expected: int) -> Counter[str]:
    """Count the kernels that ONNX Runtime chooses; ExportError where fewer than `num_expected` are integer ones."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # as large as the graph, so on its disk
        optimised = onnx.load(
            write_optimised(path, Path(folder), disabled_optimizers=DISABLED_OPTIMIZERS), load_external_data=False
        )
    kernels = Counter(node.op_type for node in optimised.graph.node)
    found = sum(kernels[name] for name in INTEGER_KERNELS)
    if found < num_expected:
        expected, remedy = f"{num_expected}", "ONNX Runtime would run the rest in fp32; use the pinned onnxruntime version."
        raise ExportError(f"graph {path.name}", got=f"{found} MatMuls on integer kernels", expected=expected, remedy=remedy)
    return kernels
