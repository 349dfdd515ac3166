"""`rfedge build`: bundle -> engines for one target after the other, each stage finished and named before the next.

A stage is built in memory, then the target's folder is replaced as a whole, so a kill at any moment leaves the old folder
or the new one. The bundle's own files are only read.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from rfedge.bundle.artifact import ENGINES_FOLDER, Bundle, hash_file, load_bundle
from rfedge.bundle.engines import (
    AUDIT_NAME,
    RECORD_NAME,
    TIMING_CACHE_NAME,
    EngineFolder,
    EngineKey,
    EngineRecord,
    EngineStage,
    check_plan,
    graph_hashes,
    read_engine_folder,
)
from rfedge.errors import ArtifactError, ConfigError, one_of
from rfedge.export.tensorrt.audit import StageAudit, audit_built
from rfedge.export.tensorrt.builder import BuiltEngine, build_engine
from rfedge.export.tensorrt.options import BuildOptions
from rfedge.export.tensorrt.prepare import check_precisions, choose_islands, float_key, prepare_graph
from rfedge.export.tensorrt.profiles import Profile, check_text_lengths, plan_profiles, text_lengths_of
from rfedge.io.atomic import atomic_directory
from rfedge.jobs.progress import StageProgress
from rfedge.nvidia.tensorrt import TensorRt, load_tensorrt

_ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    stage: EngineStage
    key: EngineKey
    folder: Path  # where it belongs
    profiles: tuple[Profile, ...]  # sizes of the dynamic inputs
    islands: dict[str, str] | None  # nodes in fp32 while other floats are fp16; None: the graph's own types
    reason: str | None  # why it must be built; None when the one that is there is right


@dataclass(frozen=True, slots=True)
class StageResult:
    planned: PlannedEngine
    record: EngineRecord
    audit: StageAudit
    built: bool  # false when it was up to date
    notes: tuple[str, ...] = ()


def open_target(options: BuildOptions) -> TensorRt:
    """Load the TensorRT that was asked for; ConfigError for one that never builds ahead of time."""
    if options.ahead_of_time and options.target == "tensorrt":
        expected = "--target tensorrt-rtx, which can build without the device"
        remedy = "Leave --target out, or build on the device itself without --aot."
        raise ConfigError("--aot", got="--target tensorrt", expected=expected, remedy=remedy)
    return load_tensorrt(options.target)


def plan_build(bundle: Bundle, module: TensorRt, options: BuildOptions) -> list[PlannedEngine]:
    """Decide which engines must be built, and check everything that can be checked without building.

    Raises:
        ConfigError: an unknown stage, a length of the text that the policy does not take, or no ahead-of-time target.
        BackendUnavailableError: this machine has no GPU and `ahead_of_time` is empty.
        ExportError: the graph holds a precision or operator that the target lacks.
    """
    stages = list(bundle.contract.graphs)
    one_of((*stages, _ALL), options.stage, "--stage", remedy="Choose one of what this bundle has.")
    text_lengths = check_text_lengths(options.text_lengths, bundle)
    targets = [module.ahead_of_time_target(sm) for sm in options.ahead_of_time] or [module.device_target()]
    planned = []
    for stage in stages if options.stage == _ALL else [name for name in stages if name == options.stage]:
        graph = onnx.load(bundle.path(stage), load_external_data=False)
        profiles = plan_profiles(bundle.contract.graphs[stage], text_lengths)
        graph_sha256, weights_sha256 = graph_hashes(bundle, stage)
        islands = choose_islands(bundle, stage, options.floats)
        for target in targets:
            check_precisions(graph, target, bundle.path(stage).parent)
            key = EngineKey(
                graph_sha256=graph_sha256,
                weights_sha256=weights_sha256,
                target=target,
                builder=options.settings.key(profiles) | float_key(islands),
            )
            folder = bundle.root / ENGINES_FOLDER / target.fingerprint
            reason = "asked for with --overwrite" if options.overwrite else _reason_to_build(folder, stage, key)
            planned.append(PlannedEngine(stage, key, folder, profiles, islands, reason))
    return planned


def _reason_to_build(folder: Path, stage: EngineStage, key: EngineKey) -> str | None:
    if not folder.is_dir():
        return "no engine yet"
    try:
        content = read_engine_folder(folder)
    except ArtifactError as error:
        return str(error)
    record = content.stages.get(stage)
    if record is None:
        return "no engine yet"
    if (reason := record.key.reason_stale(key)) is not None:
        return reason
    if (reason := check_plan(folder, record)) is not None:
        return f"damaged: {reason}"
    if _read_audit(folder, stage) is None:
        return f"no audit in {AUDIT_NAME}"
    return None


def build_bundle(path: Path, options: BuildOptions, *, progress: StageProgress = lambda *_: None) -> list[StageResult]:
    """Make every engine that is asked for and not there yet, one at a time; return all of them.

    Raises:
        ArtifactError: the bundle is damaged, another build is running, or its folder cannot be written.
        BackendUnavailableError: no TensorRT, or no GPU to build for.
        ConfigError: an option is unknown.
        ExportError: parser or builder refuse; the text names the ONNX node and the PyTorch module.
    """
    bundle = load_bundle(path)
    module = open_target(options)
    planned = plan_build(bundle, module, options)
    if all(item.reason is None for item in planned):  # also where the bundle cannot be written
        return [_present(item) for item in planned]
    results = []
    with _writing(bundle.root / ENGINES_FOLDER), _only_build(bundle.root / ENGINES_FOLDER):
        for leftover in (bundle.root / ENGINES_FOLDER).glob(".*.partial"):  # of killed builds: the lock is held
            shutil.rmtree(leftover, ignore_errors=True)
        for item in planned:
            results.append(_present(item) if item.reason is None else _build(bundle, module, item, options, progress))
            gc.collect()  # one engine at a time: the plan of the last one is not kept while the next is made
    return results


def _present(item: PlannedEngine) -> StageResult:
    record = read_engine_folder(item.folder).stages[item.stage]
    audit = _read_audit(item.folder, item.stage)
    assert audit is not None, "checked by _reason_to_build"
    return StageResult(item, record, audit, built=False)


def _build(
    bundle: Bundle, module: TensorRt, item: PlannedEngine, options: BuildOptions, progress: StageProgress
) -> StageResult:
    source, contract = bundle.path(item.stage), bundle.contract.graphs[item.stage]
    _check_room(bundle, item)
    graph = prepare_graph(source, islands=item.islands)
    label = f"{item.stage} sm{item.key.target.sm}"
    cache = item.folder / TIMING_CACHE_NAME
    built = build_engine(
        module,
        graph,
        source,
        contract,
        item.key.target,
        options.settings,
        profiles=item.profiles,
        timing_cache=cache.read_bytes() if module.keeps_timing_cache and cache.is_file() else None,
        progress=lambda done, total: progress(label, done, total),
    )
    audit = audit_built(graph, built, item.islands or {})
    record = _write(item, built, audit, text_lengths_of(contract, item.profiles))
    return StageResult(item, record, audit, built=True, notes=tuple(built.notes))


def _check_room(bundle: Bundle, item: PlannedEngine) -> None:
    """Fail before a build of many minutes when not even the weights would fit."""
    graph = bundle.path(item.stage)
    needed = graph.stat().st_size + sum((bundle.root / name).stat().st_size for name in item.key.weights_sha256)
    if shutil.disk_usage(bundle.root).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(item: PlannedEngine, built: BuiltEngine, audit: StageAudit, text_lengths: tuple[int, ...]) -> EngineRecord:
    """Replace the target's folder by one with the new plan and whatever of the old one is still right."""
    name = f"{item.stage}.plan"
    kept = _kept_stages(item)
    audits = {stage: _read_audit(item.folder, stage) for stage in kept}
    with atomic_directory(item.folder, overwrite=True) as folder:
        for record in kept.values():
            _link(item.folder / record.plan, folder / record.plan)
        (folder / name).write_bytes(memoryview(built.plan))
        record = EngineRecord(
            key=item.key,
            plan=name,
            sha256=hash_file(folder / name),
            size_bytes=(folder / name).stat().st_size,
            precisions=audit.precisions,
            build_seconds=round(built.build_seconds, 3),
            weights_bytes=built.weights_bytes,
            activations_bytes=built.activations_bytes,
            layers=audit.layer_precisions,
            num_attention=len(audit.attention),
            num_fused=sum(item.fused for item in audit.attention),
            text_lengths=text_lengths,
        )
        if built.timing_cache is not None:
            (folder / TIMING_CACHE_NAME).write_bytes(built.timing_cache)
        texts = {stage: found.model_dump(mode="json") for stage, found in audits.items() if found is not None}
        texts[item.stage] = audit.model_dump(mode="json")
        (folder / AUDIT_NAME).write_text(json.dumps(texts, indent=1) + "\n")
        content = EngineFolder(target=item.key.target, stages={**kept, item.stage: record})
        (folder / RECORD_NAME).write_text(content.model_dump_json(indent=2) + "\n")
    return record


