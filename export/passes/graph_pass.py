"""Base of every pass over a float graph: check, change in place, check again, and say what was changed."""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

import onnx_ir as ir

Found = TypeVar("Found")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits")


class GraphPass(ir.passes.InPlacePass):
    """A pass that notes its changes, one line each, naming the node; raises PreconditionError or PostconditionError.

    Weights are read only where a new one is computed from them, and then not before the graph is written: graphs of many
    gigabytes pass through in little memory.
    """

    name: str
    # Passes change numbers in the last bit: the calibrated ranges of a quantized graph would be wrong.
    takes_quantized = False
    left = "is left"  # said of a node that `is_left` afterwards

    def __init__(self) -> None:
        self.changes: tuple[str, ...] = ()

    def requires(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type in QUANTIZERS and not self.takes_quantized:
                raise ir.passes.PreconditionError(
                    f"pass {self.name}: got node {node.name} ({node.op_type}), expected a graph before quantization"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.changes = tuple(self.rewrite(model))
        return ir.passes.PassResult(model, modified=bool(self.changes))

    @abc.abstractmethod
    def rewrite(self, model: ir.Model) -> list[str]:
        """Change the model in place and return one line per change."""

    def is_left(self, node: ir.Node) -> bool:
        """Whether the pass should have rewritten this node."""
        return False

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if self.is_left(node):
                raise ir.passes.PostconditionError(f"pass {self.name}: {node.name} ({node.op_type}) {self.left}")


class MatchPass(GraphPass, Generic[Found]):
    """A pass that rewrites each node it matches, alone, until none is left."""

    @abc.abstractmethod
    def match(self, node: ir.Node) -> Found | None:
        """Return what `replace` needs of a node to rewrite; None for every other."""

    @abc.abstractmethod
    def replace(self, graph: ir.Graph, node: ir.Node, found: Found) -> str:
        """Rewrite one matched node and return the line that says so."""

    def rewrite(self, model: ir.Model) -> list[str]:
        return [
            self.replace(model.graph, node, found) for node in list(model.graph) if (found := self.match(node)) is not None
        ]

    def is_left(self, node: ir.Node) -> bool:
        return self.match(node) is not None


def weight_bytes(graph: ir.Graph) -> int:
    """Return the size of all initializers; reads none of them."""
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
