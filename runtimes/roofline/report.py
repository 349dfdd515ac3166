"""The report of `rfedge inspect`: what a policy costs, and what each device would make of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.stages import graph_of_block
from rfedge.config import PolicyConfig
from rfedge.contract import GraphName
from rfedge.io.plotting import check_matplotlib, save_figure
from rfedge.jobs.progress import StageProgress
from rfedge.machine.jetson import probe_jetson
from rfedge.machine.memory import probe_memory
from rfedge.machine.probing import probe
from rfedge.runtimes.roofline.analytic_work import analytic_work
from rfedge.runtimes.roofline.devices import DEVICES, Device, device, device_of_board
from rfedge.runtimes.roofline.graph_work import EngineShares, bundle_work, engine_shares, engine_work
from rfedge.runtimes.roofline.roofline import Prediction, predict
from rfedge.runtimes.roofline.this_machine import MeasuredCalls, device_of_gpu, measure_bundle, measure_cpu, this_gpu
from rfedge.runtimes.roofline.work import STAGES, Arithmetic, PolicyWork, Sums, sum_matmuls


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """One graph of a bundle: what a runtime loads at once."""

    graph: GraphName  # "backbone" and "head", or "vision", "decoder" and "head"
    file: str  # its name in the bundle
    size_bytes: int  # with the weights beside it
    macs: int  # multiply-accumulates of one policy call
    precision: str  # of its MatMuls with weights


@dataclass(frozen=True, slots=True)
class Inspection:
    """A policy's work and its predictions."""

    subject: str  # the bundle's folder, or the configuration's name with a precision
    counted_from: str  # "graphs" or "configuration"
    policy: str  # name of the policy
    work: PolicyWork
    predictions: tuple[Prediction, ...]
    disagreements: tuple[str, ...] = ()  # blocks whose precision in the graph is not what the manifest says
    forced_past: tuple[str, ...] = ()  # thresholds that the bundle missed when it was exported with --force
    graphs: tuple[GraphFiles, ...] = ()  # of a bundle, in call order
    # what GPUs are predicted by, where their engines compute in other floats than the graphs
    engine_work: PolicyWork | None = None
    engines: tuple[EngineShares, ...] = ()  # audits of the engines that are built
    # calls of the bundle on this CPU, where that is among the devices and has the memory
    measured: MeasuredCalls | None = None

    def document(self) -> dict[str, Any]:
        return {
            "format": "rfedge-inspection",
            "schema_version": 2,
            "subject": self.subject,
            "counted_from": self.counted_from,
            "policy": self.policy,
            "head_steps": self.work.head_steps,
            "total": _sums(self.work.total()),
            "embedding_bytes": self.work.embedding_bytes,
            "table_bytes": self.work.table_bytes,
            "memory_bytes": self.work.memory_bytes,
            "uncounted": list(self.work.uncounted),
            "disagreements": list(self.disagreements),
            "forced_past": list(self.forced_past),
            "graphs": [dataclasses.asdict(graph) for graph in self.graphs],
            "stages": {stage: _sums(self.work.stage(stage)) for stage in STAGES},
            "blocks": [
                {"stage": stage, "block": block, **_sums(sums)} for (stage, block), sums in self.work.blocks().items()
            ],
            "engine_stages": None
            if self.engine_work is None
            else {stage: _sums(self.engine_work.stage(stage)) for stage in STAGES},
            "engines": [{**dataclasses.asdict(item), "num_launches": item.num_launches} for item in self.engines],
            "predictions": [_prediction(item) for item in self.predictions],
            "measured": None if self.measured is None else dataclasses.asdict(self.measured),
        }


