"""Bundles on OpenVINO: the backbone in its CPU plugin, which fuses a Q/DQ graph further than onnxruntime does.

Full-size int8 backbones are faster here than in onnxruntime and take more memory (`rfedge bench latency --isolate`
measures both), so it is a choice, not the default. The head stays in onnxruntime: it is memory-bound and small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from rfedge.arrays import Array
from rfedge.bundle.artifact import load_bundle
from rfedge.contract import GraphContract
from rfedge.errors import ArtifactError
from rfedge.runtimes.backends.base import GraphRunner, NodeTime, PolicyParts, RuntimeSettings, Stage
from rfedge.runtimes.backends.ort import open_bundle as open_with_onnxruntime
from rfedge.runtimes.policy.backbone import open_backbone

_DEVICE: Final = "CPU"


class OpenVinoRunner(GraphRunner):
    """One ONNX file compiled for the CPU; what is not quantized is computed in fp32 or in what the hint says."""

    def __init__(
        self, stage: Stage, model_path: Path, contract: GraphContract, settings: RuntimeSettings | None = None
    ) -> None:
        super().__init__(stage, contract, settings)
        self._model_path = model_path
        self._request: Any = None
        self._threads = ""

    def effective_settings(self) -> dict[str, str]:
        if self._request is None:
            return {}
        return {
            "providers": f"openvino {_DEVICE}",
            "threads": self._threads,
            "precision_hint": self.settings.precision_hint,
        }

    def profile(self, inputs: Mapping[str, Array], num_calls: int) -> list[NodeTime]:
        request = self._compile({"PERF_COUNT": True}).create_infer_request()
        durations: dict[tuple[str, str], list[float]] = {}
        for call in range(num_calls + 1):
            request.infer(dict(inputs))
            for node in request.get_profiling_info() if call else ():
                if str(node.status).endswith("EXECUTED"):
                    durations.setdefault((node.node_name, node.node_type), []).append(node.real_time.total_seconds() * 1e3)
        return [NodeTime(name, kind, float(np.median(times))) for (name, kind), times in durations.items()]

    def _activate(self) -> None:
        compiled = self._compile({})
        self._threads = str(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._request = compiled.create_infer_request()

    def _compile(self, further: dict[str, Any]) -> Any:
        core = openvino.Core()
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Without one OpenVINO computes what the graph calls float32 in bf16 on CPUs with units for it.
            "INFERENCE_PRECISION_HINT": self.settings.precision_hint,
            **further,
        }
        if self.settings.threads:
            options["INFERENCE_NUM_THREADS"] = self.settings.threads
        try:
            return core.compile_model(core.read_model(self._model_path), _DEVICE, options)
        except RuntimeError as error:  # the only class that OpenVINO raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["an error without words"]
            raise ArtifactError(
                f"graph {self._model_path.name}",
                got=f"OpenVINO error {lines[-1]!r}",
                expected="a graph that this OpenVINO compiles",
                remedy="Use the onnxruntime backend, or another release of openvino.",
            ) from error

    def _deactivate(self) -> None:
        self._request = None

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self._request.infer(contiguous, share_inputs=True)
        return {
            spec.name: np.array(self._request.get_tensor(spec.name).data, dtype=spec.dtype) for spec in self.contract.outputs
        }


def open_bundle(path: Path, settings: RuntimeSettings) -> PolicyParts:
    """Open a bundle with its backbone in OpenVINO; nothing is loaded until the runners are activated."""
    parts = open_with_onnxruntime(path, settings)
    bundle = load_bundle(path, verify=False)  # verified a line above, if it is to be

    def make_runner(stage: Stage, graph: Path, settings: RuntimeSettings) -> GraphRunner:
        return OpenVinoRunner(stage, graph, parts.contract.graphs[stage], settings)

    backbone = open_backbone(bundle, settings, make_runner, for_cpu=False)  # it fuses Q/DQ by itself
    hint = settings.precision_hint
    precision = parts.precision if hint == "f32" else f"{parts.precision}, what is float in {hint}"
    return dataclasses.replace(parts, backend="openvino", backbone=backbone, precision=precision)
