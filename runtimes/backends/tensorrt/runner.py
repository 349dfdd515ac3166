"""One TensorRT engine as a graph runner: pinned buffers made once, one stream, a captured CUDA graph for each shape.

A step writes its inputs into pinned memory, enqueues one copy up, the engine and one copy down, waits for the stream and
returns copies of the outputs. Captured, the three are one launch. Each optimisation profile has an execution context of its
own; the weights are shared.

The tensors of an engine lie in one block of pinned memory, and at the same places in one block on the device: inputs first
and outputs after them, so that a step is one copy up and one copy down, however many tensors there are.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.arrays import Array, UInt8
from rfedge.bundle.engines import EngineRecord
from rfedge.contract import GraphContract, TensorSpec
from rfedge.errors import ArtifactError, BackendUnavailableError, RfedgeError
from rfedge.nvidia.tensorrt import TensorRt
from rfedge.runtimes.backends.base import GraphRunner, RuntimeSettings, Stage
from rfedge.runtimes.backends.tensorrt.cuda_driver import CudaDriver

_ALIGNMENT: Final = 256  # TensorRT asks this of every address
_TOKEN_AXIS: Final = "token"


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one tensor, `offset` bytes from the start of the block."""

    name: str
    dtype: np.dtype[Any]
    offset: int
    size_bytes: int

    def view(self, block: UInt8, shape: Sequence[int]) -> Array:
        """Return the tensor of this shape inside `block`; nothing is copied."""
        size_bytes = int(np.prod(shape)) * self.dtype.itemsize
        assert size_bytes <= self.size_bytes, self.name
        return block[self.offset : self.offset + size_bytes].view(self.dtype).reshape(shape)

    def write(self, block: UInt8, array: Array, shape: Sequence[int]) -> None:
        """Put `array` into `block` as a tensor of `shape`; what a longer axis 1 leaves over becomes 0.

        A token that was added this way has a false mask, so it changes no feature.
        """
        place = self.view(block, shape)
        if array.shape == tuple(shape):
            place[...] = array
        else:
            place[:, : array.shape[1]] = array
            place[:, array.shape[1] :] = 0


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """All slots of one engine; the first `input_bytes` are copied up, the outputs begin there."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    input_bytes: int
    total_bytes: int


def plan_buffers(contract: GraphContract, largest: Mapping[str, Sequence[int]]) -> BufferPlan:
    inputs, input_bytes = _place(contract.inputs, largest, 0)
    outputs, total_bytes = _place(contract.outputs, largest, input_bytes)
    return BufferPlan(inputs, outputs, input_bytes, total_bytes)


def _place(specs: Sequence[TensorSpec], largest: Mapping[str, Sequence[int]], offset: int) -> tuple[tuple[Slot, ...], int]:
    slots = []
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        size_bytes = int(np.prod(largest[spec.name])) * dtype.itemsize
        slots.append(Slot(spec.name, dtype, offset, size_bytes))
        offset += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
    return tuple(slots), offset


def text_inputs(contract: GraphContract) -> frozenset[str]:
    """Return the inputs whose number of tokens is open: those that are padded to a profile's length."""
    return frozenset(spec.name for spec in contract.inputs if -1 in spec.shape and _TOKEN_AXIS in spec.axes)


Shapes = dict[str, tuple[int, ...]]
_MOST_GRAPHS: Final = 8  # a head is called with one step and with a window of them, nothing else


