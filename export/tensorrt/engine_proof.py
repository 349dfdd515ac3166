"""Proof of the engines' arithmetic, before there is an engine: which floats fp16 can hold, and what it does to the actions.

In order: measure the largest number of every fp16 result, frame by frame; leave in fp32 what comes near fp16's end, and what
reads it; roll the emulated graphs through the episodes of the bundle's own proof. What then misses a gate is built in fp32.

The emulation runs in ONNX Runtime on a CPU. Every operator's result is rounded to fp16, also inside what TensorRT fuses and
keeps in fp32, so it errs on the coarse side. An int8 MatMul runs on integer kernels; its sums are rounded as the engine
writes them, once before the scales of the columns and once after. Not emulated: in which order and in how many bits a GPU
adds up, which is unknown here, and the recurrence inside an LSTM, of which only weights and results are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float32
from rfedge.bundle.artifact import EngineForm, ParityRecord, TensorRtRecord
from rfedge.bundle.gates import missed
from rfedge.bundle.traces import Episodes, RolloutTrace, compare_traces
from rfedge.config import PolicyConfig, Precision
from rfedge.contract import GraphName
from rfedge.export.parity import graph_call, onnx_rollout
from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.graph_files import read_graph, remove_graph, write_graph
from rfedge.export.passes.graph_queries import add_constant, array_of, block_of, constant_array, input_of, is_constant
from rfedge.export.precisions.cpu_int8 import LowerInt8
from rfedge.export.precisions.runs_here import MOVES, round_to_half
from rfedge.export.tensorrt.engine_form import HIDDEN, Int8MatMul, default_islands, int8_matmuls, to_engine_form
from rfedge.recurrence import Arrays

_FLOAT: Final = ir.DataType.FLOAT
_HALF: Final = ir.DataType.FLOAT16
# The output that holds the largest magnitudes.
LARGEST_NAME: Final = "largest_in_fp16"


def write_emulation(source: Path, islands: Iterable[str], target: Path, *, observed: bool = False) -> tuple[str, ...]:
    """Write to `target` what an engine of the graph at `source` computes, in fp32 with roundings to fp16 but for `islands`.

    An observed graph does not round, for an infinity would hide by how much fp16 is exceeded; its output `LARGEST_NAME`,
    float32 (nodes,), is the largest magnitude of each node's results. Their names are returned, of int8 MatMuls two.
    """
    model = read_graph(source)
    to_engine_form(model, frozenset(islands))
    graph = model.graph
    for matmul in int8_matmuls(graph):
        if matmul.node.outputs[0].dtype == _HALF:
            _scale_columns_after(graph, matmul)
    magnitudes = list(_observe(graph)) if observed else []
    round_to_half(graph, rounds=not observed)
    if magnitudes:
        largest = ir.node("Concat", [value for _, value in magnitudes], attributes={"axis": 0}, name=LARGEST_NAME)
        _describe(largest, LARGEST_NAME, (len(magnitudes),))
        graph.append(largest)
        graph.outputs.append(largest.outputs[0])
    LowerInt8()(model)
    DropDead().rewrite(model)
    write_graph(model, target)
    return tuple(name for name, _ in magnitudes)


def _scale_columns_after(graph: ir.Graph, matmul: Int8MatMul) -> None:
    """Let the MatMul give its sums times the activation's scale, and a Mul of its own scale the columns."""
    node, quantize, dequantize, weight = matmul
    columns, whole = input_of(weight, 1), quantize.inputs[1]
    power = _number(dequantize) / _number(quantize)  # what was taken from the columns
    weight.replace_input_with(1, add_constant(graph, f"{weight.name}/power", np.array(power, np.float32)))
    dequantize.replace_input_with(1, whole)
    for value in (weight.outputs[0], dequantize.outputs[0]):
        value.type = ir.TensorType(_FLOAT)  # integers and one scale: exact
    output = node.outputs[0]
    readers = tuple(output.uses())
    scaled = ir.node("Mul", [output, columns], name=f"{node.name}/columns")
    scaled.metadata_props.update(node.metadata_props)
    scaled.outputs[0].name, scaled.outputs[0].type, scaled.outputs[0].shape = (
        f"{output.name}/columns",
        output.type,
        output.shape,
    )
    graph.insert_after(node, scaled)
    for reader, index in readers:
        reader.replace_input_with(index, scaled.outputs[0])