def _link(source: Path, target: Path) -> None:
    """Give a finished plan a second name: it needs no room, and nobody ever writes into a plan."""
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links, such as that of an SD card
        shutil.copy2(source, target)


def _kept_stages(item: PlannedEngine) -> dict[EngineStage, EngineRecord]:
    """Return the other stages of the folder whose plans are whole and for this very target."""
    try:
        content = read_engine_folder(item.folder)
    except ArtifactError:
        return {}
    return {
        stage: record
        for stage, record in content.stages.items()
        if stage != item.stage and record.key.target == item.key.target and check_plan(item.folder, record) is None
    }


def _read_audit(folder: Path, stage: EngineStage) -> StageAudit | None:
    path = folder / AUDIT_NAME
    try:
        return StageAudit.model_validate(json.loads(path.read_bytes())[stage])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _only_build(root: Path) -> Iterator[None]:
    """Hold the bundle for one build; the system lets go of it when the process ends, however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got, remedy = "another build that is running", "Wait for it; builds share the device's memory."
            raise ArtifactError(f"engines of {root.parent}", got=got, expected="one at a time", remedy=remedy) from None
        yield


_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        full, reason = error.errno in _FULL, os.strerror(error.errno)
        free_mib = shutil.disk_usage(root if root.exists() else root.parent).free >> 20
        raise ArtifactError(
            f"engines of {root.parent}",
            got=f"{reason} ({free_mib} MiB free)" if full else reason,
            expected="room for the engine" if full else "a folder that can be written",
            remedy="Free some space and build again; the bundle and its finished engines are unharmed."
            if full
            else "Copy the bundle to a place of your own, or change its permissions.",
        ) from error
