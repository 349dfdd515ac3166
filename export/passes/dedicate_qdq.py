"""Give every quantized product a Q/DQ pair of its own, and everybody else the float tensor.

ONNX Runtime fuses `x -> Q -> DQ -> MatMul` into an integer kernel only while the Q has this one reader. Where a tensor
feeds several products (the visual latents feed the keys and values of every cross-attention layer) the quantizer
shares one pair, and those products silently run in fp32. Where it also feeds a float operator (the latents that are
concatenated in the resampler) that operator needlessly reads rounded numbers.

Requires: activation Q/DQ pairs with scalar scales, as `quantize_static` writes them.
Ensures: every Q over an activation feeds one DQ, and that DQ feeds one product.
The session must keep the pairs apart, so CommonSubexpressionElimination is off (`rfedge.int8_kernels`).
"""

from __future__ import annotations

from collections import defaultdict

import onnx

from rfedge.errors import ExportError, explain

__all__ = ["dedicate_qdq"]


def dedicate_qdq(model: onnx.ModelProto, products: list[str]) -> int:
    """Rewrite `model` in place and return the number of pairs added.

    Args:
        model: graph with Q/DQ pairs.
        products: names of the nodes whose first input is quantized.

    Raises:
        ExportError: a named product has no Q/DQ pair before it.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    quantized = {name: node for node in graph.node if (name := node.name) in set(products)}
    readers: dict[str, int] = defaultdict(int)
    added: dict[str, list[onnx.NodeProto]] = {}
    for name, node in quantized.items():
        dequantize = producers.get(node.input[0])
        quantize = producers.get(dequantize.input[0]) if dequantize is not None else None
        if (
            dequantize is None
            or quantize is None
            or (quantize.op_type, dequantize.op_type)
            != (
                "QuantizeLinear",
                "DequantizeLinear",
            )
        ):
            raise ExportError(
                explain(
                    f"product {name}", got="no Q/DQ pair", expected="one on its first input", remedy="Report this graph."
                )
            )
        readers[dequantize.output[0]] += 1
        if readers[dequantize.output[0]] == 1:
            continue  # the first reader keeps the pair it has
        suffix = f"/{name}"
        pair = []
        for original in (quantize, dequantize):
            copy = onnx.NodeProto()
            copy.CopyFrom(original)
            copy.name = original.name + suffix
            copy.output[0] = original.output[0] + suffix
            pair.append(copy)
        pair[1].input[0] = pair[0].output[0]
        node.input[0] = pair[1].output[0]
        added[name] = pair
    for node in graph.node:
        if node.name in quantized:
            continue
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is not None and name in readers:
                node.input[index] = producers[dequantize.input[0]].input[0]
    nodes = [item for node in graph.node for item in (*added.get(node.name, ()), node)]
    del graph.node[:]
    graph.node.extend(nodes)
    _ensure_dedicated(model)
    return len(added)


def _ensure_dedicated(model: onnx.ModelProto) -> None:
    consumers: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node.name)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constants:
            assert len(consumers[node.output[0]]) == 1, f"{node.name} has readers {consumers[node.output[0]]}"
