"""Of every precision name: is it possible here and now, what would run it, and if not, the plain reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from rfedge.machine.gpu import Gpu
from rfedge.machine.probing import Probed
from rfedge.machine.processor import Processor
from rfedge.runtimes.doctor.software import OnnxRuntime, TensorRt

PRECISION_NAMES: Final = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight", "mixed", "nf4", "llm-int8")
# Weight formats of bitsandbytes; they are for the torch runner and are never exported.
_BITSANDBYTES: Final = ("nf4", "llm-int8")
# First compute capability whose tensor cores multiply it. Source: TensorRT's support matrix.
_TENSORRT_SM: Final = {"fp32": 75, "fp16": 75, "bf16": 80, "int8": 75, "mixed": 75, "int8-weight": 75, "int4-weight": 80}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts that precisions depend on: parts of the machine, None where there is none, and the backends of this version."""

    processor: Processor | None
    gpu: Gpu | None
    onnxruntime: OnnxRuntime | None
    tensorrt: TensorRt | None
    backends: tuple[str, ...]
    bitsandbytes: Probed[str]


@dataclass(frozen=True, slots=True)
class PrecisionVerdict:
    name: str
    possible: bool  # a bundle of it can be made by this version and run on this machine
    backend: str  # what would run it here; "" when nothing would
    speed: str  # what to expect of it against fp32 on the same backend
    reason: str  # why it is not possible, or a condition


# What runs a precision, and what speed to expect of it; or why nothing does.
_Way = tuple[str, str] | str


def check_precisions(capabilities: Capabilities, exported: Collection[str]) -> list[PrecisionVerdict]:
    """Check every precision name; `exported` are those that this version can export."""
    return [_check(name, capabilities, exported) for name in PRECISION_NAMES]


def _check(name: str, capabilities: Capabilities, exported: Collection[str]) -> PrecisionVerdict:
    if name in _BITSANDBYTES:
        return _check_bitsandbytes(name, capabilities.bitsandbytes)
    way = _way(name, capabilities)
    if isinstance(way, str):
        return PrecisionVerdict(name, possible=False, backend="", speed="", reason=way)
    backend, speed = way
    reason = "" if name in exported else f"this version of rfedge exports {', '.join(exported)} only"
    return PrecisionVerdict(name, possible=name in exported, backend=backend, speed=speed, reason=reason)


def _check_bitsandbytes(name: str, found: Probed[str]) -> PrecisionVerdict:
    if found.value is None:
        return PrecisionVerdict(name, possible=False, backend="", speed="", reason=found.reason)
    backend = f"PyTorch on the CPU with bitsandbytes {found.value}"
    speed = "small; each MatMul turns its weights into floats" if name == "nf4" else "small; outliers stay floats"
    return PrecisionVerdict(name, possible=True, backend=backend, speed=speed, reason="from a checkpoint; never exported")


def _way(name: str, capabilities: Capabilities) -> _Way:
    """Return the best way to run a precision here."""
    runtime = capabilities.onnxruntime
    if runtime is None:
        return "onnxruntime is not usable here"
    why_not_gpu = "no NVIDIA GPU"
    if capabilities.gpu is not None:
        for on_gpu in (_tensorrt_way(name, capabilities.gpu, capabilities), _cuda_way(name, capabilities.gpu, runtime)):
            if not isinstance(on_gpu, str):
                return on_gpu
            why_not_gpu = on_gpu
    if not runtime.runs("CPUExecutionProvider") or capabilities.processor is None:
        return "onnxruntime's CPU provider does not run here"
    on_cpu = _cpu_way(name, capabilities.processor)
    return f"{on_cpu}; {why_not_gpu}" if isinstance(on_cpu, str) else on_cpu


def _tensorrt_way(name: str, gpu: Gpu, capabilities: Capabilities) -> _Way:
    if "tensorrt" not in capabilities.backends:
        return "this version has no TensorRT runner"
    if capabilities.tensorrt is None:
        return "TensorRT does not import here"
    if gpu.sm < _TENSORRT_SM[name]:
        return _needs(name, _TENSORRT_SM[name], gpu)
    speed = "the reference" if name == "fp32" else "small" if name.endswith("-weight") else "fast"
    return f"TensorRT {capabilities.tensorrt.version} on {gpu.name}", speed


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
