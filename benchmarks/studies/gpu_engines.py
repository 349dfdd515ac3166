"""Engines on a GPU in under ten minutes: parity of the shipped policy's, and time of a full-size policy's beside PyTorch.

    python -m rfedge.benchmarks.studies.gpu_engines --preset M-3B --record FILE.json

Each policy as engines in fp16, in int8 with fp32 and in int8 with fp16, and as PyTorch in fp16, eager and in one CUDA
graph. All forms of a policy are called in turn, on one frame, from arrays in host memory to the feature in host memory. The
weights of the full-size policy are random, so its numbers are not compared.

Without a GPU all of it is done that needs none: bundles, graphs, engines ahead of time, rollouts in ONNX Runtime and PyTorch
over the frames of the proof. What is left for the device is said at the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from rfedge.benchmarks.studies.full_size_engines import build_for, write_full_size_graph
from rfedge.benchmarks.studies.random_graphs import GraphPrecision
from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.engines import EngineKey, EngineRecord, EngineTarget
from rfedge.bundle.traces import compare_traces, load_proof, rollout
from rfedge.config import preset
from rfedge.contract import GraphContract, policy_contract
from rfedge.errors import BackendUnavailableError, RfedgeError
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.export.tensorrt.options import BuildOptions
from rfedge.export.tensorrt.pipeline import build_bundle
from rfedge.model import RoboFlamingo, load_checkpoint
from rfedge.model.meta import random_policy
from rfedge.nvidia.tensorrt import TensorRt
from rfedge.policies import JUMP_STEP, SHIPPED, find_bundle, find_checkpoint
from rfedge.records.machine import Measurement, provenance
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio, Summary, ratio_of_medians, summarise
from rfedge.runtimes.backends.tensorrt.opening import installed_modules
from rfedge.runtimes.backends.tensorrt.runner import TensorRtRunner
from rfedge.runtimes.policy.edge_policy import EdgePolicy

Arrays = Mapping[str, npt.NDArray[Any]]
Call = Callable[[], object]
_EAGER: Final = "PyTorch fp16, eager"
_GRAPH: Final = "PyTorch fp16, CUDA graph"
_AGAIN: Final = " (again)"


class Form(NamedTuple):
    """Precision of the graphs, and floats of the engine."""

    precision: GraphPrecision
    floats: Literal["fp16", "fp32"]


FORMS: Final = {"fp16": Form("fp16", "fp16"), "int8 + fp32": Form("int8", "fp32"), "int8 + fp16": Form("int8", "fp16")}


class FormResult(Record):
    name: str
    # engine_bytes, build_s: None for PyTorch
    engine_bytes: int | None = None
    build_s: float | None = None
    layers: dict[str, int] = Field(default_factory=dict)  # precision -> layers of the engine
    # from_torch, from_onnxruntime: differences over the steps of the bundle's proof, as its gates have them; None where the
    # weights are random
    from_torch: dict[str, float] | None = None
    from_onnxruntime: dict[str, float] | None = None
    call_ms: Summary | None = None  # of the backbone, copies included
    speedup: Ratio | None = None  # over eager PyTorch, of medians
    failed: str = ""  # why it has no time, or ""


class PolicyResult(Record):
    """All forms of one policy; `noise_floor` is the first one that was timed over itself."""

    policy: str
    forms: tuple[FormResult, ...]
    noise_floor: Ratio | None


class GpuEnginesReport(Measurement):
    format: Literal["rfedge-gpu-engines"] = "rfedge-gpu-engines"
    schema_version: Literal[1] = 1
    device: str
    target: EngineTarget
    iterations: int
    policies: tuple[PolicyResult, ...]


class Study:
    """Forms, device and budget; without a GPU engines are built for `sm`. No form is begun later than `budget_s`."""

    def __init__(self, module: TensorRt, sm: int, iterations: int, budget_s: float) -> None:
        self.module, self.iterations = module, iterations
        self._until_s = time.monotonic() + budget_s
        self.has_gpu, self.why_not = torch.cuda.is_available(), "this PyTorch finds none"
        try:
            self.target = module.device_target()
        except BackendUnavailableError as error:
            self.has_gpu, self.why_not = False, str(error)
        if not self.has_gpu:
            self.target = module.ahead_of_time_target(sm)

    def shipped(self, name: str, work: Path, stack: ExitStack) -> PolicyResult:
        """Return the shipped policy's parity and time."""
        results: list[dict[str, Any]] = []
        calls: dict[str, Call] = {}
        episodes, reference = load_proof(load_bundle(find_bundle(Path(name))).path("proof"))
        inputs = episodes[0][0]
        for form, (precision, floats) in FORMS.items():
            with self._form(form, results) as result:
                self._check_time()
                folder = work / form.replace(" ", "")
                if precision == "int8":
                    shutil.copytree(find_bundle(Path(name)), folder)
                else:
                    options = ExportOptions(precision=precision, num_parity_steps=8, force=True)
                    export_checkpoint(find_checkpoint(Path(name)), folder, options)
                ahead = () if self.has_gpu else (self.target.sm,)
                built = build_bundle(folder, BuildOptions(target=self.module.name, ahead_of_time=ahead, floats=floats))
                result["engine_bytes"] = sum(item.record.size_bytes for item in built)
                result["build_s"] = sum(item.record.build_seconds for item in built)
                result["layers"] = next(item.record.layers for item in built if item.planned.stage == "backbone")
                backends = ("onnxruntime", *(("tensorrt",) if self.has_gpu else ()))
                policies = [stack.enter_context(EdgePolicy.load(folder, backend=backend)) for backend in backends]
                traces = [
                    rollout(policy.config, policy.parts.backbone.infer, policy.parts.head.infer, episodes)
                    for policy in policies
                ]
                if self.has_gpu:
                    result["from_torch"] = compare_traces(reference, traces[-1])
                    result["from_onnxruntime"] = compare_traces(*traces)
                    calls[form] = _bound(policies[-1].parts.backbone.infer, inputs)
        self._torch(load_checkpoint(find_checkpoint(Path(name))).policy, inputs, results, calls)
        return self._timed(name, results, calls)

    def full_size(self, name: str, num_layers: int | None, work: Path, stack: ExitStack) -> PolicyResult:
        """Return the time of a preset's backbone with random weights."""
        results: list[dict[str, Any]] = []
        calls: dict[str, Call] = {}
        config = preset(name)
        if num_layers is not None:
            config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"layers": num_layers})})
        contract = policy_contract(config).backbone
        inputs = contract.sample_inputs(np.random.default_rng(0))
        for form, (precision, floats) in FORMS.items():
            with self._form(form, results) as result, tempfile.TemporaryDirectory(dir=work) as folder:
                self._check_time()
                write_full_size_graph(name, precision, Path(folder), floats=floats, num_layers=num_layers)
                engine, built = build_for(self.module, self.target, Path(folder))
                result |= {"engine_bytes": engine.engine_bytes, "build_s": engine.build_s, "layers": engine.layers}
                if self.has_gpu:
                    plan = Path(folder) / "backbone.plan"
                    plan.write_bytes(memoryview(built.plan))
                    del built
                    runner = TensorRtRunner("backbone", plan, _record(self.target, plan, contract), contract, self.module)
                    calls[form] = _bound(stack.enter_context(runner).infer, inputs)
        self._torch(random_policy(config, 0, torch.float16) if self.has_gpu else None, inputs, results, calls)
        return self._timed(name, results, calls)

    @contextmanager
    def _form(self, name: str, results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Collect what is found of a form; an error of the builder or the device is part of it."""
        result: dict[str, Any] = {"name": name}
        results.append(result)
        begun_s = time.monotonic()
        try:
            yield result
        except (RfedgeError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
            result["failed"] = str(error).splitlines()[0]
        facts = {key: value for key, value in result.items() if key not in ("name", "from_torch", "from_onnxruntime")}
        sys.stderr.write(f"{name}: {time.monotonic() - begun_s:.0f} s {facts}\n")

    def _check_time(self) -> None:
        if time.monotonic() > self._until_s:
            raise RuntimeError("not begun: the time of the study was over")

    def _torch(
        self, policy: RoboFlamingo | None, inputs: Arrays, results: list[dict[str, Any]], calls: dict[str, Call]
    ) -> None:
        if policy is not None and not self.has_gpu:
            with torch.inference_mode():
                policy.backbone(**{key: torch.from_numpy(array) for key, array in inputs.items()})
        if policy is None or not self.has_gpu:
            return
        with self._form(_EAGER, results):
            backbone = policy.compute_in(torch.float16).eval().cuda().backbone
            calls[_EAGER] = _eager(backbone, inputs)
            calls[_EAGER]()
        with self._form(_GRAPH, results):
            calls[_GRAPH] = _captured(backbone, inputs)

    def _timed(self, policy: str, results: list[dict[str, Any]], calls: dict[str, Call]) -> PolicyResult:
        floor = None
        if calls:
            first = next(iter(calls))
            times_ms = _time({**calls, first + _AGAIN: calls[first]}, self.iterations)
            floor = ratio_of_medians(times_ms[first + _AGAIN], times_ms[first], seed=0)
            for result in results:
                if (own := times_ms.get(result["name"])) is not None:
                    result["call_ms"] = summarise(own)
                    if _EAGER in times_ms:
                        result["speedup"] = ratio_of_medians(times_ms[_EAGER], own, seed=0)
        return PolicyResult(policy=policy, forms=tuple(FormResult(**result) for result in results), noise_floor=floor)


def _bound(infer: Callable[[Arrays], object], inputs: Arrays) -> Call:
    return lambda: infer(inputs)


def _record(target: EngineTarget, plan: Path, contract: GraphContract) -> EngineRecord:
    """Return what a runner asks of a plan: which lengths of the text it takes."""
    longest = contract.input("text_mask").longest
    key = EngineKey(graph_sha256="", weights_sha256={}, target=target, builder={})
    size = plan.stat().st_size
    return EngineRecord(
        key=key, plan=plan.name, sha256="", size_bytes=size, precisions={}, build_seconds=0.0, text_lengths=(longest,)
    )


def _on_device(inputs: Arrays) -> dict[str, torch.Tensor]:
    tensors = {name: torch.from_numpy(np.array(array)).cuda() for name, array in inputs.items()}
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _eager(backbone: torch.nn.Module, inputs: Arrays) -> Call:
    def call() -> npt.NDArray[Any]:
        with torch.inference_mode():
            return backbone(**_on_device(inputs)).float().cpu().numpy()  # type: ignore[no-any-return]

    return call


def _captured(backbone: torch.nn.Module, inputs: Arrays) -> Call:
    """Capture the backbone in a CUDA graph; a call copies the frame up, replays it and copies the feature down."""
    with torch.inference_mode():
        static = _on_device(inputs)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate their memory in the first calls
                backbone(**static)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = backbone(**static)

    def call() -> npt.NDArray[Any]:
        with torch.inference_mode():
            for name, tensor in static.items():
                tensor.copy_(torch.from_numpy(inputs[name]))
            graph.replay()
            return output.float().cpu().numpy()  # type: ignore[no-any-return]

    return call


def _time(calls: Mapping[str, Call], iterations: int, *, warmup: int = 10) -> dict[str, npt.NDArray[np.float64]]:
    """Call each once a round, in shuffled order; return milliseconds (iterations,) of each."""
    order, rng = list(calls), np.random.default_rng(0)
    times_ms = {name: np.empty(iterations) for name in order}
    for index in range(-warmup, iterations):
        rng.shuffle(order)
        for name in order:
            begun_ns = time.perf_counter_ns()
            calls[name]()
            if index >= 0:
                times_ms[name][index] = (time.perf_counter_ns() - begun_ns) / 1e6
    return times_ms


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", choices=SHIPPED, default=JUMP_STEP, help="shipped policy for parity")
    parser.add_argument("--preset", help="full-size policy for time, such as M-3B; none without")
    parser.add_argument("--layers", type=int, help="decoder layers of the preset; all without")
    parser.add_argument("--sm", type=int, default=86, help="compute capability to build for where there is no GPU")
    parser.add_argument("--iterations", type=int, default=200, help="timed calls of each form")
    parser.add_argument("--budget-s", type=float, default=480.0, help="begin nothing later than this")
    parser.add_argument("--record", type=Path, help="file for the record")
    options: Any = parser.parse_args(arguments)
    try:
        study = Study(installed_modules()[0], options.sm, options.iterations, options.budget_s)
        with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
            policies = [study.shipped(options.policy, Path(work), stack)]
            if options.preset is not None:
                policies.append(study.full_size(options.preset, options.layers, Path(work), stack))
    except RfedgeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not study.has_gpu:
        sys.stdout.write(f"skipped: parity and time, which need a GPU: {study.why_not}\n")
        return int(any(form.failed for policy in policies for form in policy.forms))
    report = GpuEnginesReport(
        **provenance(),
        device=torch.cuda.get_device_name(),
        target=study.target,
        iterations=study.iterations,
        policies=tuple(policies),
    )
    if options.record is not None:
        report.write(options.record)
    sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
