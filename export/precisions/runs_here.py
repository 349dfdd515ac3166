"""Whether ONNX Runtime has kernels for a form on this machine, and a stand-in to measure a form that it cannot run.

ONNX Runtime's CPU kernels know no bf16 (fp16 it widens to fp32 by itself). The stand-in computes in fp32 and rounds every
result to the half format where the form would: the numbers of a machine with bf16 MatMuls that sum in fp32, as
tensor cores do. It is for proofs; it is slower than fp32.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rfedge.errors import BackendUnavailableError
from rfedge.export.passes.graph_files import WeightProgress, read_graph, write_graph
from rfedge.export.passes.graph_queries import add_computed, tensor_shape

__all__ = ["MOVES", "RunsHere", "require_runs_here", "round_to_half", "runs_here", "write_stand_in"]

_HALF: Final = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
# They copy numbers that are rounded already.
MOVES: Final = ("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Expand", "Flatten", "Identity", "Concat")


class RunsHere(NamedTuple):
    """Whether a graph runs, and if not the operator without a kernel (such as "MatMul(13)"), its node and the reason."""

    ok: bool
    operator: str = ""
    node: str = ""
    reason: str = ""


def runs_here(path: Path) -> RunsHere:
    """Try to open the graph in ONNX Runtime on the CPU.

    Raises:
        ArtifactError: there is no such graph.
    """
    import onnxruntime

    read_graph(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the failure is the answer
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error classes share no base of their own
        text = (str(error).splitlines() or [type(error).__name__])[0]
        found = re.search(r"implementation for (?P<operator>\w+\(\d+\)) node with name '(?P<node>[^']*)'", text)
        if found is None:
            return RunsHere(ok=False, reason=text)
        return RunsHere(ok=False, operator=found["operator"], node=found["node"], reason=text)
    return RunsHere(ok=True)


def require_runs_here(path: Path) -> None:
    """Raise unless `runs_here`.

    Raises:
        BackendUnavailableError: a kernel is missing; the text names the operator.
    """
    answer = runs_here(path)
    if not answer.ok:
        got = f"no kernel for {answer.operator} at node {answer.node}" if answer.operator else answer.reason
        raise BackendUnavailableError(
            f"onnxruntime on this CPU with {path.name}",
            got=got,
            expected="a kernel for every operator",
            remedy="Run this form with TensorRT, or export fp32 or int8.",
        )


def write_stand_in(source: Path, target: Path, *, on_weight: WeightProgress = lambda *_: None) -> None:
    """Write to `target` a graph in fp32 that rounds as the fp16 or bf16 form at `source` does.

    Raises:
        ArtifactError: there is no such graph.
    """
    model = read_graph(source)
    round_to_half(model.graph)
    write_graph(model, target, on_weight=on_weight)


def round_to_half(graph: ir.Graph, *, rounds: bool = True) -> None:
    """Let a graph with fp16 or bf16 compute in fp32, in place, and round every result that was in half precision.

    Without `rounds` the numbers are those that half precision would have to hold.
    """
    for value in list(graph.initializers.values()):
        if value.dtype in _HALF:
            _widen_constant(graph, value)
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


def _widen_constant(graph: ir.Graph, value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None, f"{value.name} is an initializer"

    def widened() -> npt.NDArray[Any]:
        return tensor.numpy().astype(np.float32)

    wide = add_computed(graph, f"{value.name}/fp32", widened, ir.DataType.FLOAT, tensor_shape(tensor))
    value.replace_all_uses_with(wide, replace_graph_outputs=True)
    del graph.initializers[str(value.name)]


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
