"""Of every precision name: is it possible here and now, what would run it, and if not, the plain reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from rfedge.machine.gpu import Gpu
from rfedge.machine.jetson import Jetson
from rfedge.machine.probing import Probed
from rfedge.machine.processor import Processor
from rfedge.runtimes.doctor.software import OnnxRuntime, TensorRt

PRECISION_NAMES: Final = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight", "mixed", "nf4", "llm-int8")
# Weight formats of bitsandbytes; they are for the torch runner and are never exported.
_BITSANDBYTES: Final = ("nf4", "llm-int8")
# First compute capability whose tensor cores multiply it. Source: TensorRT's support matrix.
_TENSORRT_SM: Final = {"fp32": 75, "fp16": 75, "bf16": 80, "int8": 75, "mixed": 75, "int8-weight": 75, "int4-weight": 80}


@dataclass(frozen=True, slots=True)
class Machine:
    """What precisions depend on: parts of the machine, None where there is none, and the backends of this version."""

    processor: Processor | None
    gpu: Gpu | None
    jetson: Jetson | None
    onnxruntime: OnnxRuntime | None
    tensorrt: TensorRt | None
    backends: tuple[str, ...]
    bitsandbytes: Probed[str]


@dataclass(frozen=True, slots=True)
class PrecisionVerdict:
    """One precision.

    Attributes:
        possible: a bundle of it can be made by this version and run on this machine.
        backend: what would run it here; "" when nothing would.
        speed: what to expect of it against fp32 on the same backend.
        reason: why it is not possible, or a condition.
    """

    name: str
    possible: bool
    backend: str
    speed: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Way:
    backend: str
    speed: str


def judge_precisions(machine: Machine, exported: Collection[str]) -> list[PrecisionVerdict]:
    """Check every precision name.

    Args:
        machine: what was found.
        exported: precisions that this version of rfedge can export.
    """
    return [_judge(name, machine, exported) for name in PRECISION_NAMES]


def _judge(name: str, machine: Machine, exported: Collection[str]) -> PrecisionVerdict:
    if name in _BITSANDBYTES:
        return _judge_bitsandbytes(name, machine.bitsandbytes)
    way, why_not = _way(name, machine)
    if way is None:
        return PrecisionVerdict(name, possible=False, backend="", speed="", reason=why_not)
    if name not in exported:
        reason = f"this version of rfedge exports {', '.join(exported)} only"
        return PrecisionVerdict(name, possible=False, backend=way.backend, speed=way.speed, reason=reason)
    return PrecisionVerdict(name, possible=True, backend=way.backend, speed=way.speed, reason="")


def _judge_bitsandbytes(name: str, found: Probed[str]) -> PrecisionVerdict:
    if found.value is None:
        return PrecisionVerdict(name, possible=False, backend="", speed="", reason=found.reason)
    backend = f"PyTorch on the CPU with bitsandbytes {found.value}"
    speed = "small; each MatMul turns its weights into floats" if name == "nf4" else "small; outliers stay floats"
    return PrecisionVerdict(name, possible=True, backend=backend, speed=speed, reason="from a checkpoint; never exported")


def _way(name: str, machine: Machine) -> tuple[_Way | None, str]:
    """Return the best way to run a precision here, or None and the reason why there is none."""
    runtime = machine.onnxruntime
    if runtime is None:
        return None, "onnxruntime is not usable here"
    why_not_gpu = "no NVIDIA GPU"
    if machine.gpu is not None:
        for find in (_tensorrt_way, _cuda_way):
            on_gpu, why_not_gpu = find(name, machine.gpu, machine)
            if on_gpu is not None:
                return on_gpu, ""
    if not runtime.runs("CPUExecutionProvider") or machine.processor is None:
        return None, "onnxruntime's CPU provider does not run here"
    on_cpu, why_not_cpu = _cpu_way(name, machine.processor)
    if on_cpu is not None:
        return on_cpu, ""
    return None, f"{why_not_cpu}; {why_not_gpu}" if why_not_gpu else why_not_cpu


def _tensorrt_way(name: str, gpu: Gpu, machine: Machine) -> tuple[_Way | None, str]:
    if "tensorrt" not in machine.backends:
        return None, "this version has no TensorRT runner"
    if machine.tensorrt is None:
        return None, "TensorRT does not import here"
    if gpu.sm < _TENSORRT_SM[name]:
        return None, _needs(name, _TENSORRT_SM[name], gpu)
    speed = "the reference" if name == "fp32" else "small" if name.endswith("-weight") else "fast"
    return _Way(f"TensorRT {machine.tensorrt.version} on {gpu.name}", speed), ""


def _cuda_way(name: str, gpu: Gpu, machine: Machine) -> tuple[_Way | None, str]:
    assert machine.onnxruntime is not None
    if not machine.onnxruntime.runs("CUDAExecutionProvider"):
        return None, f"this onnxruntime cannot use the {gpu.name}"
    backend = f"onnxruntime CUDA on {gpu.name}"
    if name == "fp32":
        return _Way(backend, "the reference"), ""
    if name not in ("fp16", "bf16"):
        # Q/DQ graphs are fused into int8 kernels by TensorRT, not by onnxruntime's CUDA provider.
        return None, "onnxruntime's CUDA provider has no fused int8 MatMuls"
    first = 70 if name == "fp16" else 80
    return (_Way(backend, "fast"), "") if gpu.sm >= first else (None, _needs(name, first, gpu))


def _needs(name: str, sm: int, gpu: Gpu) -> str:
    return f"{name} needs SM{sm}+; {gpu.name} is SM{gpu.sm}"


def _cpu_way(name: str, processor: Processor) -> tuple[_Way | None, str]:
    backend = "onnxruntime CPU"
    fast_int8 = processor.int8.speed == "fast"
    if name == "fp32":
        return _Way(backend, "the reference"), ""
    if name in ("int8", "mixed"):
        speed = f"fast ({processor.int8.instructions})" if fast_int8 else f"small, little faster ({processor.int8.text})"
        return _Way(backend, speed), ""
    if name == "fp16":
        if "FP16" in processor.features:
            return _Way(backend, "fast where onnxruntime has Arm fp16 kernels"), ""
        return _Way(backend, "small, slower: each MatMul is cast to fp32"), ""
    if name == "bf16":
        return None, "onnxruntime has no bf16 MatMuls on the CPU"
    return _Way(backend, "small; faster only where reading the weights takes longest"), ""
