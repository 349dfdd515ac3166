"""One graph -> one plan, in memory: parse, limit, build. The types come from the graph alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from rfedge.bundle.engines import EngineTarget
from rfedge.contract import GraphContract
from rfedge.errors import ConfigError, ExportError
from rfedge.export.tensorrt.engine_layers import EngineLayer, layers_from_inspector, layers_from_log
from rfedge.export.tensorrt.network import (
    PERMILLE,
    BuildLog,
    ModuleNames,
    attach_log,
    attach_progress,
    constant_bytes,
    name_failure,
    parse_network,
)
from rfedge.export.tensorrt.options import BuilderSettings
from rfedge.export.tensorrt.profiles import Profile
from rfedge.jobs.progress import Count
from rfedge.nvidia.tensorrt import TensorRt

_MIB = 1 << 20


@dataclass(slots=True)
class BuiltEngine:
    plan: Any  # the serialized engine, a buffer
    layers: list[EngineLayer]  # empty where the module tells nothing
    source: str  # where `layers` come from
    timing_cache: bytes | None  # to start the next build with
    graph_bytes: dict[str, int]  # constants in the graph, per element type
    weights_bytes: int  # of the engine, 0 where not said
    activations_bytes: int
    build_seconds: float  # parser and builder together
    notes: list[str] = field(default_factory=list)  # such as a timing cache that was not accepted
    num_profiles: int = 1  # the layers of each are in `layers`


def build_engine(
    module: TensorRt,
    graph: onnx.ModelProto,
    path: Path,
    contract: GraphContract,
    target: EngineTarget,
    settings: BuilderSettings,
    *,
    profiles: Sequence[Profile] = (),
    timing_cache: bytes | None = None,
    progress: Count = lambda *_: None,
) -> BuiltEngine:
    """Build one engine of a prepared graph, whose inline weights are cleared once the parser has them, to halve the memory.

    Without `profiles` dynamic axes have their longest size alone. `progress` is called with (done, 1000).

    Raises:
        ExportError: parser or builder refuse; the text names the ONNX node and the PyTorch module.
        ConfigError: a limit the module does not take.
    """
    trt = module.trt
    started = time.perf_counter()
    log = BuildLog()
    logger = attach_log(module, log)
    names = ModuleNames(graph)
    builder = trt.Builder(logger)
    network, parser = parse_network(module, builder, graph.SerializeToString(), path, names, log, logger)
    for tensor in graph.graph.initializer:
        tensor.ClearField("raw_data")
    graph_bytes = constant_bytes(module, network)

    config = builder.create_builder_config()
    _configure(module, config, target, settings)
    notes = _use_timing_cache(config, timing_cache) if module.keeps_timing_cache else []
    _add_profiles(builder, config, contract, profiles)
    monitor = attach_progress(module, log, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    progress(0, PERMILLE)
    plan = builder.build_serialized_network(network, config)
    if log.interrupt is not None:
        raise log.interrupt
    if plan is None:
        got, expected = name_failure(log.errors, names), f"an engine from {module.name} {module.version}"
        raise ExportError(f"engine of {path.name} for SM{target.sm}", got=got, expected=expected, remedy=_remedy(log.errors))
    progress(PERMILLE, PERMILLE)
    cache = bytes(config.get_timing_cache().serialize()) if module.keeps_timing_cache else None
    seconds = time.perf_counter() - started
    del parser, network, config, builder  # before the engine is opened below: a small board holds one or the other
    layers, source = _read_layers(module, log, logger, plan, target)
    return BuiltEngine(
        plan=plan,
        layers=layers,
        source=source,
        timing_cache=cache,
        graph_bytes=graph_bytes,
        weights_bytes=log.weights_bytes,
        activations_bytes=log.activations_bytes,
        build_seconds=seconds,
        notes=notes,
        num_profiles=max(len(profiles), 1),
    )


def _configure(module: TensorRt, config: Any, target: EngineTarget, settings: BuilderSettings) -> None:
    trt = module.trt
    pools = (
        ("workspace", trt.MemoryPoolType.WORKSPACE, settings.workspace_mib),
        ("builder memory", trt.MemoryPoolType.TACTIC_DRAM, settings.builder_memory_mib),
    )
    for name, pool, mib in pools:
        if mib < 0:
            raise ConfigError(name, got=f"{mib} MiB", expected="0 or more", remedy="0 sets no limit.")
        if mib:
            config.set_memory_pool_limit(pool, mib * _MIB)
    if not 0 <= settings.optimization_level <= 5:
        raise ConfigError("optimization level", got=settings.optimization_level, expected="0 to 5", remedy="3 is usual.")
    config.builder_optimization_level = settings.optimization_level
    if settings.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    # Layer names and types stay in the plan and in the log: the audit reads them.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if target.ahead_of_time:
        config.num_compute_capabilities = 1
        config.set_compute_capability(module.compute_capabilities[target.sm], 0)


def _use_timing_cache(config: Any, data: bytes | None) -> list[str]:
    """Start from `data` where it fits this device, else from nothing; a damaged or foreign cache costs time only."""
    cache = config.create_timing_cache(data or b"")
    if cache is not None and config.set_timing_cache(cache, False):  # noqa: FBT003 - the module's own signature
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003
    return ["the timing cache did not fit this device or was damaged; it starts anew"]


def _add_profiles(builder: Any, config: Any, contract: GraphContract, profiles: Sequence[Profile]) -> None:
    dynamic = [spec for spec in contract.inputs if -1 in spec.shape]
    if not dynamic:
        return
    for sizes in profiles or ({spec.name: (spec.longest or 1,) * 3 for spec in dynamic},):
        profile = builder.create_optimization_profile()
        for spec in dynamic:
            shapes = [tuple(size if axis == -1 else axis for axis in spec.shape) for size in sizes[spec.name]]
            profile.set_shape(spec.name, *shapes)
        config.add_optimization_profile(profile)


def _read_layers(
    module: TensorRt, log: BuildLog, logger: Any, plan: Any, target: EngineTarget
) -> tuple[list[EngineLayer], str]:
    """Prefer the engine itself; without its device, or from a silent inspector, take what the builder printed."""
    if not target.ahead_of_time:
        engine = module.trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is not None:
            text = engine.create_engine_inspector().get_engine_information(module.trt.LayerInformationFormat.JSON)
            if layers := layers_from_inspector(text):
                return layers, "engine inspector"
    if layers := layers_from_log(log.layers_text):
        return layers, "builder's description of the engine"
    return [], "parsed network"


def _remedy(errors: list[str]) -> str:
    if any("memory" in text.lower() for text in errors):
        return "Close other programs, lower --workspace-mib and --builder-memory-mib, or build one --stage at a time."
    if any("Cannot compile" in text or "not supported" in text for text in errors):
        return "Export the bundle in a precision this GPU has, or build for another one."
    return "Report it with the bundle; onnxruntime runs this bundle meanwhile."