def inspect_bundle(
    bundle: Bundle, *, devices: Sequence[str] = (), threads: int | None = None, progress: StageProgress = lambda *_: None
) -> Inspection:
    """Count the graphs, predict, and run the bundle where this CPU is among the devices; without any, all known ones.

    Raises:
        ArtifactError: a graph cannot be read.
        ConfigError: a device is unknown.
        BackendUnavailableError: "this-gpu" was asked for and there is none.
    """
    progress("count", 0, 1)
    work = bundle_work(bundle)
    progress("count", 1, 1)
    counted = {block: sums.label for (_, block), sums in work.blocks().items()}
    # What is counted are the graphs for every device; a head for CPUs alone is none of them.
    disagreements = tuple(
        f"{block}: the manifest says {said}, the graph {counted[block]}"
        for block, said in bundle.manifest.precision.blocks.items()
        if block in counted and counted[block] != str(said) and not (block == "head" and bundle.has("head-cpu"))
    )
    predictions = _predict(work, devices, threads, progress, on_gpu=engine_work(work, bundle))
    measured = None
    if any(item.device.name == "this-cpu" and item.fits for item in predictions):
        progress("run the bundle", 0, 1)
        measured = measure_bundle(bundle, threads)
        progress("run the bundle", 1, 1)
    return Inspection(
        subject=str(bundle.root),
        counted_from="graphs",
        policy=bundle.policy.name,
        work=work,
        predictions=predictions,
        disagreements=disagreements,
        forced_past=bundle.manifest.parity.forced_past,
        graphs=_graph_files(bundle, work),
        engine_work=None if bundle.manifest.tensorrt is None else engine_work(work, bundle),
        engines=engine_shares(bundle),
        measured=measured,
    )


def _graph_files(bundle: Bundle, work: PolicyWork) -> tuple[GraphFiles, ...]:
    found = []
    for name in bundle.contract.graphs:
        file = bundle.path(name).name
        sums = sum_matmuls(matmul for matmul in work.matmuls if graph_of_block(bundle.contract, matmul.block) == name)
        size_bytes = sum(
            artifact.size_bytes
            for artifact in bundle.manifest.artifacts
            if artifact.path == file or (artifact.role == "weights" and artifact.path.startswith(file))
        )
        found.append(GraphFiles(name, file, size_bytes, sums.macs, sums.label))
    return tuple(found)


def inspect_config(
    config: PolicyConfig,
    precision: str,
    *,
    devices: Sequence[str] = (),
    threads: int | None = None,
    progress: StageProgress = lambda *_: None,
) -> Inspection:
    """Count a configuration's MatMuls without any file and predict; errors as `inspect_bundle` and `analytic_work`."""
    work = analytic_work(config, precision)
    return Inspection(
        subject=f"{config.name} in {precision}",
        counted_from="configuration",
        policy=config.name,
        work=work,
        predictions=_predict(work, devices, threads, progress),
    )


def _predict(
    work: PolicyWork, names: Sequence[str], threads: int | None, progress: StageProgress, *, on_gpu: PolicyWork | None = None
) -> tuple[Prediction, ...]:
    for name in names:
        if name not in ("this-cpu", "this-gpu"):
            device(name)  # an unknown name is refused before anything is measured
    chosen: list[Device] = []
    wanted = list(dict.fromkeys(names)) or [*DEVICES, *_present_devices()]
    for name in wanted:
        if name == "this-cpu":
            progress("measure this CPU", 0, 1)
            chosen.append(measure_cpu(threads))
            progress("measure this CPU", 1, 1)
        elif name == "this-gpu":
            chosen.append(_own_board() or this_gpu())
        else:
            chosen.append(device(name))
    return tuple(predict(work if item.name == "this-cpu" or on_gpu is None else on_gpu, item) for item in chosen)


def _present_devices() -> list[str]:
    from rfedge.machine.gpu import probe_gpu

    gpu = probe(probe_gpu).value
    has_gpu = _own_board() is not None or (gpu is not None and device_of_gpu(gpu) is not None)
    return ["this-cpu", "this-gpu"] if has_gpu else ["this-cpu"]


def _own_board() -> Device | None:
    """Return the known device that this very board is, at its highest power mode; None when it is no Jetson."""
    jetson, memory = probe(probe_jetson).value, probe(probe_memory).value
    if jetson is None or memory is None:
        return None
    name = device_of_board(jetson.model, memory.total_bytes)
    return None if name is None else dataclasses.replace(DEVICES[name], name="this-gpu")


def _sums(sums: Sums) -> dict[str, Any]:
    return {**dataclasses.asdict(sums), "operations": sums.operations, "intensity": sums.intensity}