class TensorRtRunner(GraphRunner):
    """One plan on one GPU, verified by `rfedge.bundle.engines.find_engine`.

    Raises:
        BackendUnavailableError: on activation or in a call, the GPU or its driver refuses.
        ArtifactError: on activation, the plan cannot be opened or its tensors are not those of the contract.
        ContractError: in a call, the instruction is longer than the engine's longest.
    """

    def __init__(
        self,
        stage: Stage,
        plan: Path,
        record: EngineRecord,
        contract: GraphContract,
        module: TensorRt,
        settings: RuntimeSettings | None = None,
        *,
        library: Any = None,
    ) -> None:
        super().__init__(stage, contract, settings)
        self._plan_path = plan
        self._record = record
        self._module = module
        self._library = library
        self._text_inputs = text_inputs(contract)
        self._open: _OpenEngine | None = None

    def effective_settings(self) -> dict[str, str]:
        if self._open is None:
            return {}
        target = self._record.key.target
        return {
            "providers": f"{self._module.name} {self._module.version} SM{target.sm}",
            "text_lengths": ",".join(map(str, self._record.text_lengths)),
            "cuda_graph": self._open.capture_state,
        }

    def _activate(self) -> None:
        driver = CudaDriver(self._library)
        opened = _OpenEngine(driver, self._module, captures=self.settings.cuda_graph)
        try:
            opened.load(self._plan_path, self.contract)
        except BaseException:
            opened.close()
            raise
        self._open = opened

    def _deactivate(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self._open is not None
        shapes: Shapes = {name: array.shape for name, array in inputs.items()}
        number = 0
        if self._text_inputs:
            any_text = next(iter(self._text_inputs))
            profile = self._record.choose_profile(inputs[any_text].shape[1])
            number = profile.number
            for name in self._text_inputs:
                shapes[name] = (shapes[name][0], profile.num_tokens, *shapes[name][2:])
        return self._open.run(number, inputs, shapes)


class _OpenEngine:
    """Everything that is freed again: engine, contexts, graphs, memory and stream."""

    def __init__(self, driver: CudaDriver, module: TensorRt, *, captures: bool) -> None:
        self._driver = driver
        self._trt = module.trt
        self._captures = captures
        self.capture_state = "captured" if captures else "off"
        self._errors: list[str] = []
        self._logger = _attach_errors(module.trt, self._errors)
        self._runtime: Any = None
        self._engine: Any = None
        self._lanes: list[_Lane] = []
        self._stream = 0
        self._device = 0
        self._host: UInt8 | None = None
        self._plan = BufferPlan((), (), 0, 0)

    def load(self, path: Path, contract: GraphContract) -> None:
        """Open the plan, make the buffers and run every profile once, so that the first step is like the others."""
        self._runtime = self._trt.Runtime(self._logger)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            # Mapped, not read: a small board has no room for a second copy of the weights.
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused(path, "a plan that this TensorRT opens on this GPU")
        self._check_tensors(path, contract)
        self._stream = self._driver.create_stream()
        contexts = [self._make_context(path, number) for number in range(max(self._engine.num_optimization_profiles, 1))]
        largest: Shapes = {}
        for context, shapes in contexts:
            for spec in contract.inputs:
                context.set_input_shape(spec.name, shapes[spec.name])
            for spec in (*contract.inputs, *contract.outputs):
                shape = tuple(context.get_tensor_shape(spec.name))
                largest[spec.name] = max(shape, largest.get(spec.name, shape), key=lambda size: int(np.prod(size)))
        self._plan = plan_buffers(contract, largest)
        self._device = self._driver.allocate_device(self._plan.total_bytes)
        self._host = self._driver.allocate_pinned(self._plan.total_bytes)
        self._host[:] = 0
        for context, shapes in contexts:
            for slot in (*self._plan.inputs, *self._plan.outputs):
                context.set_tensor_address(slot.name, self._device + slot.offset)
            lane = _Lane(context)
            self._lanes.append(lane)
            self._enqueue(lane, shapes)
            self._driver.synchronize(self._stream)

    def run(self, number: int, inputs: Mapping[str, Array], shapes: Shapes) -> dict[str, Array]:
        """Run profile `number` once; an input shorter than its shape is padded with zeros."""
        assert self._host is not None
        self._driver.make_current()  # the loop may call from another thread than the one that loaded
        lane = self._lanes[number]
        for slot in self._plan.inputs:
            slot.write(self._host, inputs[slot.name], shapes[slot.name])
        self._enqueue(lane, shapes)
        self._driver.synchronize(self._stream)
        return {
            slot.name: slot.view(self._host, tuple(lane.context.get_tensor_shape(slot.name))).copy()
            for slot in self._plan.outputs
        }

    def close(self) -> None:
        """Free all of it: graphs before what they refer to, the context last."""
        self._driver.make_current()
        for lane in self._lanes:
            for graph in lane.graphs.values():
                self._driver.destroy_graph(graph)
        self._lanes.clear()
        self._engine = self._runtime = None
        if self._host is not None:
            self._driver.free_pinned(self._host)
            self._host = None
        if self._device:
            self._driver.free_device(self._device)
        if self._stream:
            self._driver.destroy_stream(self._stream)
        self._device = self._stream = 0
        self._driver.close()

    def _check_tensors(self, path: Path, contract: GraphContract) -> None:
        engine, kinds = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for kind, mode, specs in (("inputs", kinds.INPUT, contract.inputs), ("outputs", kinds.OUTPUT, contract.outputs)):
            found = {
                name: np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))).name
                for name in names
                if engine.get_tensor_mode(name) == mode
            }
            wanted = {spec.name: np.dtype(spec.dtype).name for spec in specs}
            if found != wanted:
                raise ArtifactError(
                    f"engine {path.name} {kind}", got=found, expected=wanted, remedy="Build it again, --overwrite."
                )

    def _make_context(self, path: Path, number: int) -> tuple[Any, Shapes]:
        """Return an execution context on profile `number`, and the largest shapes of its inputs."""
        context = self._engine.create_execution_context()
        # A new context is on profile 0.
        if context is None or (number > 0 and not context.set_optimization_profile_async(number, self._stream)):
            raise self._refused(path, "room for its activations on the GPU")
        self._driver.synchronize(self._stream)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in inputs}
        for name, shape in shapes.items():
            if -1 in shape:
                shapes[name] = tuple(self._engine.get_tensor_profile_shape(name, number)[2])
        return context, shapes

    def _enqueue(self, lane: _Lane, shapes: Shapes) -> None:
        key = tuple(shapes.values())
        graph = lane.graphs.get(key)
        if graph is not None:
            # The context keeps the shapes of its last call; the shapes of the outputs are asked of it.
            lane.set_shapes(shapes)
            self._driver.launch(graph, self._stream)
            return
        lane.set_shapes(shapes)
        self._enqueue_parts(lane)
        if self._captures:
            self._driver.synchronize(self._stream)  # the first call of a shape may set up what cannot be captured
            self._capture(lane, key)

    def _enqueue_parts(self, lane: _Lane) -> None:
        assert self._host is not None
        host, split = self._host.ctypes.data, self._plan.input_bytes
        self._driver.copy_to_device(self._device, host, split, self._stream)
        if not lane.context.execute_async_v3(self._stream):
            got = f"TensorRT error {self._last_error()!r}"
            remedy = "Build it again with --overwrite, or run the bundle with onnxruntime."
            raise BackendUnavailableError("engine", got=got, expected="a step", remedy=remedy)
        self._driver.copy_to_host(host + split, self._device + split, self._plan.total_bytes - split, self._stream)

    def _capture(self, lane: _Lane, key: tuple[tuple[int, ...], ...]) -> None:
        if len(lane.graphs) >= _MOST_GRAPHS:
            return
        self._driver.begin_capture(self._stream)
        refusal: RfedgeError | None = None
        try:
            self._enqueue_parts(lane)
        except RfedgeError as error:
            refusal = error
        try:
            graph = self._driver.end_capture(self._stream)
        except RfedgeError as error:
            refusal = refusal or error
        if refusal is None:
            lane.graphs[key] = graph
        else:  # the steps run as they are: slower, and the report says so
            self._captures = False
            self.capture_state = f"refused: {str(refusal).split(', expected')[0]}"

    def _refused(self, path: Path, expected: str) -> ArtifactError:
        got = f"TensorRT error {self._last_error()!r}"
        remedy = "Close other programs on the GPU, or build it again with `rfedge build --overwrite`."
        return ArtifactError(f"engine {path.name}", got=got, expected=expected, remedy=remedy)

    def _last_error(self) -> str:
        return " ".join(self._errors[-1].split()) if self._errors else "without words"


class _Lane:
    """One profile: its context, the shapes it has, and a graph for each set of shapes it was called with."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.graphs: dict[tuple[tuple[int, ...], ...], int] = {}
        self._shapes: Shapes = {}

    def set_shapes(self, shapes: Shapes) -> None:
        """Tell the context; only what changed, because each change costs a call."""
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self.context.set_input_shape(name, shape)
                self._shapes[name] = shape


def _attach_errors(trt: Any, errors: list[str]) -> Any:
    """Return an `ILogger` that keeps the errors and is silent."""

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(text)

    return _Logger()
