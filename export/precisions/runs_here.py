"""An emulation to measure a form in half precision that ONNX Runtime cannot run on this machine.

ONNX Runtime's CPU kernels know no bf16 (fp16 it widens to fp32 by itself). The emulation computes in fp32 and rounds every
result to the half format where the form would: the numbers of a machine with bf16 MatMuls that sum in fp32, as
tensor cores do. It is for proofs; it is slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import add_computed, tensor_of, tensor_shape

_HALF: Final = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
# They copy numbers that are rounded already: their first input, of Concat all inputs.
MOVES: Final = ("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Expand", "Flatten", "Identity", "Concat")


def write_emulation(source: Path, target: Path) -> None:
    """Write to `target` a graph in fp32 that rounds as the fp16 or bf16 form at `source` does."""
    model = read_graph(source)
    round_to_half(model.graph)
    write_graph(model, target)


def round_to_half(graph: ir.Graph, *, rounds: bool = True) -> None:
    """Let a graph with fp16 or bf16 compute in fp32, in place, and round every result that was in half precision.

    Without `rounds` the numbers are those that half precision would have to hold.
    """
    for value in list(graph.initializers.values()):
        if value.dtype in _HALF:
            tensor = tensor_of(value)
            read: Callable[[], Array] = lambda tensor=tensor: tensor.numpy().astype(np.float32)  # type: ignore[misc] # noqa: E731
            wide = add_computed(graph, f"{value.name}/fp32", read, ir.DataType.FLOAT, tensor_shape(tensor))
            value.replace_all_uses_with(wide, replace_graph_outputs=True)
            del graph.initializers[str(value.name)]
    for node in list(graph):  # in topological order: what a node reads is in fp32 by now
        for output in node.outputs:
            dtype = output.dtype
            if dtype not in _HALF:
                continue
            if node.op_type != "Cast" or not rounds:
                output.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type == "Cast" and not rounds:
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            if node.op_type not in MOVES and rounds:
                _round(graph, node, output, dtype)


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, dtype: ir.DataType) -> None:
    """Let the readers of `output` read it rounded to `dtype` and widened again; a Cast rounds by itself."""
    last, value, readers = node, output, list(output.uses())
    targets = [ir.DataType.FLOAT] if node.op_type == "Cast" else [dtype, ir.DataType.FLOAT]
    for target in targets:
        suffix = "rounded" if target == dtype else "widened"
        cast = ir.node("Cast", [value], attributes={"to": int(target)}, name=f"{node.name}/{output.name}/{suffix}")
        graph.insert_after(last, cast)
        last, value = cast, cast.outputs[0]
        value.name, value.shape, value.type = f"{output.name}/{suffix}", output.shape, ir.TensorType(target)
    for reader, index in readers:
        reader.replace_input_with(index, value)