def _prediction(item: Prediction) -> dict[str, Any]:
    return {
        "device": {**dataclasses.asdict(item.device), "peaks": dict(item.device.peaks)},
        "predicted": True,
        "low_ms": item.low_ms,
        "high_ms": item.high_ms,
        "stages": {stage: dataclasses.asdict(part) for stage, part in item.stages.items()},
        "substitutes": dict(item.substitutes),
        "needed_bytes": item.needed_bytes,
        "free_bytes": item.free_bytes,
        "fits": item.fits,
    }


_MARKERS: Final = {"preprocess": "P", "vision": "o", "resampler": "s", "decoder": "D", "head": "^"}
_MOST_DEVICES: Final = 6
_FAMILIES: Final = ("orin-nano-8gb-super", "orin-nx-16gb-super", "agx-orin-64gb", "thor-t5000")


def plot_roofline(inspection: Inspection, path: Path) -> None:
    """Draw the roofline to the picture file `path`; its ending names the format.

    Each device has a roof (bandwidth, then its peak in the policy's commonest arithmetic). A stage stands at its arithmetic
    intensity and, under each roof, at the best rate of its prediction, with a line down to the worst.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
    """
    check_matplotlib("--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    work = inspection.work
    by_arithmetic = work.total().macs_by_arithmetic
    main: Arithmetic = max(by_arithmetic, key=lambda name: by_arithmetic[name])
    stages = {stage: sums for stage in STAGES if (sums := work.stage(stage)).macs and sums.traffic_bytes}
    devices = _plotted(inspection)
    corners = [item.rate(main)[1] / item.bandwidth for item in devices]
    intensities = [sums.intensity for sums in stages.values()]
    x = np.geomspace(min([*intensities, *corners]) / 4, max([*intensities, *corners]) * 4, 200)

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = [f"C{index}" for index in range(len(devices))]
    for board, colour in zip(devices, colours, strict=True):
        used, peak = board.rate(main)
        roof = np.minimum(board.bandwidth * x, peak)
        note = f"{used}, {board.origin}"
        axes.loglog(x, roof / 1e9, color=colour, label=f"{board.name} ({note})")
        prediction = next(item for item in inspection.predictions if item.device is board)
        for stage, sums in stages.items():
            rates = [
                sums.operations / ms / 1e6 for ms in (prediction.stages[stage].low_ms, prediction.stages[stage].high_ms)
            ]
            axes.plot([sums.intensity] * 2, rates, color=colour, linewidth=1)
            axes.plot(sums.intensity, rates[0], _MARKERS[stage], color=colour, markersize=7, markeredgecolor="black")
    bottom, top = axes.get_ylim()
    levels = _label_levels(intensities)
    for (stage, sums), level in zip(stages.items(), levels, strict=True):
        axes.axvline(sums.intensity, color="grey", linewidth=0.6, linestyle=":")
        axes.text(sums.intensity, bottom * (top / bottom) ** (0.02 + 0.05 * level), f" {stage}", fontsize=9)
    axes.set_xlabel("arithmetic intensity (operations per byte of traffic)")
    axes.set_ylabel("10⁹ operations per second")
    axes.set_title(f"{inspection.policy}, mostly {main}: predicted rate of each stage under each device's roof")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    save_figure(figure, path)


def _plotted(inspection: Inspection) -> Sequence[Device]:
    """Return what was asked for; of a long list this machine and one board a family: more roofs cannot be distinguished."""
    devices = [item.device for item in inspection.predictions]
    if len(devices) <= _MOST_DEVICES:
        return devices
    return [item for item in devices if item.name.startswith("this-") or item.name in _FAMILIES] or devices[:_MOST_DEVICES]


def _label_levels(intensities: Sequence[float]) -> list[int]:
    """Return a height for each label, so that the names of stages with nearly the same intensity do not overlap."""
    levels = [0] * len(intensities)
    order = sorted(range(len(intensities)), key=lambda index: intensities[index])
    for before, after in itertools.pairwise(order):
        if intensities[after] < 1.6 * intensities[before]:
            levels[after] = levels[before] + 1
    return levels