def _number(node: ir.Node) -> float:
    return float(array_of(node.inputs[1], largest=1).reshape(()))


def _observe(graph: ir.Graph) -> Iterable[tuple[str, ir.Value]]:
    """Add ReduceMax(Abs(x)) for every result in fp16 that is computed and not moved; (node, its largest (1,))."""
    shape = add_constant(graph, "one_element", np.array([1], np.int64))
    for node in list(graph):
        if (
            node.op_type in MOVES
            or node.op_type in ("DequantizeLinear", "Cast")
            or all(is_constant(value) for value in node.inputs)
        ):
            continue
        for output in node.outputs:
            # A constant that hides keys from a softmax: what is added to it says nothing about the logits.
            constants = [array for value in node.inputs if (array := constant_array(value)) is not None]
            hides = any(array.dtype.kind == "f" and (array <= HIDDEN).any() for array in constants)
            if output.dtype != _HALF or hides:
                continue
            magnitude = ir.node("Abs", [output], name=f"{output.name}/magnitude")
            _describe(magnitude, f"{output.name}/magnitude", None)
            most = ir.node("ReduceMax", [magnitude.outputs[0]], attributes={"keepdims": 0}, name=f"{output.name}/largest")
            _describe(most, f"{output.name}/largest", ())
            row = ir.node("Reshape", [most.outputs[0], shape], name=f"{output.name}/largest_row")
            _describe(row, f"{output.name}/largest_row", (1,))
            graph.insert_after(node, [magnitude, most, row])
            yield str(node.name), row.outputs[0]


def _describe(node: ir.Node, name: str, shape: tuple[int, ...] | None) -> None:
    value = node.outputs[0]
    value.name, value.type = name, ir.TensorType(_FLOAT)
    value.shape = None if shape is None else ir.Shape(shape)


_LARGEST: Final = float(np.finfo(np.float16).max)
# Frames that nobody has seen may reach further than those of the check.
_MARGIN: Final = 4.0
_MOST_FRAMES: Final = 32
# Graphs whose own types are what the user asked for.
_AS_ASKED: Final[tuple[Precision, ...]] = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class EngineGraphs:
    """The graphs of a bundle, as engines are built from them."""

    config: PolicyConfig
    graphs: Mapping[GraphName, Path]  # in the bundle, in call order, the head last
    precisions: Mapping[GraphName, Precision]  # of the backbone
    run_here: Mapping[GraphName, Path]  # on this CPU, where the engine keeps the graph's own types

    def keeps_types(self, name: GraphName) -> bool:
        """Whether the graph is built in its own types."""
        if name == "head":
            return set(self.precisions.values()) == {"fp32"}
        return self.precisions[name] in _AS_ASKED


