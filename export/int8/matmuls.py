"""The MatMuls that int8 is for: by graph node, PyTorch block and module."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import onnx_ir as ir

from rfedge.bundle.block_names import SCOPES_KEY, UNNAMED
from rfedge.errors import ConfigError, did_you_mean
from rfedge.export.passes.graph_queries import block_of, input_of, is_constant, is_weight_matmul, tensor_of, tensor_shape

# Everything that the cameras say passes through these few MatMuls one after the other, and no residual path leads
# around them: a tenth of the multiplications of playtable-small and four fifths of its int8 error (docs/adr/0008).
QUERY_ATTENTION: Final = ("resampler*.layers.*.attention.to_", "decoder.layers.*.cross_attention.attention.to_")

# beginning of a block -> why its MatMuls are never rounded
ALWAYS_FLOAT: Final = {
    "preprocess": "the camera resize is exact in fp32 alone",
    "proprioception": "a MatMul of six numbers saves nothing",
}


@dataclass(frozen=True, slots=True)
class MatMul:
    """A MatMul or Gemm with a constant matrix."""

    node: ir.Node
    block: str  # PyTorch block, as reports name it
    module: str  # such as "vision.blocks.3.mlp_up"; begins with the block
    is_transposed: bool  # the matrix is (outputs, inputs), as Gemm may have it

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def source(self) -> ir.Value:
        """The multiplied tensor, (..., channels)."""
        return input_of(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        return input_of(self.node, 1)

    @property
    def num_channels(self) -> int:
        """Channels of the input: the axis that is summed over."""
        return tensor_shape(tensor_of(self.weight))[1 if self.is_transposed else 0]

    def begins_with_any(self, patterns: Iterable[str]) -> bool:
        """Whether the module's name begins with one of `patterns`, in which `*` stands for anything."""
        return any(fnmatchcase(self.module, pattern + "*") for pattern in patterns)


def quantizable_matmuls(graph: ir.Graph, keep_float: Sequence[str] | None = None) -> list[MatMul]:
    """Return the MatMuls to quantize, in the order of the graph.

    Every MatMul with a weight, except those of constants alone (the runtime folds them), of the camera resize, of the
    robot's state, and of modules whose names begin with one of `keep_float`, in which `*` stands for anything; None is
    `QUERY_ATTENTION`.

    Raises:
        ConfigError: nothing in the graph begins with one of `keep_float`.
    """
    matmuls = _all_matmuls(graph)
    for pattern in keep_float or ():
        if not any(matmul.begins_with_any([pattern]) for matmul in matmuls):
            raise unknown_block(pattern, (matmul.block for matmul in matmuls))
    patterns = (*ALWAYS_FLOAT, *(QUERY_ATTENTION if keep_float is None else keep_float))
    return [matmul for matmul in matmuls if not matmul.begins_with_any(patterns)]


def unknown_block(pattern: str, blocks: Iterable[str]) -> ConfigError:
    expected = did_you_mean(pattern, dict.fromkeys(blocks))
    return ConfigError(
        "keep_float", got=repr(pattern), expected=expected, remedy="Name a block or the beginning of several."
    )


def _all_matmuls(graph: ir.Graph) -> list[MatMul]:
    varying = {value for value in graph.inputs if value.const_value is None}
    found = []
    for node in graph:  # in topological order, as ONNX demands
        if varying.isdisjoint(node.inputs):
            continue
        varying.update(node.outputs)
        if is_weight_matmul(node) and is_constant(node.inputs[1]) and not node.attributes.get_int("transA", 0):
            found.append(as_matmul(node))
    return found


def as_matmul(node: ir.Node) -> MatMul:
    """Return a MatMul or Gemm of a constant matrix with what is known of it."""
    return MatMul(node, block_of(node), _module_of(node), bool(node.attributes.get_int("transB", 0)))


def _module_of(node: ir.Node) -> str:
    scopes = node.metadata_props.get(SCOPES_KEY)
    if scopes is None:
        return UNNAMED
    modules = [scope for scope in ast.literal_eval(scopes) if scope]
    return str(modules[-2] if len(modules) > 1 else modules[0])
