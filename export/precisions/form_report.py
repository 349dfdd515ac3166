"""Report of a form: which MatMuls it converted, which it kept and why, and what it weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from rfedge.bundle.precision import BlockPrecision
from rfedge.errors import ExportError
from rfedge.export.int8.matmuls import ALWAYS_FLOAT, unknown_block
from rfedge.export.passes.graph_pass import QUANTIZERS
from rfedge.export.passes.graph_queries import block_of, input_of, is_weight_matmul, tensor_of, tensor_shape

# Measured in fp16 on playtable-small: with the patch convolution in fp16 the feature's error more than doubles, and it is
# 0.2 % of the work. Its weights hold the camera's 1/255, and its sums lose the bytes' mean to the bias again.
CONVOLUTION = "the patch convolution reads bytes, whose mean its bias takes off again"
CAMERA_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class FormReport:
    """One written form."""

    converted: tuple[str, ...]  # names of the MatMuls (MatMul, Gemm, Conv with a weight)
    kept: dict[str, str]  # name -> why, of the MatMuls that stay in fp32
    blocks: dict[str, BlockPrecision]  # PyTorch block -> what it computes in
    files: list[Path]  # the graph first


@dataclass(slots=True)
class MatMuls:
    """The MatMuls of a graph that have a weight: those to convert, and those kept with the reason."""

    converted: list[ir.Node] = field(default_factory=list)
    kept: dict[ir.Node, str] = field(default_factory=dict)

    def keep(self, node: ir.Node, reason: str) -> None:
        self.converted.remove(node)
        self.kept[node] = reason

    def kernels_of_features(self) -> list[ir.Node]:
        """Return the kept convolutions that read features: not a camera's three channels."""
        return [
            node
            for node, reason in self.kept.items()
            if reason == CONVOLUTION and tensor_shape(tensor_of(input_of(node, 1)))[1] > CAMERA_CHANNELS
        ]

    def report(self, form: str, files: list[Path], others: Mapping[ir.Node, str] = MappingProxyType({})) -> FormReport:
        """Return the report on the written `files`; the MatMuls in `others` are converted, but not to `form`."""
        kinds: dict[str, list[str]] = {}
        for node in self.kept:
            kinds.setdefault(block_of(node), []).append("fp32")
        for node in self.converted:
            kinds.setdefault(block_of(node), []).append(others.get(node, form))
        return FormReport(
            tuple(str(node.name) for node in self.converted),
            {str(node.name): reason for node, reason in self.kept.items()},
            {block: BlockPrecision.count(found) for block, found in kinds.items()},
            files,
        )


def choose_matmuls(graph: ir.Graph, keep_float: Sequence[str]) -> MatMuls:
    """Find every MatMul with a weight and say which of them a form converts: not those of blocks named in `keep_float`.

    Raises:
        ConfigError: no block begins with one of `keep_float`.
        ExportError: the graph is already in another form.
    """
    _require_fp32(graph)
    nodes = [node for node in graph if is_weight_matmul(node) or _is_convolution(node)]
    blocks = {node: block_of(node) for node in nodes}
    for prefix in keep_float:
        if not any(block.startswith(prefix) for block in blocks.values()):
            raise unknown_block(prefix, blocks.values())
    matmuls = MatMuls()
    for node, block in blocks.items():
        reason = next((reason for prefix, reason in ALWAYS_FLOAT.items() if block.startswith(prefix)), None)
        asked = next((prefix for prefix in keep_float if block.startswith(prefix)), None)
        if reason is not None:
            matmuls.kept[node] = reason
        elif asked is not None:
            matmuls.kept[node] = f"keep_float {asked!r}"
        elif node.op_type == "Conv":
            matmuls.kept[node] = CONVOLUTION
        else:
            matmuls.converted.append(node)
    return matmuls


def _require_fp32(graph: ir.Graph) -> None:
    found = next((f"node {node.name} ({node.op_type})" for node in graph if node.op_type in QUANTIZERS), None)
    for value in graph.initializers.values():
        if found is None and value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            found = f"weight {value.name} in {value.dtype.name}"
    if found is not None:
        raise ExportError(
            "graph for another form", got=found, expected="a graph in fp32", remedy="Start from the fp32 export."
        )


def _is_convolution(node: ir.Node) -> bool:
    return (
        node.op_type == "Conv"
        and node.domain == ""
        and node.inputs[1] is not None
        and node.inputs[1].const_value is not None
    )
