"""Checkpoint -> the graphs of a bundle in one precision, step by step, with little more in memory than one step needs.

    trace (fp32) -> standard passes -> form of the precision -> for int8 also the form with integer kernels for CPUs

A full-size policy is 10 GB in fp32, so nothing here holds two of its copies: the policy is dropped once it is traced,
weights pass from file to file one at a time, and each graph that only led to the next is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnx

from rfedge.bundle import Role
from rfedge.config import Precision
from rfedge.contract import PolicyContract
from rfedge.export.calibrate import EpisodeFrame, FrameInputs
from rfedge.export.forms.cpu_int8 import lower_int8
from rfedge.export.forms.half import make_bf16, make_fp16
from rfedge.export.forms.half_storage import store_half, store_weights_half
from rfedge.export.forms.runs_here import write_stand_in
from rfedge.export.forms.weight_only import make_int4_weight, make_int8_weight
from rfedge.export.mixed.search import MixedSearch, SearchRecord, search_plan
from rfedge.export.parity import StageProgress, graph_call
from rfedge.export.passes.graph_files import graph_files, read_graph, write_graph
from rfedge.export.passes.standard import apply_passes
from rfedge.export.precision_audit import effective_precisions, require_integer_kernels
from rfedge.export.quantize import Int8Options, quantize_int8
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import load_checkpoint

__all__ = ["GraphSettings", "WrittenGraphs", "write_graphs"]

_FORMS: Final = {
    "fp16": make_fp16,
    "bf16": make_bf16,
    "int8-weight": make_int8_weight,
    "int4-weight": make_int4_weight,
}


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How the graphs are made.

    Attributes:
        precision: of the backbone; the head computes in fp32 and is stored in fp16 unless the precision is fp32.
        keep_float: beginnings of the names of blocks that stay in fp32; None for the precision's own choice.
        int8: how an int8 graph is made.
        frames, calibration: demonstrations, and which of their frames set the int8 ranges.
        mixed: what a mixed plan is searched by.
    """

    precision: Precision
    keep_float: tuple[str, ...] | None = None
    int8: Int8Options = field(default_factory=Int8Options)
    frames: FrameInputs | None = None
    calibration: Sequence[EpisodeFrame] = ()
    mixed: MixedSearch | None = None


@dataclass(frozen=True, slots=True)
class WrittenGraphs:
    """What was written.

    Attributes:
        files: name -> role, all of them in the bundle's folder.
        blocks: PyTorch block -> what it computes in, read back from the graph.
        backbone: the graph that runs on this CPU, for the proof.
        head: head.onnx.
        proved_by: what stands in for the backbone where this CPU cannot run it, or "".
        search: the evidence of a mixed plan.
    """

    files: dict[str, Role]
    blocks: dict[str, str]
    backbone: Path
    head: Path
    proved_by: str = ""
    search: SearchRecord | None = None


def write_graphs(
    checkpoint: Path,
    contract: PolicyContract,
    root: Path,
    settings: GraphSettings,
    *,
    work: Path,
    progress: StageProgress = lambda *_: None,
) -> WrittenGraphs:
    """Write the graphs of the policy in `checkpoint` to the folder `root`.

    Args:
        checkpoint: its folder.
        contract: of the policy.
        root: the bundle to be.
        settings: precision and how to reach it.
        work: folder on the same disk for what lies between; the caller removes it after the proof.
        progress: told (stage, done, total).

    Raises:
        ConfigError: `keep_float` names no block.
        ExportError: the exporter or a form refuses a module or a weight.
    """
    traced, traced_head = work / "traced.onnx", work / "traced-head.onnx"
    progress("trace", 0, 2)
    policy = load_checkpoint(checkpoint).policy
    trace_backbone(policy, contract.backbone, traced)
    progress("trace", 1, 2)
    trace_head(policy, contract.head, traced_head)
    del policy
    progress("trace", 2, 2)
    backbone, head = root / "backbone.onnx", root / "head.onnx"
    between = backbone if settings.precision == "fp32" else work / "float.onnx"
    apply_passes(traced, between, on_weight=lambda done, total: progress("passes", done, total))
    _remove(traced)
    files = _roles(store_half(traced_head, head) if settings.precision != "fp32" else _copy(traced_head, head), "head")
    proof, proved_by, search = backbone, "", None
    if settings.precision == "fp32":
        files |= _roles(graph_files(backbone), "backbone")
        blocks = effective_precisions(onnx.load(backbone, load_external_data=False))
    elif settings.precision in ("int8", "mixed"):
        written, proof, search = _write_int8(between, backbone, head, settings, progress)
        files |= written
        blocks = effective_precisions(onnx.load(backbone, load_external_data=False))
    else:
        make = _FORMS[settings.precision]
        report = make(
            between,
            backbone,
            keep_float=settings.keep_float or (),
            on_weight=lambda done, total: progress(settings.precision, done, total),
        )
        files |= _roles(report.files, "backbone")
        blocks = report.blocks
        if settings.precision == "bf16":
            proof, proved_by = work / "stand-in.onnx", "a graph in fp32 that rounds to bf16, which this CPU cannot run"
            write_stand_in(backbone, proof)
    _remove(between, keep=backbone)
    return WrittenGraphs(files, {**blocks, "head": "fp32"}, proof, head, proved_by, search)


def _write_int8(
    source: Path, target: Path, head: Path, settings: GraphSettings, progress: StageProgress
) -> tuple[dict[str, Role], Path, SearchRecord | None]:
    """Write the Q/DQ graph for TensorRT and OpenVINO, and the same with integer kernels, on one file of weights.

    For a mixed plan the evidence is written beside them.
    """
    frames = settings.frames
    assert frames is not None, "int8 needs frames"
    chosen = list(settings.calibration)
    is_single = frames.config.media_frames == 1
    inputs = list(frames.stream(chosen) if is_single else frames.with_history(chosen, graph_call(source)))
    keep_float, search, store = settings.keep_float, None, None
    if settings.mixed is not None:
        search, store = search_plan(frames.config, source, head, inputs, settings.int8, settings.mixed, progress=progress)
        keep_float = search.keep_float
    quantized = source.with_name("quantized.onnx")
    num_products = quantize_int8(
        source, quantized, inputs, keep_float=keep_float, options=settings.int8, store=store, progress=progress
    )
    _remove(source)
    model = read_graph(quantized)
    if settings.mixed is None:  # what a plan leaves in float is what the budget was measured with
        store_weights_half(model.graph)
    files = write_graph(model, target, inline_limit_bytes=0)
    del model
    _remove(quantized)
    cpu = target.with_name("backbone-cpu.onnx")
    progress("audit kernels", 0, 1)
    lower_int8(target, cpu)
    require_integer_kernels(cpu, num_expected=num_products)
    progress("audit kernels", 1, 1)
    roles: dict[str, Role] = {**_roles(files, "backbone"), cpu.name: "backbone-cpu"}
    if search is not None:
        record = target.with_name("mixed.json")
        record.write_text(search.model_dump_json(indent=2) + "\n")
        roles[record.name] = "record"
    return roles, cpu, search


def _roles(files: Sequence[Path], role: Role) -> dict[str, Role]:
    """The graph plays `role`; what lies beside it are weights."""
    return {path.name: role if index == 0 else "weights" for index, path in enumerate(files)}


def _copy(source: Path, target: Path) -> list[Path]:
    """Write a graph under another name; one with weights beside it names that file, so it cannot just be moved."""
    return write_graph(read_graph(source), target)


def _remove(graph: Path, *, keep: Path | None = None) -> None:
    if graph != keep:
        for path in graph_files(graph):
            path.unlink()
