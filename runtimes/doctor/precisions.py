"""Of every precision name: is it possible here and now, what would run it, and if not, the plain reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rfedge.config import PRECISIONS
from rfedge.machine.gpu import Gpu
from rfedge.machine.probing import Probed
from rfedge.machine.processor import Processor
from rfedge.runtimes.backends.base import TORCH_WEIGHTS
from rfedge.runtimes.doctor.software import OnnxRuntime, TensorRt

# Weight formats of bitsandbytes; they are for the torch runner and are never exported.
_BITSANDBYTES: Final = TORCH_WEIGHTS[1:]
PRECISION_NAMES: Final = (*PRECISIONS, *_BITSANDBYTES)
# First compute capability whose tensor cores multiply it. Source: TensorRT's support matrix.
_TENSORRT_SM: Final = {"fp32": 75, "fp16": 75, "bf16": 80, "int8": 75, "mixed": 75, "int8-weight": 75, "int4-weight": 80}


@dataclass(frozen=True, slots=True)
class PrecisionVerdict:
    name: str
    possible: bool  # a bundle of it runs on this machine
    backend: str  # what would run it here; "" when nothing would
    speed: str  # what to expect of it against fp32 on the same backend
    reason: str  # why it is not possible, or a condition


# What runs a precision, and what speed to expect of it; or why nothing does.
_Way = tuple[str, str] | str


def check_precisions(found: Mapping[str, Probed[Any]]) -> list[PrecisionVerdict]:
    """Check every precision name by the parts of this machine that were found, as `Examination.found` names them."""
    return [_check(name, found) for name in PRECISION_NAMES]


def _check(name: str, found: Mapping[str, Probed[Any]]) -> PrecisionVerdict:
    way = _bitsandbytes_way(name, found["bitsandbytes"]) if name in _BITSANDBYTES else _way(name, found)
    if isinstance(way, str):
        return PrecisionVerdict(name, possible=False, backend="", speed="", reason=way)
    reason = "from a checkpoint; never exported" if name in _BITSANDBYTES else ""
    return PrecisionVerdict(name, possible=True, backend=way[0], speed=way[1], reason=reason)


def _bitsandbytes_way(name: str, version: Probed[str]) -> _Way:
    if version.value is None:
        return version.reason
    speed = "small; each MatMul turns its weights into floats" if name == "nf4" else "small; outliers stay floats"
    return f"PyTorch on the CPU with bitsandbytes {version.value}", speed


def _way(name: str, found: Mapping[str, Probed[Any]]) -> _Way:
    """Return the best way to run a precision here."""
    runtime: OnnxRuntime | None = found["onnxruntime"].value
    if runtime is None:
        return "onnxruntime is not usable here"
    why_not_gpu = "no NVIDIA GPU"
    gpu: Gpu | None = found["gpu"].value
    if gpu is not None:
        for on_gpu in (_tensorrt_way(name, gpu, found["tensorrt"].value), _cuda_way(name, gpu, runtime)):
            if not isinstance(on_gpu, str):
                return on_gpu
            why_not_gpu = on_gpu
    processor: Processor | None = found["processor"].value
    if not runtime.runs("CPUExecutionProvider") or processor is None:
        return "onnxruntime's CPU provider does not run here"
    on_cpu = _cpu_way(name, processor)
    return f"{on_cpu}; {why_not_gpu}" if isinstance(on_cpu, str) else on_cpu


def _tensorrt_way(name: str, gpu: Gpu, tensorrt: TensorRt | None) -> _Way:
    if tensorrt is None:
        return "TensorRT does not import here"
    if gpu.sm < _TENSORRT_SM[name]:
        return _needs(name, _TENSORRT_SM[name], gpu)
    speed = "the reference" if name == "fp32" else "small" if name.endswith("-weight") else "fast"
    return f"TensorRT {tensorrt.version} on {gpu.name}", speed


def _cuda_way(name: str, gpu: Gpu, runtime: OnnxRuntime) -> _Way:
    if not runtime.runs("CUDAExecutionProvider"):
        return f"this onnxruntime cannot use the {gpu.name}"
    backend = f"onnxruntime CUDA on {gpu.name}"
    if name == "fp32":
        return backend, "the reference"
    if name not in ("fp16", "bf16"):
        # Q/DQ graphs are fused into int8 kernels by TensorRT, not by onnxruntime's CUDA provider.
        return "onnxruntime's CUDA provider has no fused int8 MatMuls"
    first = 70 if name == "fp16" else 80
    return (backend, "fast") if gpu.sm >= first else _needs(name, first, gpu)


def _needs(name: str, sm: int, gpu: Gpu) -> str:
    return f"{name} needs SM{sm}+; {gpu.name} is SM{gpu.sm}"


def _cpu_way(name: str, processor: Processor) -> _Way:
    backend = "onnxruntime CPU"
    fast_int8 = processor.int8.speed == "fast"
    if name == "fp32":
        return backend, "the reference"
    if name in ("int8", "mixed"):
        speed = f"fast ({processor.int8.instructions})" if fast_int8 else f"small, little faster ({processor.int8.text})"
        return backend, speed
    if name == "fp16":
        if "FP16" in processor.features:
            return backend, "fast where onnxruntime has Arm fp16 kernels"
        return backend, "small, slower: each MatMul is cast to fp32"
    if name == "bf16":
        return "onnxruntime has no bf16 MatMuls on the CPU"
    return backend, "small; faster only where reading the weights takes longest"
