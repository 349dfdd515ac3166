"""The whole examination: every probe once, then one line a subject and one verdict a precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from rfedge.bundle.int8_kernels import EXACT_INT8
from rfedge.config import PRECISIONS
from rfedge.jobs.progress import StageProgress
from rfedge.machine.gpu import Gpu, probe_gpu
from rfedge.machine.jetson import Jetson, probe_jetson
from rfedge.machine.memory import Memory, probe_memory
from rfedge.machine.probing import Probed, probe
from rfedge.machine.processor import Processor, probe_processor
from rfedge.runtimes.backends.base import TORCH_WEIGHTS
from rfedge.runtimes.doctor.software import (
    RTX_MODULE,
    Extra,
    OnnxRuntime,
    Python,
    TensorRt,
    probe_bitsandbytes,
    probe_extras,
    probe_onnxruntime,
    probe_python,
    probe_tensorrt,
)

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


# problem: rfedge does not work here; note: it works, with this to know; absent: fine, but not here
Verdict = Literal["ok", "note", "absent", "problem"]
_LITTLE_DISK_BYTES = 5_000_000_000
_LITTLE_MEMORY_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Line:
    subject: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything the probes found, each a value or a reason."""

    found: dict[str, Probed[Any]]  # by the names of `_PROBES`
    precisions: tuple[PrecisionVerdict, ...]

    @property
    def lines(self) -> list[Line]:
        lines: list[Line] = []
        for name, (_, subject, absent, describe) in _PROBES.items():
            found = self.found[name]
            lines += [Line(subject, absent, found.reason)] if found.value is None else describe(subject, found.value)
        return lines

    @property
    def healthy(self) -> bool:
        """Whether nothing that was found keeps rfedge from working."""
        return all(line.verdict != "problem" for line in self.lines)

    def document(self) -> dict[str, Any]:
        return {
            "format": "rfedge-doctor",
            "schema_version": 1,
            "healthy": self.healthy,
            "facts": {name: dataclasses.asdict(self.found[name]) for name in _PROBES},
            "lines": [dataclasses.asdict(line) for line in self.lines],
            "precisions": [dataclasses.asdict(verdict) for verdict in self.precisions],
        }


def examine(on_probe: StageProgress = lambda *_: None) -> Examination:
    """Run every probe; `on_probe` is called with ("probe", done, total)."""
    probes = {name: look for name, (look, *_) in _PROBES.items()} | {"bitsandbytes": probe_bitsandbytes}
    found: dict[str, Probed[Any]] = {}
    for name, look in probes.items():
        on_probe("examine", len(found), len(probes))
        found[name] = probe(look)
    on_probe("examine", len(probes), len(probes))
    return Examination(found, tuple(check_precisions(found)))


def _python_lines(subject: str, python: Python) -> Iterator[Line]:
    text = f"{python.version} ({python.executable})"
    yield Line(subject, "ok", text) if python.supported else Line(subject, "problem", f"{text}: rfedge needs 3.10 or newer")


def _onnxruntime_lines(subject: str, runtime: OnnxRuntime) -> Iterator[Line]:
    works = runtime.runs("CPUExecutionProvider")
    yield Line(subject, "ok" if works else "problem", runtime.version)
    for name, why_not in runtime.providers.items():
        if why_not is None:
            yield Line(f"  {name}", "ok", "a MatMul ran on it")
        else:
            verdict: Verdict = "problem" if name == "CPUExecutionProvider" else "note"
            yield Line(f"  {name}", verdict, f"listed, but not usable: {why_not}")
    if runtime.int8_saturates:
        yield Line(
            "  int8 kernels", "note", f"uint8 x int8 saturates on this CPU: rfedge asks for exact ones ({EXACT_INT8}=1)"
        )


def _processor_lines(subject: str, processor: Processor) -> Iterator[Line]:
    yield Line(subject, "ok", f"{processor.model}, {processor.architecture}")
    cores = f"{processor.usable_cores} of {processor.logical_cores} cores are ours"
    if processor.usable_cores < processor.allowed_cores:
        cores += (
            f": a control group grants {processor.quota_cores:g} cores of CPU time, which onnxruntime does not see; "
            f"pass --threads {processor.usable_cores}"
        )
        yield Line("  cores", "note", cores)
    else:
        yield Line("  cores", "ok", cores)
    yield Line("  int8", "ok" if processor.int8.speed == "fast" else "note", processor.int8.text)
    yield Line("  features", "ok", " ".join(processor.features) or "none that matter")


