"""Write RMSNorm with a division, as ONNX Runtime's fusion expects it: x * (1 / sqrt(m)) -> x / sqrt(m).

PyTorch's rsqrt is exported as Sqrt and Reciprocal. With Div in their place ONNX Runtime 1.31 makes one kernel
(SimplifiedLayerNormalization) of the seven nodes; LayerNorm, GELU and QuickGELU it fuses as the exporter writes them.

Requires: no quantizers.
Ensures: no Mul reads a Reciprocal of a Sqrt.
"""

from __future__ import annotations

import onnx_ir as ir

from rfedge.export.passes.graph_pass import MatchPass
from rfedge.export.passes.graph_queries import parent, replace_node


class FusibleRMSNorm(MatchPass[tuple[ir.Node, int]]):
    """Mul(x, Reciprocal(Sqrt(m))) -> Div(x, Sqrt(m))."""

    name = "fusible-rms-norm"
    left = "still multiplies by a reciprocal"

    def match(self, node: ir.Node) -> tuple[ir.Node, int] | None:
        if node.op_type != "Mul" or node.domain:
            return None
        for place in (0, 1):
            reciprocal = parent(node, place, "Reciprocal")
            if reciprocal is not None and parent(reciprocal, 0, "Sqrt") is not None:
                return reciprocal, place
        return None

    def replace(self, graph: ir.Graph, node: ir.Node, found: tuple[ir.Node, int]) -> str:
        reciprocal, place = found
        name = str(node.name)
        new = ir.node("Div", [node.inputs[1 - place], reciprocal.inputs[0]], name=name)
        replace_node(node, new)
        if not reciprocal.outputs[0].uses() and not reciprocal.outputs[0].is_graph_output():
            graph.remove(reciprocal, safe=True)
        return f"{name}: divides by the root"
