"""Bundles on onnxruntime: the backend that runs everywhere.

Inputs are bound where they lie (on a GPU: written into tensors made once) and outputs land in buffers made once, so that a
step allocates nothing of the size of an image. Session options are chosen here and read back into reports; onnxruntime's
own fallback is off, because a policy that silently runs on another device is slower than its report says.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from rfedge.arrays import Array
from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.engines import graph_hashes
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS, open_exact, runs_cpu_form
from rfedge.bundle.stages import graph_of_block
from rfedge.contract import GraphContract
from rfedge.errors import ArtifactError, BackendUnavailableError, PolicyUnavailableError, first_line
from rfedge.runtimes.backends.base import GraphRunner, NodeTime, PolicyParts, RuntimeSettings, Stage
from rfedge.runtimes.backends.ort_providers import DeviceInputs, device_of, engine_cache_folder, provider_options
from rfedge.runtimes.policy.backbone import open_backbone
from rfedge.runtimes.policy.text import open_encoder

_LEVELS: Final = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SMALL_HEAD_BYTES: Final = 1 << 23
_KERNEL_TIME: Final = "_kernel_time"  # how onnxruntime's profile calls an operator's own time
_ERRORS_ONLY: Final = 3  # onnxruntime's log level; its warnings on graph rewrites are no news to a user


class OrtRunner(GraphRunner):
    """One ONNX file in one onnxruntime session.

    Raises:
        BackendUnavailableError: on activation, a provider is not in this build of onnxruntime or fell back.
        ArtifactError: on activation, the file cannot be loaded or its tensors are not those of the contract.
    """

    def __init__(
        self,
        stage: Stage,
        model_path: Path,
        contract: GraphContract,
        settings: RuntimeSettings | None = None,
        *,
        disabled_optimizers: Sequence[str] = (),
        engine_cache: Path | None = None,
    ) -> None:
        super().__init__(stage, contract, settings)
        self._model_path = model_path
        self._disabled_optimizers = tuple(disabled_optimizers)
        self._engine_cache = engine_cache
        self._int8_kernels = "exact"
        self._session: ort.InferenceSession | None = None
        self._binding: Any = None
        self._buffers: dict[str, Array] = {}
        self._strided: dict[str, Array] = {}  # where inputs that are not contiguous are copied to
        self._on_device: DeviceInputs | None = None
        self._running: ort.RunOptions | None = None  # of the call under way

    def cancel(self) -> None:
        """End the call under way in another thread: onnxruntime looks between two nodes, also inside a loop."""
        if (running := self._running) is not None:
            running.terminate = True

    def effective_settings(self) -> dict[str, str]:
        if self._session is None:
            return {}
        options = self._session.get_session_options()
        return {
            "providers": ",".join(self._session.get_providers()),
            "threads": str(options.intra_op_num_threads or "all physical cores"),
            "optimization": self.settings.optimization,
            "disabled_optimizers": ",".join(self._disabled_optimizers),
            "spinning": self.settings.spinning,
            "int8_kernels": self._int8_kernels,
        }

    def profile(self, inputs: Mapping[str, Array], num_calls: int) -> list[NodeTime]:
        with tempfile.TemporaryDirectory() as folder:
            options = self._session_options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            providers = [provider_options(name, self._engine_cache) for name in self.settings.providers]
            session = self._open(providers, lambda: options)
            for _ in range(num_calls + 1):  # the first is not counted
                session.run(None, dict(inputs))
            return _node_times(json.loads(Path(session.end_profiling()).read_bytes()), num_calls)

    def _activate(self) -> None:
        missing = [name for name in self.settings.providers if name not in ort.get_available_providers()]
        if missing:
            expected = f"one of {', '.join(ort.get_available_providers())}"
            remedy = "Install the onnxruntime build that has it."
            raise BackendUnavailableError("execution provider", got=missing[0], expected=expected, remedy=remedy)
        options = [provider_options(name, self._engine_cache) for name in self.settings.providers]
        if self._engine_cache is not None and any(str(self._engine_cache) in given.values() for given in options):
            self._engine_cache.mkdir(parents=True, exist_ok=True)
        try:
            session = self._open(options)
        except Exception as error:  # onnxruntime's error classes share no base of their own
            raise ArtifactError(
                f"graph {self._model_path.name}",
                got=f"onnxruntime error {first_line(error)!r}",
                expected="a graph this onnxruntime can run",
                remedy="Update onnxruntime or export the bundle again.",
            ) from error
        if session.get_providers()[0] != self.settings.providers[0]:
            got = session.get_providers()[0]
            remedy = "Its libraries did not load; see onnxruntime's requirements for that provider."
            raise BackendUnavailableError("execution provider", got=got, expected=self.settings.providers[0], remedy=remedy)
        self._check_names(session)
        binding = session.io_binding()
        self._buffers = {spec.name: np.empty(spec.shape, dtype=spec.dtype) for spec in self.contract.outputs}
        for name, buffer in self._buffers.items():
            # On CPU the OrtValue is the numpy memory itself; on another device onnxruntime copies back into it.
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(buffer))
        self._session, self._binding = session, binding
        device = device_of(self.settings.providers[0])
        self._on_device = None if device == "cpu" else DeviceInputs(binding, device)

    def _open(
        self, provider_options: list[dict[str, str]], make_options: Callable[[], ort.SessionOptions] | None = None
    ) -> ort.InferenceSession:
        session, is_exact = open_exact(
            make_options or self._session_options,
            lambda options: ort.InferenceSession(
                self._model_path,
                options,
                providers=list(self.settings.providers),
                provider_options=provider_options,
                disabled_optimizers=list(self._disabled_optimizers) or None,
                enable_fallback=0,
            ),
            self._model_path,
        )
        self._int8_kernels = "exact" if is_exact else "may saturate"
        return session

    def _session_options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self.settings.threads
        options.inter_op_num_threads = 1  # one operator at a time: batch 1 has no branches worth a second pool
        options.graph_optimization_level = _LEVELS[self.settings.optimization]
        spins = self.settings.spinning
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if spins == "never" else "1")
        options.add_session_config_entry("session.force_spinning_stop", "1" if spins == "within-call" else "0")
        return options

    def _check_names(self, session: ort.InferenceSession) -> None:
        for kind, nodes, specs in (
            ("inputs", session.get_inputs(), self.contract.inputs),
            ("outputs", session.get_outputs(), self.contract.outputs),
        ):
            names, wanted = sorted(node.name for node in nodes), sorted(spec.name for spec in specs)
            if names != wanted:
                raise ArtifactError(
                    f"graph {self._model_path.name} {kind}", got=names, expected=wanted, remedy="Export it again."
                )
            by_name = {spec.name: spec for spec in specs}
            for node in nodes:
                wanted_shape = by_name[node.name].shape
                if not _fits(node.shape, wanted_shape):
                    raise ArtifactError(
                        f"graph {self._model_path.name}, {node.name}",
                        got=f"shape {tuple(node.shape)}",
                        expected=f"{wanted_shape}, as the manifest says",
                        remedy="Export it again.",
                    )

    def _deactivate(self) -> None:
        self._session, self._binding, self._on_device, self._buffers, self._strided = None, None, None, {}, {}

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None
        for name, array in inputs.items():
            contiguous = array if array.flags.c_contiguous else self._copy(name, array)
            if self._on_device is None:
                self._binding.bind_cpu_input(name, contiguous)
            else:
                self._on_device.write(name, contiguous)
        options = self._running = ort.RunOptions()
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            if options.terminate:
                raise PolicyUnavailableError(
                    self.stage,
                    got="a call that was ended",
                    expected="an answer within its deadline",
                    remedy="Raise the deadline, or look at the graph with `rfedge inspect`.",
                ) from error
            raise
        finally:
            self._running = None
        # Outputs are a few kilobytes (feature, actions, state); a copy keeps a caller's state safe from the next call.
        return {name: buffer.copy() for name, buffer in self._buffers.items()}

    def _copy(self, name: str, array: Array) -> Array:
        """Copy an array that is not contiguous, such as a mirrored frame, to a place that is made once."""
        place = self._strided.get(name)
        if place is None or place.shape != array.shape or place.dtype != array.dtype:
            place = self._strided[name] = np.empty(array.shape, array.dtype)
        np.copyto(place, array)
        return place


def _node_times(events: list[dict[str, Any]], num_calls: int) -> list[NodeTime]:
    """Return the median of each operator over the last `num_calls` calls of a profile."""
    durations: dict[tuple[str, str], list[float]] = {}
    for event in sorted(events, key=lambda event: float(event.get("ts", 0))):
        name = str(event.get("name", ""))
        if name.endswith(_KERNEL_TIME):
            key = (name.removesuffix(_KERNEL_TIME), str(event["args"]["op_name"]))
            durations.setdefault(key, []).append(float(event["dur"]) / 1e3)
    # Nodes of a loop or of one name run several times a call.
    return [
        NodeTime(name, kind, float(np.median(times[-num_calls:])) * max(1, len(times) // (num_calls + 1)))
        for (name, kind), times in durations.items()
    ]


def _fits(shape: Sequence[int | str | None], wanted: Sequence[int]) -> bool:
    """Whether a graph's shape can be the contract's; axes that one of them leaves open fit."""
    if len(shape) != len(wanted):
        return False
    return all(not isinstance(have, int) or want in (-1, have) for have, want in zip(shape, wanted, strict=True))


def open_bundle(path: Path, settings: RuntimeSettings) -> PolicyParts:
    """Open a bundle for onnxruntime; nothing is loaded until the runners are activated."""
    bundle = load_bundle(path, verify=settings.verify)
    config, contract, blocks = bundle.policy, bundle.contract, bundle.manifest.precision.blocks
    on_cpu = settings.providers[0] == "CPUExecutionProvider"
    # An older onnxruntime may not know the operators of the forms for CPUs.
    for_cpu = on_cpu and all(map(runs_cpu_form, bundle.backbone_graphs(for_cpu=True).values()))
    head_graph = bundle.graph("head", for_cpu=on_cpu)
    # Its call is over before a second thread has woken up.
    is_small = head_graph.stat().st_size <= _SMALL_HEAD_BYTES

    def make_runner(stage: Stage, graph: Path, settings: RuntimeSettings) -> GraphRunner:
        # A graph with named kernels leaves the optimizers nothing to spoil.
        is_int8 = graph == bundle.path(stage) and any(
            found.kind == "int8" for block, found in blocks.items() if graph_of_block(contract, block) == stage
        )
        return OrtRunner(
            stage,
            graph,
            contract.graphs[stage],
            settings,
            disabled_optimizers=DISABLED_OPTIMIZERS if is_int8 else (),
            engine_cache=engine_cache_folder(*graph_hashes(bundle, stage)),
        )

    return PolicyParts(
        source=path,
        backend="onnxruntime",
        config=config,
        contract=contract,
        backbone=open_backbone(bundle, settings, make_runner, for_cpu=for_cpu),
        head=make_runner("head", head_graph, dataclasses.replace(settings, threads=1) if is_small else settings),
        encoder=open_encoder(bundle),
        precision=bundle.manifest.precision.effective,
        size_bytes=bundle.size_bytes,
        block_precisions={block: str(found) for block, found in blocks.items()},
        forced_past=bundle.manifest.parity.forced_past,
    )
