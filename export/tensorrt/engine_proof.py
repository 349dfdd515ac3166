"""Proof of the engines' arithmetic, before there is an engine: which floats fp16 can hold, and what it does to the actions.

In order: measure the largest number of every fp16 result, frame by frame; leave in fp32 what comes near fp16's end, and what
reads it; roll the emulated graphs through the episodes of the bundle's own proof. What then misses a gate is built in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array, Float32
from rfedge.bundle.artifact import EngineForm, ParityRecord, TensorRtRecord
from rfedge.bundle.gates import missed
from rfedge.bundle.traces import Episodes, RolloutTrace, compare_traces
from rfedge.config import PolicyConfig, Precision
from rfedge.contract import GraphName
from rfedge.export.parity import graph_call, onnx_rollout
from rfedge.export.passes.graph_files import read_graph, remove_graph
from rfedge.export.passes.graph_queries import block_of
from rfedge.export.precisions.runs_here import MOVES
from rfedge.export.tensorrt.emulation import LARGEST_NAME, write_emulation
from rfedge.export.tensorrt.engine_form import default_islands
from rfedge.recurrence import Arrays

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

    few = _first_steps(episodes)
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


def _first_steps(episodes: Episodes) -> list[list[dict[str, Array]]]:
    """Return about as many steps of each episode, `_MOST_FRAMES` in all."""
    each = max(_MOST_FRAMES // max(len(episodes), 1), 1)
    return [list(episode[:each]) for episode in episodes[:_MOST_FRAMES]]


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
