"""Read back what a graph really computes in: per block from the graph, and in all from the kernels the runtime chose.

An int8 request that silently runs in fp32 is the oldest failure of this trade, so the request is never reported.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime

from rfedge.bundle.block_names import SCOPES_KEY, block_of_scopes
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS, INTEGER_KERNELS
from rfedge.bundle.precision import BlockPrecision
from rfedge.errors import ExportError


def weight_matmuls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
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
        source = producers.get(node.input[1])
        if node.input[1] in constants or (source is not None and _hands_on_weight(source, constants)):
            found.append(node)
    return found


def _hands_on_weight(node: onnx.NodeProto, constants: set[str]) -> bool:
    """Whether a node returns a weight: dequantized, or stored in fp16 and computed with in fp32."""
    return _is_weight_dequantize(node, constants) or (node.op_type == "Cast" and node.input[0] in constants)


def _is_weight_dequantize(node: onnx.NodeProto, constants: set[str]) -> bool:
    return node.op_type == "DequantizeLinear" and node.input[0] in constants


def block_of_node(node: onnx.NodeProto) -> str:
    """Return the PyTorch block a node came from, such as "vision.blocks.3" or "decoder.layers.0.cross_attention"."""
    return block_of_scopes({prop.key: prop.value for prop in node.metadata_props}.get(SCOPES_KEY))


def effective_precisions(model: onnx.ModelProto) -> dict[str, BlockPrecision]:
    """Count each block's MatMuls in int8, int8-weight and fp32, by the Q/DQ nodes in the graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    kinds: dict[str, list[str]] = {}
    for node in [*weight_matmuls(model), *(node for node in model.graph.node if node.op_type == "Conv")]:
        weight, activation = producers.get(node.input[1]), producers.get(node.input[0])
        kind = "fp32"
        if weight is not None and _is_weight_dequantize(weight, constants):
            kind = "int8" if activation is not None and activation.op_type == "DequantizeLinear" else "int8-weight"
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
        raise ExportError(
            f"graph {path.name}",
            got=f"{found} MatMuls on integer kernels",
            expected=f"{num_expected}",
            remedy="ONNX Runtime would run the rest in fp32; use the pinned onnxruntime version.",
        )
    return kernels
