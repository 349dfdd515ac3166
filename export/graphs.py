"""Checkpoint -> the graphs of a bundle, step by step, with little more in memory than one step needs.

    trace (fp32) -> standard passes -> for two stages: cut at the latents -> form of each graph's precision

A full-size policy is 10 GB in fp32: it is dropped once it is traced, and weights pass from file to file one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.bundle.artifact import CPU_ROLES, Role
from rfedge.bundle.precision import BlockPrecision
from rfedge.bundle.stages import StagePrecisions
from rfedge.config import Precision
from rfedge.contract import MEDIA, BackboneStage, GraphContract, GraphName, PolicyContract
from rfedge.export.calibrate import EpisodeFrame, FrameInputs, Inputs
from rfedge.export.int8.matmuls import quantizable_matmuls, unknown_block
from rfedge.export.int8.options import Int8Options
from rfedge.export.mixed.record import SearchRecord
from rfedge.export.mixed.search import MixedSearch, search_plan
from rfedge.export.options import ExportOptions
from rfedge.export.parity import graph_call
from rfedge.export.passes.graph_files import graph_files, read_graph, remove_graph, write_graph
from rfedge.export.passes.split_stages import split_stages
from rfedge.export.passes.standard import apply_passes, head_passes
from rfedge.export.precision_audit import effective_precisions, require_integer_kernels
from rfedge.export.precisions.block_quantization import BLOCK_SIZE
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.precisions.half import make_half
from rfedge.export.precisions.half_storage import store_half, store_weights_half
from rfedge.export.precisions.head_int8 import quantize_head, store_head_int8
from rfedge.export.precisions.row_int8 import RowMatMul, store_rows
from rfedge.export.precisions.runs_here import write_emulation
from rfedge.export.precisions.weight_only import make_weight_only
from rfedge.export.quantize import quantize_int8
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.jobs.progress import StageProgress
from rfedge.model import load_checkpoint
from rfedge.recurrence import BackboneCall

# What calibration frames make better; int8 and mixed cannot do without.
CALIBRATED: Final = ("int8", "mixed", "int8-weight", "int4-weight")
_WEIGHT_BITS: Final[dict[str, Literal[4, 8]]] = {"int8-weight": 8, "int4-weight": 4}


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How the graphs are made."""

    precisions: StagePrecisions
    options: ExportOptions
    frames: FrameInputs | None
    calibration: Sequence[EpisodeFrame]  # the frames that set int8 ranges and round weights
    mixed: MixedSearch | None
    words_blocks: int  # decoder blocks that are run on the sentences, and lacking in the graph

    @property
    def head_is_int8(self) -> bool:
        """Whether there is a head with int8 weights for CPUs too."""
        return self.options.head_precision == "int8"


class RowGraphs(NamedTuple):
    """Q/DQ graph and CPU form whose query attention has int8 weights, and the Q/DQ graph with floats there."""

    portable: Path
    cpu: Path
    with_floats: Path

    def leave_floats(self) -> dict[str, BlockPrecision]:
        """Write both with float query attention; return what each block computes in then."""
        _write_portable(read_graph(self.with_floats), self.portable)
        lower_int8(self.portable, self.cpu)
        return effective_precisions(self.portable)


@dataclass(frozen=True, slots=True)
class WrittenGraph:
    files: dict[str, Role]  # name in the bundle's folder -> role
    blocks: dict[str, BlockPrecision]  # PyTorch block -> what it computes in, read back from the graph
    runs_here: Path  # the graph for this CPU, for proofs and to calibrate the next stage
    emulated_by: str = ""  # what `runs_here` is where this CPU cannot run the graph itself
    search: SearchRecord | None = None
    in_rows: RowGraphs | None = None  # where query attention is rounded, if the proof allows it


