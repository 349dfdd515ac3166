"""Checkpoint -> the graphs of a bundle, step by step, with little more in memory than one step needs.

    trace (fp32) -> standard passes -> for two stages: cut at the latents -> form of each graph's precision

A full-size policy is 10 GB in fp32: it is dropped once it is traced, and weights pass from file to file one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rfedge.bundle.artifact import Role
from rfedge.bundle.precision import BlockPrecision
from rfedge.contract import MEDIA, BackboneStage, GraphContract, GraphName, PolicyContract
from rfedge.export.calibrate import Inputs
from rfedge.export.mixed.record import SearchRecord
from rfedge.export.parity import graph_call
from rfedge.export.passes.graph_files import read_graph, remove_graph, write_graph
from rfedge.export.passes.split_stages import split_stages
from rfedge.export.passes.standard import apply_passes, head_passes
from rfedge.export.precisions.half_storage import store_half
from rfedge.export.precisions.head_int8 import quantize_head, store_head_int8
from rfedge.export.stage_graph import (
    CALIBRATED,
    GraphSettings,
    RowGraphs,
    WrittenGraph,
    file_roles,
    share_keep_float,
    write_form,
)
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.jobs.progress import StageProgress
from rfedge.model import load_checkpoint
from rfedge.recurrence import BackboneCall


@dataclass(frozen=True, slots=True)
class WrittenGraphs:
    files: dict[str, Role]  # name in the bundle's folder -> role
    blocks: dict[str, BlockPrecision]  # PyTorch block -> what it computes in, read back from the graphs
    backbone: tuple[Path, ...]  # what runs on this CPU, for the proof, in call order
    head: Path
    proved_by: str = ""  # what stands in for graphs that this CPU cannot run
    search: SearchRecord | None = None
    in_rows: tuple[RowGraphs, ...] = ()  # whose query attention is rounded, if the proof allows it


def write_graphs(
    checkpoint: Path,
    contract: PolicyContract,
    root: Path,
    settings: GraphSettings,
    *,
    work: Path,
    progress: StageProgress = lambda *_: None,
) -> WrittenGraphs:
    """Write the graphs of the policy in `checkpoint` to the folder `root`; the caller removes `work`, on the same disk."""
    traced, traced_head = work / "traced.onnx", work / "traced-head.onnx"
    progress("trace", 0, 2)
    policy = load_checkpoint(checkpoint).policy
    policy.backbone.vision.merge_tokens = settings.merge_tokens
    policy.backbone.decoder.first = settings.words_blocks
    trace_backbone(policy, _to_trace(contract), traced)
    progress("trace", 1, 2)
    trace_head(policy, contract.head, traced_head)
    del policy
    progress("trace", 2, 2)
    precisions, head = settings.precisions.graphs, root / "head.onnx"
    # A graph that stays in fp32 is written where it belongs at once.
    sources = {
        name: root / f"{name}.onnx" if precision == "fp32" else work / f"{name}-float.onnx"
        for name, precision in precisions.items()
    }
    _write_float(traced, contract, sources, work / "whole.onnx", progress)
    is_exact = set(precisions.values()) == {"fp32"}
    apply_passes(traced_head, traced_head, head_passes())
    if is_exact:  # a graph with weights beside it names that file, so it cannot just be moved
        stored = write_graph(read_graph(traced_head), head)
    else:
        stored = store_head_int8(traced_head, head) if settings.head_is_int8 else store_half(traced_head, head)
    files = file_roles(stored, "head")
    head_here = head
    if settings.head_is_int8:
        head_here = root / "head-cpu.onnx"
        files |= file_roles(quantize_head(traced_head, head_here), "head-cpu")
    keep_float = share_keep_float(sources, settings.keep_float)
    written: dict[GraphName, WrittenGraph] = {}
    for name, source in sources.items():
        inputs: list[Inputs] = []
        if settings.calibration and precisions[name] in CALIBRATED:
            for frame in _calibration(name, contract, settings, source, written):
                inputs.append(frame)
                progress("read frames", len(inputs), len(settings.calibration))
        target = root / f"{name}.onnx"
        written[name] = write_form(
            name, source, target, settings, inputs, head, keep_float=keep_float[name], work=work, progress=progress
        )
        files |= written[name].files
    graphs = written.values()
    return WrittenGraphs(
        files,
        {block: found for graph in graphs for block, found in graph.blocks.items()}
        | {
            "head": BlockPrecision(
                matmuls={"int8-weight" if settings.head_is_int8 and not is_exact else "fp32": 1},
                on_cpus="int8" if settings.head_is_int8 else None,
            )
        },
        tuple(graph.runs_here for graph in graphs),
        head_here,
        "; ".join(graph.emulated_by for graph in graphs if graph.emulated_by),
        next((graph.search for graph in graphs if graph.search is not None), None),
        tuple(graph.in_rows for graph in graphs if graph.in_rows is not None),
    )


def _to_trace(contract: PolicyContract) -> GraphContract:
    """Name the latents among the outputs of a graph that is to be cut at them."""
    backbone = contract.backbone
    if not contract.backbone_stages or any(spec.name == MEDIA for spec in backbone.outputs):
        return backbone
    return backbone.model_copy(update={"outputs": (*backbone.outputs, *contract.backbone_stages["vision"].outputs)})


def _write_float(
    traced: Path, contract: PolicyContract, targets: dict[GraphName, Path], whole: Path, progress: StageProgress
) -> None:
    """Run the passes, cut where there are two stages, and remove what was traced."""
    cut = bool(contract.backbone_stages)
    apply_passes(
        traced, whole if cut else targets["backbone"], on_weight=lambda done, total: progress("passes", done, total)
    )
    remove_graph(traced)
    if cut:
        stages: dict[BackboneStage, Path] = {name: targets[name] for name in contract.backbone_stages}
        split_stages(
            whole, contract.backbone_stages, stages, on_weight=lambda done, total: progress("cut in two", done, total)
        )
        remove_graph(whole)


def _calibration(
    name: GraphName, contract: PolicyContract, settings: GraphSettings, source: Path, written: dict[GraphName, WrittenGraph]
) -> Iterator[Inputs]:
    """Yield what the graph reads in each calibration frame; the decoder's latents are those of the vision as written."""
    frames, pairs = settings.frames, settings.calibration
    assert frames is not None, "int8 needs frames"
    names = [spec.name for spec in contract.graphs[name].inputs]
    remembers = "media_history" in names
    see = None
    if name == "decoder":
        see = _vision_call(contract, written["vision"].runs_here, frames.config.feature_size)
    elif remembers:
        see = graph_call(source)
    for inputs in frames.with_history(pairs, see) if remembers and see is not None else frames.stream(pairs):
        known = {**inputs, **see(inputs)} if name == "decoder" and see is not None else inputs
        yield {name: known[name] for name in names}


def _vision_call(contract: PolicyContract, graph: Path, width: int) -> BackboneCall:
    """Return the vision stage as a backbone of which nobody reads the feature: all that a history needs."""
    images, call = [spec.name for spec in contract.graphs["vision"].inputs], graph_call(graph)
    feature = np.zeros((1, width), np.float32)
    return lambda inputs: {"feature": feature, **call({name: inputs[name] for name in images})}
