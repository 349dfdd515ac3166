"""The NVIDIA GPU, asked in turn of NVML, of nvidia-smi and of the driver library (which is all a Jetson has)."""

from __future__ import annotations

from dataclasses import dataclass

from rfedge.errors import BackendUnavailableError
from rfedge.machine.power.sources import open_gpu, text_of
from rfedge.machine.probing import Absent, command_output, probe
from rfedge.nvidia.device import read_cuda_device

_SMI_FIELDS = ("name", "compute_cap", "memory.total", "driver_version")


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    sm: int  # compute capability as one number: 87 is 8.7
    memory_bytes: int
    driver: str
    cuda: str  # newest CUDA version that the driver serves; "" when unknown
    asked: str  # who said so
    # cores, clock_hz, bandwidth: CUDA cores, highest SM clock and bytes a second; 0 where nobody tells
    cores: int = 0
    clock_hz: float = 0.0
    bandwidth: float = 0.0

    @property
    def tensor_formats(self) -> tuple[str, ...]:
        """Types that its tensor cores multiply, by compute capability. Source: CUDA C++ Programming Guide."""
        since = {"fp16": 70, "int8": 75, "bf16": 80, "fp8": 89, "fp4": 100}
        return tuple(name for name, sm in since.items() if self.sm >= sm)


def parse_smi(text: str) -> Gpu:
    """Return the first GPU of `nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version` in csv, no units."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    if not rows or len(rows[0]) != len(_SMI_FIELDS):
        raise Absent("nvidia-smi lists no GPU")
    name, capability, memory_mib, driver = rows[0]
    major, _, minor = capability.partition(".")
    memory_bytes = int(memory_mib) * 2**20 if memory_mib.isdigit() else 0  # "[N/A]" where memory is shared
    return Gpu(name, int(major) * 10 + int(minor), memory_bytes, driver, "", "nvidia-smi")


def probe_gpu() -> Gpu:
    """Return the first GPU; Absent holds what each that was asked said."""
    answers = []
    for ask in (_ask_nvml, _ask_smi, _ask_driver):
        answer = probe(ask)
        if answer.value is not None:
            return answer.value
        answers.append(answer.reason)
    raise Absent(f"no NVIDIA GPU ({'; '.join(answers)})")


def _ask_nvml() -> Gpu:
    nvml, handle, name = open_gpu()
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        memory_clock_hz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
        # Two transfers a clock: NVML gives the clock of the data lines, HBM and GDDR alike.
        bandwidth = 2 * memory_clock_hz * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
        return Gpu(
            name=name,
            sm=10 * major + minor,
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            driver=text_of(nvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            asked="NVML",
            cores=int(nvml.nvmlDeviceGetNumGpuCores(handle)),
            clock_hz=nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            bandwidth=bandwidth,
        )
    except nvml.NVMLError as error:
        raise Absent(f"NVML: {error}") from None
    finally:
        nvml.nvmlShutdown()


def _ask_smi() -> Gpu:
    query = f"--query-gpu={','.join(_SMI_FIELDS)}"
    return parse_smi(command_output(["nvidia-smi", query, "--format=csv,noheader,nounits"]))


def _ask_driver() -> Gpu:
    try:
        found = read_cuda_device()
    except BackendUnavailableError as error:
        raise Absent(error.got) from None
    return Gpu(found.name, found.sm, found.memory_bytes, found.driver, found.cuda, "the CUDA driver")