def write_form(
    name: GraphName,
    source: Path,
    target: Path,
    settings: GraphSettings,
    inputs: Sequence[Inputs],
    head: Path,
    *,
    keep_float: Sequence[str] | None,
    work: Path,
    progress: StageProgress,
) -> WrittenGraph:
    """Write the fp32 graph at `source`, which is removed, to `target` in its precision; `inputs` calibrate it.

    For fp32 `source` is `target` already. The head is for the search of a mixed plan.
    """
    precision = settings.precisions.graphs[name]
    if precision == "fp32":
        return WrittenGraph(file_roles(graph_files(target), name), effective_precisions(target), target)
    if precision in ("int8", "mixed"):
        return _write_int8(name, source, target, settings, inputs, head, keep_float=keep_float, progress=progress)

    def on_weight(done: int, total: int) -> None:
        progress(_label(name, precision), done, total)

    if precision in _WEIGHT_BITS:
        files = make_weight_only(
            _WEIGHT_BITS[precision],
            source,
            target,
            keep_float=keep_float,
            frames=inputs,
            on_weight=on_weight,
            on_frame=lambda done, total: progress(_label(name, "calibrate"), done, total),
        )
    else:
        form: Literal["fp16", "bf16"] = "fp16" if precision == "fp16" else "bf16"
        files = make_half(form, source, target, keep_float=keep_float, on_weight=on_weight)
    remove_graph(source)
    proved = graph_to_prove(name, target, precision, work=work)
    return WrittenGraph(file_roles(files, name), effective_precisions(target), *proved)


def describe_calibration(precisions: Iterable[Precision], int8: Int8Options) -> str:
    """Return what calibration frames are used for, in one line for the record."""
    methods = {
        "int8": int8.describe(),
        "mixed": int8.describe(),
        "int8-weight": "GPTQ, one scale per output, corrected bias",
        "int4-weight": f"GPTQ in blocks of {BLOCK_SIZE}, symmetric, corrected bias",
    }
    return "; ".join(dict.fromkeys(methods[precision] for precision in precisions if precision in methods))


def graph_to_prove(name: GraphName, graph: Path, precision: Precision, *, work: Path) -> tuple[Path, str]:
    """Return what to run on this CPU for a written graph, and in words what it is where that is an emulation."""
    if precision != "bf16":
        return graph, ""
    emulation = work / f"{name}-emulation.onnx"
    write_emulation(graph, emulation)
    text = "a graph in fp32 that rounds to bf16, which this CPU cannot run"
    return emulation, text if name == "backbone" else f"{name} by {text}"


def _write_int8(
    name: GraphName,
    source: Path,
    target: Path,
    settings: GraphSettings,
    inputs: Sequence[Inputs],
    head: Path,
    *,
    keep_float: Sequence[str] | None,
    progress: StageProgress,
) -> WrittenGraph:
    """Write the Q/DQ graph for TensorRT and OpenVINO, and the same with integer kernels, on one file of weights."""
    search, store = None, None
    if settings.mixed is not None:
        assert settings.frames is not None, "a plan is searched with frames"
        search, store = search_plan(
            settings.frames.config, source, head, inputs, settings.options.int8, settings.mixed, progress=progress
        )
        keep_float = search.keep_float
    quantized = source.with_name(f"{name}-quantized.onnx")
    # A plan, and names to keep in float, say what is in float; only the default leaves it to the proof.
    rows: dict[str, RowMatMul] | None = {} if settings.mixed is None and keep_float is None else None
    num_matmuls = quantize_int8(
        source,
        quantized,
        inputs,
        keep_float=keep_float,
        options=settings.options.int8,
        store=store,
        rows=rows,
        progress=lambda step, done, total: progress(_label(name, step), done, total),
    )
    remove_graph(source)
    model = read_graph(quantized)
    store_rows(model.graph, rows or {})
    # what a plan leaves in float is what the budget was measured with
    files = _write_portable(model, target, stores_half=settings.mixed is None)
    del model
    if not rows:
        remove_graph(quantized)
    cpu_role = CPU_ROLES[name]
    cpu = target.with_name(f"{cpu_role}.onnx")
    progress(_label(name, "audit kernels"), 0, 1)
    lower_int8(target, cpu, rows or {})
    require_integer_kernels(cpu, num_expected=num_matmuls + len(rows or ()))
    progress(_label(name, "audit kernels"), 1, 1)
    roles: dict[str, Role] = {**file_roles(files, name), cpu.name: cpu_role}
    if search is not None:
        record = target.with_name("mixed.json")
        record.write_text(search.model_dump_json(indent=2) + "\n")
        roles[record.name] = "record"
    blocks = effective_precisions(target)
    return WrittenGraph(roles, blocks, cpu, search=search, in_rows=RowGraphs(target, cpu, quantized) if rows else None)