def choose_forms(engines: EngineGraphs, episodes: Episodes, work: Path) -> dict[GraphName, EngineForm]:
    """Measure at most 32 steps of `episodes`, such as calibration frames, and return the form of each graph."""
    names: dict[Path, GraphName] = {}
    islands: dict[GraphName, dict[str, str]] = {}
    observed: dict[GraphName, tuple[str, ...]] = {}
    largest: dict[GraphName, Float32] = {}
    paths: dict[GraphName, Path] = {}
    for name, graph in engines.graphs.items():
        if engines.keeps_types(name):
            paths[name] = engines.run_here[name]
            continue
        paths[name] = work / f"{name}-observed.onnx"
        names[paths[name]] = name
        islands[name] = default_islands(read_graph(graph))
        observed[name] = write_emulation(graph, islands[name], paths[name], observed=True)
        largest[name] = np.zeros(len(observed[name]), np.float32)

    def open_graph(path: Path) -> Callable[[Arrays], Arrays]:
        call, name = graph_call(path), names.get(path)

        def run(inputs: Arrays) -> Arrays:
            outputs = dict(call(inputs))
            if name is not None:  # a NaN follows from an infinity that is counted already
                largest[name] = np.fmax(largest[name], outputs.pop(LARGEST_NAME))
            return outputs

        return run

    each = max(_MOST_FRAMES // max(len(episodes), 1), 1)  # steps of an episode
    few = [list(episode[:each]) for episode in episodes[:_MOST_FRAMES]]
    *backbone, head = paths.values()
    onnx_rollout(engines.config, backbone, head, few, open_graph=open_graph)
    for path in names:
        remove_graph(path)
    forms = {}
    for name, graph in engines.graphs.items():
        if name not in observed:
            precision = "fp32" if name == "head" else engines.precisions[name]
            forms[name] = EngineForm(floats="fp32", reason=f"the bundle asks for {precision}")
            continue
        model = read_graph(graph)
        reached: dict[str, float] = {}
        for node, magnitude in zip(observed[name], map(float, largest[name]), strict=True):
            original = node.removesuffix("/columns")
            reached[original] = max(magnitude, reached.get(original, 0.0))
        forms[name] = EngineForm(
            floats="fp16",
            islands=islands[name] | _beyond_fp16(model.graph, reached),
            largest=_by_block(model.graph, reached),
            num_frames=sum(map(len, few)),
        )
    return forms


def prove_engines(
    engines: EngineGraphs,
    forms: dict[GraphName, EngineForm],
    reference: RolloutTrace,
    episodes: Episodes,
    described: str,
    thresholds: dict[str, float],
    work: Path,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> TensorRtRecord:
    """Roll the emulated engines through `episodes` and compare with PyTorch's `reference`.

    Where a threshold is missed, every float of the engines stays in fp32, and the record says why.
    """
    paths = []
    for name, graph in engines.graphs.items():
        if forms[name].floats == "fp32":
            paths.append(engines.run_here[name])
        else:
            paths.append(work / f"{name}-emulated.onnx")
            write_emulation(graph, forms[name].islands, paths[-1])
    *backbone, head = paths
    metrics = compare_traces(reference, onnx_rollout(engines.config, backbone, head, episodes, on_step=on_step))
    parity = ParityRecord(
        num_steps=len(reference.features),
        inputs=f"{described}; engines emulated by rounding to fp16, accumulation in fp32",
        metrics=metrics,
        thresholds=thresholds,
        passed=not missed(metrics, thresholds),
    )
    for path in paths:
        if path.parent == work:
            remove_graph(path)
    if parity.passed:
        return TensorRtRecord(graphs=forms, parity=parity)
    reason = f"fp16 missed {'; '.join(missed(metrics, thresholds))}"
    return TensorRtRecord(
        graphs={
            name: form
            if form.floats == "fp32"
            else form.model_copy(update={"floats": "fp32", "islands": {}, "reason": reason})
            for name, form in forms.items()
        },
        parity=parity,
    )


def _beyond_fp16(graph: ir.Graph, largest: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that must stay in fp32: their results come near fp16's end, or they read such a result."""
    found: dict[str, str] = {}
    wide: set[ir.Value] = set()
    for node in graph:
        name, magnitude = str(node.name), largest.get(str(node.name), 0.0)
        reads_wide = any(value in wide for value in node.inputs)
        if not magnitude * _MARGIN <= _LARGEST:  # NaN counts
            found[name] = f"reaches {magnitude:.3g} in {block_of(node)}: fp16 ends at {_LARGEST:g}"
            wide.update(node.outputs)
        elif reads_wide:
            found[name] = f"reads a number beyond fp16 in {block_of(node)}"
            if node.op_type in MOVES or node.op_type == "Cast":
                wide.update(node.outputs)
    return found


def _by_block(graph: ir.Graph, largest: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in graph:
        if str(node.name) in largest:
            block = block_of(node)
            found[block] = max(found.get(block, 0.0), largest[str(node.name)])
    return {block: float(f"{magnitude:.4g}") for block, magnitude in found.items()}
