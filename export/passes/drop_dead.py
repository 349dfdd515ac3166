"""Remove what nobody reads: nodes, then the weights that only they read, then operator sets that nothing names.

The inputs of the graph are a contract and stay, read or not.

Ensures: every node output is read or leaves the graph, optional outputs excepted; every initializer is read.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from rfedge.export.passes.graph_pass import GraphPass


class DropDead(GraphPass):
    """Remove unread nodes and initializers."""

    name = "drop-dead"
    takes_quantized = True

    def rewrite(self, model: ir.Model) -> list[str]:
        nodes = {node: f"{node.name} ({node.op_type})" for node in model.graph}
        weights = set(model.graph.initializers)
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
        for node in model.graph:
            nodes.pop(node)
        return [*nodes.values(), *(f"initializer {name}" for name in sorted(weights - set(model.graph.initializers)))]

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                raise ir.passes.PostconditionError(f"pass {self.name}: nobody reads {node.name} ({node.op_type})")
        for name, value in model.graph.initializers.items():
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                raise ir.passes.PostconditionError(f"pass {self.name}: nobody reads initializer {name}")
