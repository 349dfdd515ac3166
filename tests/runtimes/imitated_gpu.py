"""A CUDA driver and a TensorRT in host memory, so that the runner's calls can be held to their rules without a GPU.

The driver is lazy: what is enqueued is done when the stream is waited for and not a moment sooner, and what is enqueued
while capturing is written down instead. So a result that is read too early, memory that is freed too early, a tensor without
an address and a shape that was never set all show. An "engine" is an ONNX file, computed by onnxruntime from the addresses
it was given; its plan's first line says which profiles it was built with.
"""

# ruff: noqa: N802, N815 - the names are CUDA's and TensorRT's

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from rfedge.bundle.artifact import ENGINES_FOLDER, Bundle, hash_file
from rfedge.bundle.engines import RECORD_NAME, EngineFolder, EngineKey, EngineRecord, EngineStage, EngineTarget, graph_hashes
from rfedge.nvidia.device import CudaDevice
from rfedge.nvidia.tensorrt import TensorRt

ORIN = CudaDevice(name="Orin", sm=87, cuda="12.6", driver="540.4.0", memory_bytes=8 << 30)
VERSION = "10.3.0"
Work = Callable[[], None]


class ImitatedDriver:
    """`libcuda.so.1` as far as `CudaDriver` calls it.

    Attributes:
        calls: every function that was called.
        memory: what is allocated, by address.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.capturing: list[Work] | None = None
        self.capture_fails = False
        self.retained = 0
        self._next = 1000

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return getattr(self, f"_{name}")(*arguments) or 0

        return call

    def enqueue(self, stream: int, work: Work) -> None:
        queue = self.streams[stream] if self.capturing is None else self.capturing
        queue.append(work)

    def block(self, address: int, size_bytes: int) -> None:
        """Fail unless all of it is allocated."""
        for start, memory in self.memory.items():
            if start <= address and address + size_bytes <= start + len(memory):
                return
        raise AssertionError(f"{size_bytes} bytes at {address} are not allocated")

    def _new(self, out: Any) -> int:
        self._next += 1
        out._obj.value = self._next
        return self._next

    def _cuInit(self, flags: Any) -> None:
        pass

    def _cuDeviceGet(self, out: Any, ordinal: Any) -> None:
        out._obj.value = ordinal.value

    def _cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> None:
        self.retained += 1
        self._new(out)

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        self.retained -= 1

    def _cuCtxSetCurrent(self, context: Any) -> None:
        assert context.value

    def _cuMemAlloc_v2(self, out: Any, size: Any) -> None:
        memory = (ctypes.c_uint8 * (size.value + 256))()
        ctypes.memset(memory, 0xA5, len(memory))  # device memory comes with whatever was there
        self.memory[ctypes.addressof(memory)] = memory
        out._obj.value = ctypes.addressof(memory)

    _cuMemAllocHost_v2 = _cuMemAlloc_v2

    def _cuMemFree_v2(self, address: Any) -> None:
        del self.memory[address.value]

    _cuMemFreeHost = _cuMemFree_v2

    def _cuStreamCreate(self, out: Any, flags: Any) -> None:
        self.streams[self._new(out)] = []

    def _cuStreamDestroy_v2(self, stream: Any) -> None:
        assert not self.streams.pop(stream.value), "work was left in the stream"

    def _copy(self, target: int, source: int, size: int, stream: int) -> None:
        def copy() -> None:
            self.block(target, size)
            self.block(source, size)
            ctypes.memmove(target, source, size)

        self.enqueue(stream, copy)

    def _cuMemcpyHtoDAsync_v2(self, device: Any, host: Any, size: Any, stream: Any) -> None:
        self._copy(device.value, host.value, size.value, stream.value)

    def _cuMemcpyDtoHAsync_v2(self, host: Any, device: Any, size: Any, stream: Any) -> None:
        self._copy(host.value, device.value, size.value, stream.value)

    def _cuStreamSynchronize(self, stream: Any) -> int:
        if self.capturing is not None:
            return 900
        queue = self.streams[stream.value]
        while queue:
            queue.pop(0)()
        return 0

    def _cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> None:
        self.capturing = []

    def _cuStreamEndCapture(self, stream: Any, out: Any) -> int:
        captured, self.capturing = self.capturing, None
        assert captured is not None
        if self.capture_fails:
            return 901
        self.graphs[self._new(out)] = captured
        return 0

    def _cuGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> None:
        self.executables[self._new(out)] = list(self.graphs[graph.value])

    def _cuGraphDestroy(self, graph: Any) -> None:
        del self.graphs[graph.value]

    def _cuGraphExecDestroy(self, graph: Any) -> None:
        del self.executables[graph.value]

    def _cuGraphLaunch(self, graph: Any, stream: Any) -> None:
        for work in self.executables[graph.value]:
            self.enqueue(stream.value, work)

    def _cuGetErrorName(self, status: Any, out: Any) -> int:
        names = {900: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", 901: b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}
        out._obj.value = names[status.value]
        return 0


class ImitatedTensorRt:
    """The module `tensorrt` as far as the runner uses it."""

    class TensorIOMode(Enum):
        INPUT = 1
        OUTPUT = 2

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, driver: ImitatedDriver) -> None:
        self.driver = driver

    def nptype(self, dtype: str) -> type:
        return np.dtype(dtype).type

    def Runtime(self, logger: Any) -> _Runtime:
        return _Runtime(self, logger)


class _Runtime:
    def __init__(self, trt: ImitatedTensorRt, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan: Any) -> _Engine | None:
        content = bytes(plan)
        header, newline, graph = content.partition(b"\n")
        if not newline or not header.startswith(b"["):
            self.logger.log(self.trt.ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1:\n magicTag mismatch")
            return None
        return _Engine(self.trt, json.loads(header), graph)


class _Engine:
    """`profiles`: of each, input -> its largest shape; the inputs with a fixed shape are not named."""

    def __init__(self, trt: ImitatedTensorRt, profiles: list[dict[str, list[int]]], graph: bytes) -> None:
        self.trt, self.profiles = trt, profiles
        self.session = ort.InferenceSession(graph)
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> ImitatedTensorRt.TensorIOMode:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        node = self.inputs.get(name) or self.outputs[name]
        return {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(bool)": "bool"}[node.type]

    def get_tensor_shape(self, name: str) -> list[int]:
        node = self.inputs.get(name) or self.outputs[name]
        return [size if isinstance(size, int) else -1 for size in node.shape]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return [self.profiles[profile][name]] * 3

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.executions = 0

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert stream in self.engine.trt.driver.streams
        self.profile = number
        return number < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self.engine.get_tensor_shape(name)
        assert len(shape) == len(declared), name
        largest = self.engine.profiles[self.profile].get(name, declared)
        assert all(want in (-1, have) for want, have in zip(declared, shape, strict=True)), name
        assert all(have <= most for have, most in zip(shape, largest, strict=True)), f"{name} {shape} is not in the profile"
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert set(self.shapes) == set(self.engine.inputs), "not all input shapes are set"
        shape = self.shapes.get(name) or tuple(self.engine.get_tensor_shape(name))
        assert -1 not in shape, f"{name} {shape}"
        return shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes = {name: self.get_tensor_shape(name) for name in (*self.engine.inputs, *self.engine.outputs)}
        addresses = dict(self.addresses)  # as they are when the call is made, or captured

        def execute() -> None:
            inputs = {name: self._array(addresses[name], name, shapes[name]) for name in self.engine.inputs}
            results = self.engine.session.run(list(self.engine.outputs), {k: v.copy() for k, v in inputs.items()})
            for name, result in zip(self.engine.outputs, results, strict=True):
                self._array(addresses[name], name, shapes[name])[...] = result

        self.engine.trt.driver.enqueue(stream, execute)
        self.executions += 1
        return True

    def _array(self, address: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        dtype = np.dtype(self.engine.get_tensor_dtype(name))
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        self.engine.trt.driver.block(address, size_bytes)
        return np.frombuffer((ctypes.c_uint8 * size_bytes).from_address(address), np.uint8).view(dtype).reshape(shape)


def imitated_module(driver: ImitatedDriver) -> TensorRt:
    return TensorRt(name="tensorrt", trt=ImitatedTensorRt(driver), version=VERSION)


def write_engine(
    bundle: Bundle,
    stage: EngineStage,
    *,
    text_lengths: tuple[int, ...] = (),
    device: CudaDevice = ORIN,
    version: str = VERSION,
    graph: Path | None = None,
) -> Path:
    """Write what `rfedge build` would leave for `device`, with an imitated plan; return the plan."""
    target = EngineTarget(module="tensorrt", version=version, sm=device.sm, cuda=device.cuda, driver=device.driver)
    folder = bundle.root / ENGINES_FOLDER / target.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / f"{stage}.plan"
    open_inputs = {spec.name: spec for spec in bundle.contract.graphs[stage].inputs if -1 in spec.shape}
    sizes = text_lengths or (bundle.policy.window,)
    profiles = [
        {name: [size if axis == -1 else axis for axis in spec.shape] for name, spec in open_inputs.items()} for size in sizes
    ]
    model = onnx.load(graph or bundle.path(stage))
    plan.write_bytes(json.dumps(profiles).encode() + b"\n" + model.SerializeToString())
    graph_sha256, weights_sha256 = graph_hashes(bundle, stage)
    record = EngineRecord(
        key=EngineKey(graph_sha256=graph_sha256, weights_sha256=weights_sha256, target=target, builder={}),
        plan=plan.name,
        sha256=hash_file(plan),
        size_bytes=plan.stat().st_size,
        precisions={},
        build_seconds=0.0,
        text_lengths=text_lengths,
    )
    path = folder / RECORD_NAME
    known = EngineFolder.model_validate_json(path.read_bytes()).stages if path.is_file() else {}
    path.write_text(EngineFolder(target=target, stages={**known, stage: record}).model_dump_json())
    return plan
