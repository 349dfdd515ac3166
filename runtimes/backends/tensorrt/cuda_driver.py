"""The few calls of CUDA that running an engine needs, asked of the driver library itself.

`libcuda.so.1` is on every machine that runs an engine, Jetson included, and keeps its symbols: the Python packages of CUDA
have to fit CUDA 12 or 13, and this does not. The context is the device's primary one, which TensorRT uses too.
Source: CUDA Driver API, reference manual.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np

from rfedge.arrays import UInt8
from rfedge.nvidia.device import CudaLibrary

_NON_BLOCKING_STREAM: Final = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_CAPTURE_RELAXED: Final = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate meanwhile

_size = ctypes.c_size_t
_address = ctypes.c_void_p
_pointer = ctypes.c_uint64  # CUdeviceptr


class CudaDriver(CudaLibrary):
    """The primary context of the first GPU.

    Handles and addresses are plain integers, as TensorRT takes them. A context belongs to the thread that made it
    current; `make_current` lets another thread use it.
    """

    def __init__(self, library: Any = None) -> None:
        remedy = "Close other programs on the GPU, or run it with onnxruntime."
        super().__init__(library, without_driver="Run it with onnxruntime.", remedy=remedy)
        self._context = _address()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self.device)
        self.make_current()

    def make_current(self) -> None:
        self.call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Let go of the context; everything made in it must have been freed."""
        self.call("cuDevicePrimaryCtxRelease_v2", self.device)

    def allocate_device(self, size_bytes: int) -> int:
        address = _pointer()
        self.call("cuMemAlloc_v2", ctypes.byref(address), _size(size_bytes))
        return address.value

    def free_device(self, address: int) -> None:
        self.call("cuMemFree_v2", _pointer(address))

    def allocate_pinned(self, size_bytes: int) -> UInt8:
        """Return page-locked host memory as bytes; it is no longer there after `free_pinned`."""
        address = _address()
        self.call("cuMemAllocHost_v2", ctypes.byref(address), _size(size_bytes))
        assert address.value is not None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address.value))

    def free_pinned(self, memory: UInt8) -> None:
        self.call("cuMemFreeHost", _address(memory.ctypes.data))

    def create_stream(self) -> int:
        return self._make("cuStreamCreate", ctypes.c_uint(_NON_BLOCKING_STREAM))

    def destroy_stream(self, stream: int) -> None:
        self.call("cuStreamDestroy_v2", _address(stream))

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        self.call("cuMemcpyHtoDAsync_v2", _pointer(device), _address(host), _size(size_bytes), _address(stream))

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        self.call("cuMemcpyDtoHAsync_v2", _address(host), _pointer(device), _size(size_bytes), _address(stream))

    def synchronize(self, stream: int) -> None:
        self.call("cuStreamSynchronize", _address(stream))

    def begin_capture(self, stream: int) -> None:
        """From now on write down what is enqueued instead of doing it."""
        self.call("cuStreamBeginCapture_v2", _address(stream), ctypes.c_int(_CAPTURE_RELAXED))

    def end_capture(self, stream: int) -> int:
        """Return a launchable graph; where something cannot be captured, it raises and the stream is usable again."""
        graph = _address()
        self.call("cuStreamEndCapture", _address(stream), ctypes.byref(graph))
        try:
            return self._make("cuGraphInstantiateWithFlags", graph, ctypes.c_uint64(0))
        finally:
            self.call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self.call("cuGraphLaunch", _address(graph), _address(stream))

    def destroy_graph(self, graph: int) -> None:
        self.call("cuGraphExecDestroy", _address(graph))

    def _make(self, function: str, *arguments: Any) -> int:
        handle = _address()
        self.call(function, ctypes.byref(handle), *arguments)
        assert handle.value is not None
        return handle.value
