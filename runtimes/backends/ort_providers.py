"""onnxruntime's execution providers: their short names, their options, and inputs that lie on a GPU.

The options keep two promises: what the graph calls fp32 is computed in fp32, and nothing that was compiled for other weights
is used again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rfedge.arrays import Array
from rfedge.errors import one_of
from rfedge.io.disk import cache_folder

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"
_OPENVINO: Final = "OpenVINOExecutionProvider"
# short name -> providers in order of preference: what one does not take goes to the next
PROVIDERS: Final = {
    "cpu": (_CPU,),
    "cuda": (_CUDA, _CPU),
    "tensorrt": (_TENSORRT, _CUDA, _CPU),
    "openvino": (_OPENVINO, _CPU),
}


def parse_provider(name: str) -> tuple[str, ...]:
    """Return onnxruntime's names, in order of preference, for a short one such as "cuda"."""
    return PROVIDERS[one_of(PROVIDERS, name, "--provider")]


def device_of(provider: str) -> str:
    """Return where a provider wants its inputs, as onnxruntime names devices."""
    return "cuda" if provider in (_CUDA, _TENSORRT) else "cpu"


def provider_options(provider: str, engine_cache: Path | None = None) -> dict[str, str]:
    """Return the options that a session gives to `provider`; without `engine_cache` TensorRT's engines are not kept."""
    if provider == _CUDA:
        return {"use_tf32": "0"}
    if provider == _OPENVINO:
        return {"device_type": "CPU", "precision": "ACCURACY"}
    if provider == _TENSORRT and engine_cache is not None:
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engine_cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engine_cache),
        }
    return {}


def engine_cache_folder(graph_sha256: str, weights_sha256: Mapping[str, str]) -> Path:
    """Return where the TensorRT provider keeps the engines of these weights, under the user's cache.

    It names its engines after the graph alone (onnxruntime issue 14269), so each set of weights has a folder.
    """
    parts = [graph_sha256, *(weights_sha256[name] for name in sorted(weights_sha256))]
    return cache_folder("onnxruntime-tensorrt") / "-".join(part[:16] for part in parts)


class DeviceInputs:
    """Input tensors on a device, made once for each shape and then written in place."""

    def __init__(self, binding: Any, device: str) -> None:
        self._binding = binding
        self._device = device
        self._values: dict[str, Any] = {}

    def write(self, name: str, array: Array) -> None:
        """Copy one contiguous array; a new shape (another instruction) gets a new tensor."""
        import onnxruntime as ort

        value = self._values.get(name)
        if value is None or tuple(value.shape()) != array.shape:
            value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._device, 0)
            self._values[name] = value
            self._binding.bind_ortvalue_input(name, value)
        value.update_inplace(array)