def _memory_lines(subject: str, memory: Memory) -> Iterator[Line]:
    enough = memory.usable_bytes >= _LITTLE_MEMORY_BYTES
    yield Line(subject, "ok" if enough else "note", f"{_gb(memory.available_bytes)} free of {_gb(memory.total_bytes)}")
    if memory.limit_bytes is not None:
        tight = memory.limit_bytes < memory.total_bytes
        yield Line("  limit", "note" if tight else "ok", f"a control group allows {_gb(memory.limit_bytes)}")
    for swap in memory.swaps:
        kind = "compressed memory" if swap.compressed else "on disk: a policy that is swapped out misses its deadlines"
        yield Line("  swap", "note", f"{swap.name} {_gb(swap.size_bytes)}, {_gb(swap.used_bytes)} used, {kind}")
    if not memory.swaps:
        yield Line("  swap", "ok", "none")
    roomy = memory.disk_free_bytes >= _LITTLE_DISK_BYTES
    yield Line("  disk", "ok" if roomy else "note", f"{_gb(memory.disk_free_bytes)} free in this folder")


def _jetson_lines(subject: str, jetson: Jetson) -> Iterator[Line]:
    yield Line(subject, "ok", jetson.model)
    yield Line("  JetPack", "ok", f"{jetson.jetpack} (L4T R{jetson.l4t})")
    if jetson.cuda.value is None:
        yield Line("  CUDA", "note", jetson.cuda.reason)
    else:
        yield Line("  CUDA", "ok", jetson.cuda.value)
    mode = jetson.power_mode.value
    if mode is None:
        yield Line("  power mode", "note", jetson.power_mode.reason)
    elif mode.name.startswith("MAXN"):
        yield Line("  power mode", "ok", mode.name)
    else:
        yield Line("  power mode", "note", f"{mode.name}: clocks are capped; `sudo nvpmodel -q` lists, `-m` sets modes")
    for domain, clock in jetson.clocks.items():
        text = f"{clock.current_mhz:.0f} MHz ({clock.min_mhz:.0f} to {clock.max_mhz:.0f})"
        if clock.locked:
            yield Line(f"  {domain} clock", "ok", f"{text}, locked")
        else:
            yield Line(f"  {domain} clock", "note", f"{text}, floats: run `sudo jetson_clocks` before measuring")
    if not jetson.clocks:
        yield Line("  clocks", "note", jetson.clocks_reason)


def _gpu_lines(subject: str, gpu: Gpu) -> Iterator[Line]:
    cuda = f", CUDA up to {gpu.cuda}" if gpu.cuda else ""
    memory = f", {_gb(gpu.memory_bytes)}" if gpu.memory_bytes else ""
    yield Line(subject, "ok", f"{gpu.name}, SM{gpu.sm}{memory}, driver {gpu.driver}{cuda} (from {gpu.asked})")
    missing = [f"no {name} (needs SM{sm}+)" for name, sm in (("int8", 75), ("bf16", 80), ("fp8", 89)) if gpu.sm < sm]
    formats = ", ".join(gpu.tensor_formats) or "none"
    yield Line("  tensor cores", "ok" if gpu.sm >= 75 else "note", "; ".join([formats, *missing]))


def _tensorrt_lines(subject: str, tensorrt: TensorRt) -> Iterator[Line]:
    use = "; compiles engines for other machines too" if tensorrt.module == RTX_MODULE else ""
    yield Line(subject, "ok", f"{tensorrt.version}, {tensorrt.module} imports with its libraries{use}")


def _extra_lines(subject: str, extras: tuple[Extra, ...]) -> Iterator[Line]:
    for extra in extras:
        if extra.missing:
            text = f"lacks {', '.join(extra.missing)}: pip install 'rfedge[{extra.name}]'"
            yield Line(f"extra {extra.name}", "absent", text)
        else:
            listed = ", ".join(f"{name} {version}" for name, version in extra.installed.items())
            yield Line(f"extra {extra.name}", "ok", listed)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


# name in the document -> probe, subject of its lines, verdict where it finds nothing, lines where it finds something
_PROBES: Final[dict[str, tuple[Callable[[], Any], str, Verdict, Callable[[str, Any], Iterator[Line]]]]] = {
    "python": (probe_python, "Python", "problem", _python_lines),
    "onnxruntime": (probe_onnxruntime, "onnxruntime", "problem", _onnxruntime_lines),
    "processor": (probe_processor, "CPU", "problem", _processor_lines),
    "memory": (probe_memory, "memory", "note", _memory_lines),
    "jetson": (probe_jetson, "Jetson", "absent", _jetson_lines),
    "gpu": (probe_gpu, "GPU", "absent", _gpu_lines),
    "tensorrt": (partial(probe_tensorrt, "tensorrt"), "TensorRT", "absent", _tensorrt_lines),
    "tensorrt_rtx": (partial(probe_tensorrt, RTX_MODULE), "TensorRT for RTX", "absent", _tensorrt_lines),
    "extras": (probe_extras, "extras", "note", _extra_lines),
}