def _write_portable(model: ir.Model, target: Path, *, stores_half: bool = True) -> list[Path]:
    if stores_half:
        store_weights_half(model.graph)
    return write_graph(model, target, inline_limit_bytes=0)


def share_keep_float(
    graphs: Mapping[GraphName, Path], keep_float: Sequence[str] | None
) -> dict[GraphName, tuple[str, ...] | None]:
    """Give each fp32 graph those of the names to keep in float that begin something in it; ConfigError for unknown ones."""
    if keep_float is None or len(graphs) == 1:
        return dict.fromkeys(graphs, None if keep_float is None else tuple(keep_float))
    matmuls = {name: quantizable_matmuls(read_graph(path).graph, ()) for name, path in graphs.items()}
    shared: dict[GraphName, list[str]] = {name: [] for name in graphs}
    for pattern in keep_float:
        holders = [name for name, found in matmuls.items() if any(fnmatchcase(item.module, pattern + "*") for item in found)]
        if not holders:
            raise unknown_block(pattern, (matmul.block for found in matmuls.values() for matmul in found))
        for name in holders:
            shared[name].append(pattern)
    return {name: tuple(patterns) for name, patterns in shared.items()}


def _label(name: GraphName, step: str | Precision) -> str:
    return step if name == "backbone" else f"{name}: {step}"


def file_roles(files: Sequence[Path], role: Role) -> dict[str, Role]:
    return {path.name: role if index == 0 else "weights" for index, path in enumerate(files)}


def write_graphs(
    checkpoint: Path,
    contract: PolicyContract,
    root: Path,
    settings: GraphSettings,
    *,
    work: Path,
    progress: StageProgress = lambda *_: None,
) -> dict[GraphName, WrittenGraph]:
    """Write the graphs of the policy in `checkpoint`, the head last, to `root`; the caller removes `work`, on its disk."""
    traced, traced_head = work / "traced.onnx", work / "traced-head.onnx"
    progress("trace", 0, 2)
    policy = load_checkpoint(checkpoint).policy
    policy.backbone.vision.merge_tokens = settings.options.merge_tokens
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
    files, head_here = file_roles(stored, "head"), head
    if settings.head_is_int8:
        head_here = root / "head-cpu.onnx"
        files |= file_roles(quantize_head(traced_head, head_here), "head-cpu")
    keep_float = share_keep_float(sources, settings.options.keep_float)
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
    kind = "int8-weight" if settings.head_is_int8 and not is_exact else "fp32"
    on_cpus = "int8" if settings.head_is_int8 else None
    written["head"] = WrittenGraph(files, {"head": BlockPrecision(matmuls={kind: 1}, on_cpus=on_cpus)}, head_here)
    return written


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
    see: BackboneCall | None = None
    if name == "decoder":
        # The vision stage as a backbone of which nobody reads the feature: all that a history needs.
        images, call = [spec.name for spec in contract.graphs["vision"].inputs], graph_call(written["vision"].runs_here)
        feature = np.zeros((1, frames.config.feature_size), np.float32)
        see = lambda inputs: {"feature": feature, **call({name: inputs[name] for name in images})}  # noqa: E731
    elif remembers:
        see = graph_call(source)
    for inputs in frames.with_history(pairs, see) if remembers and see is not None else frames.stream(pairs):
        known = {**inputs, **see(inputs)} if name == "decoder" and see is not None else inputs
        yield {name: known[name] for name in names}
