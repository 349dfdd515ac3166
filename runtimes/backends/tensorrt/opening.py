"""A bundle on TensorRT: the engines that `rfedge build` made for this very device.

The backbone's engines are needed. The head runs as an engine where one was built and in onnxruntime on the CPU where not:
it is small and bound by memory, and a step of it costs little there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.bundle.engines import EngineRecord, find_engine
from rfedge.errors import ArtifactError, BackendUnavailableError
from rfedge.nvidia.device import CudaDevice, read_cuda_device
from rfedge.nvidia.tensorrt import TARGETS, TensorRt, load_tensorrt
from rfedge.runtimes.backends.base import GraphRunner, PolicyParts, RuntimeSettings, Stage
from rfedge.runtimes.backends.ort import open_bundle as open_with_onnxruntime
from rfedge.runtimes.backends.tensorrt.runner import TensorRtRunner
from rfedge.runtimes.policy.backbone import open_backbone

_Engines = dict[Stage, tuple[Path, EngineRecord]]


def open_bundle(path: Path, settings: RuntimeSettings) -> PolicyParts:
    """Open a bundle on this machine's GPU; nothing is loaded until the runners are activated.

    Raises:
        ArtifactError: the bundle is damaged, or holds no engine for this device; the text says why of each one.
        BackendUnavailableError: no GPU, or no TensorRT.
    """
    load_bundle(path, verify=False)  # a wrong path is reported before a missing GPU
    try:
        device = read_cuda_device()
    except BackendUnavailableError as error:
        remedy = "Run the bundle with onnxruntime, which needs none."
        raise BackendUnavailableError("backend 'tensorrt'", got=error.got, expected="an NVIDIA GPU", remedy=remedy) from None
    return open_engines(path, settings, installed_modules(), device)


def installed_modules() -> list[TensorRt]:
    """Return each TensorRT that imports, the device's own first; raises its BackendUnavailableError where there is none."""
    modules: list[TensorRt] = []
    errors: list[BackendUnavailableError] = []
    for name in TARGETS:
        try:
            modules.append(load_tensorrt(name))
        except BackendUnavailableError as error:  # noqa: PERF203 - two of them
            errors.append(error)
    if not modules:
        raise errors[0]
    return modules


def open_engines(
    path: Path, settings: RuntimeSettings, modules: Sequence[TensorRt], device: CudaDevice, *, library: Any = None
) -> PolicyParts:
    """Open a bundle with the first of `modules` that has an engine for every graph of the backbone on `device`."""
    # The head's other home, the text encoder and what a report says of the bundle are onnxruntime's, on the CPU.
    parts = open_with_onnxruntime(path, dataclasses.replace(settings, providers=("CPUExecutionProvider",)))
    bundle = load_bundle(path, verify=False)  # verified a line above, if it is to be
    module, engines = _choose(bundle, modules, device)

    def make_runner(stage: Stage, _: Path, settings: RuntimeSettings) -> GraphRunner:
        plan, record = engines[stage]
        return TensorRtRunner(stage, plan, record, bundle.contract.graphs[stage], module, settings, library=library)

    backbone = open_backbone(bundle, settings, make_runner, for_cpu=False)
    head = make_runner("head", bundle.path("head"), settings) if "head" in engines else parts.head
    size_bytes = parts.size_bytes + sum(record.size_bytes for _, record in engines.values())
    return dataclasses.replace(parts, backend="tensorrt", backbone=backbone, head=head, size_bytes=size_bytes)


def _choose(bundle: Bundle, modules: Sequence[TensorRt], device: CudaDevice) -> tuple[TensorRt, _Engines]:
    needed = [name for name in bundle.contract.graphs if name != "head"]
    first_error: ArtifactError | None = None
    for module in modules:
        target = module.device_target(device)
        try:
            engines: _Engines = {stage: find_engine(bundle, stage, target) for stage in needed}
        except ArtifactError as error:
            first_error = first_error or error
            continue
        with contextlib.suppress(ArtifactError):  # not built, or not for this device: onnxruntime runs it
            engines["head"] = find_engine(bundle, "head", target)
        return module, engines
    assert first_error is not None, "at least one module"
    raise first_error
