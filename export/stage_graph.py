"""One fp32 graph of the backbone -> the files of one precision: the whole backbone, or one of its two stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, NamedTuple

import onnx_ir as ir

from rfedge.bundle.artifact import CPU_ROLES, Role
from rfedge.bundle.precision import BlockPrecision
from rfedge.bundle.stages import StagePrecisions
from rfedge.config import Precision
from rfedge.contract import GraphName
from rfedge.export.calibrate import EpisodeFrame, FrameInputs, Inputs
from rfedge.export.int8.matmuls import quantizable_matmuls, unknown_block
from rfedge.export.int8.options import Int8Options
from rfedge.export.mixed.record import SearchRecord
from rfedge.export.mixed.search import MixedSearch, search_plan
from rfedge.export.passes.graph_files import graph_files, read_graph, remove_graph, write_graph
from rfedge.export.precision_audit import effective_precisions, require_integer_kernels
from rfedge.export.precisions.block_quantization import BLOCK_SIZE
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.precisions.half import make_half
from rfedge.export.precisions.half_storage import store_weights_half
from rfedge.export.precisions.row_int8 import RowMatMul, store_rows
from rfedge.export.precisions.runs_here import write_emulation
from rfedge.export.precisions.weight_only import make_weight_only
from rfedge.export.quantize import quantize_int8
from rfedge.jobs.progress import StageProgress

# What calibration frames make better; int8 and mixed cannot do without.
CALIBRATED: Final = ("int8", "mixed", "int8-weight", "int4-weight")
_WEIGHT_BITS: Final[dict[str, Literal[4, 8]]] = {"int8-weight": 8, "int4-weight": 4}


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How the graphs are made."""

    precisions: StagePrecisions
    keep_float: tuple[str, ...] | None = None  # beginnings of blocks that stay in fp32; None is the precision's choice
    int8: Int8Options = field(default_factory=Int8Options)
    frames: FrameInputs | None = None
    calibration: Sequence[EpisodeFrame] = ()  # the frames that set int8 ranges and round weights
    mixed: MixedSearch | None = None
    head_is_int8: bool = False  # a head with int8 weights for CPUs too
    merge_tokens: int = 0
    words_blocks: int = 0  # decoder blocks that are run on the sentences, and lacking in the graph


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
            settings.frames.config, source, head, inputs, settings.int8, settings.mixed, progress=progress
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
        options=settings.int8,
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
