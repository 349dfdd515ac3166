"""This machine as a device: its CPU by a short measurement, its GPU by what the driver tells of clocks and units."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import onnxruntime as ort

from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.errors import BackendUnavailableError
from rfedge.machine.gpu import Gpu, probe_gpu
from rfedge.machine.memory import probe_memory
from rfedge.machine.probing import probe
from rfedge.machine.processor import probe_processor
from rfedge.runtimes.backends.matmul_model import MatMulKind, matmul_model
from rfedge.runtimes.roofline.devices import CPU_EFFICIENCY, Device
from rfedge.runtimes.roofline.work import Arithmetic

__all__ = ["device_of_gpu", "measure_cpu", "this_gpu"]

# Between the decoder's 32 rows and the 514 of the ViT's two cameras, and short enough to find an undisturbed moment.
_ROWS, _INNER, _COLUMNS = 128, 1024, 1024
_SECONDS_OF_MATMULS: Final = 1.2
# Far larger than any cache, so that copies run at the speed of memory.
_COPY_BYTES: Final = 256 * 2**20
_SECONDS_OF_COPIES: Final = 0.6

# Dense fp16 operations per SM and clock by compute capability; int8 is twice that from SM75 on. Sources: whitepapers of
# Volta, Turing, A100, GA102, Orin, Ada, H100, Blackwell and RTX Blackwell; Thor from its data sheet (258 TFLOPS, 20 SM).
_FP16_PER_SM: Final = {70: 1024, 75: 1024, 80: 2048, 86: 1024, 87: 2048, 89: 1024, 90: 4096, 100: 8192, 110: 8192, 120: 1024}
_CORES_PER_SM: Final = {70: 64, 75: 64, 80: 64}
_MOST_CORES_PER_SM: Final = 128


def measure_cpu(threads: int | None = None) -> Device:
    """Time int8 and fp32 MatMuls on onnxruntime and copies in numpy, about two seconds in all; nothing is stored.

    Args:
        threads: of the MatMuls and the copies; by default as many cores as this process may use.
    """
    processor = probe_processor()
    threads = threads or processor.usable_cores
    memory = probe(probe_memory).value
    return Device(
        name="this-cpu",
        memory_bytes=memory.usable_bytes if memory is not None else 0,
        bandwidth=_copy_rate(threads),
        peaks=_matmul_rates(("fp32", "int8"), threads),
        source=f"{processor.model}, {threads} threads{_disturbed(processor.usable_cores)}",
        origin="measured",
        efficiency=CPU_EFFICIENCY,
    )


def _disturbed(cores: int) -> str:
    """Return a warning when others compute here: the figures are then too low."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f", disturbed by a load of {load:.1f}" if load > 0.5 * cores else ""


def _matmul_rates(kinds: tuple[MatMulKind, ...], threads: int) -> dict[Arithmetic, float]:
    """Return operations a second of the best MatMul: a roof is what the machine can do when nobody disturbs it."""
    x = np.random.default_rng(0).standard_normal((_ROWS, _INNER)).astype(np.float32)
    sessions = {kind: _matmul_session(kind, threads) for kind in kinds}
    best_s = dict.fromkeys(kinds, float("inf"))
    rounds = 0
    end_s = time.perf_counter() + _SECONDS_OF_MATMULS
    while time.perf_counter() < end_s or rounds < 3:
        for kind, session in sessions.items():  # taking turns, so that a disturbance hits both
            start_s = time.perf_counter()
            session.run(None, {"x": x})
            best_s[kind] = min(best_s[kind], time.perf_counter() - start_s)
        rounds += 1
    return {kind: 2 * _ROWS * _INNER * _COLUMNS / seconds for kind, seconds in best_s.items()}


def _matmul_session(kind: MatMulKind, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return ort.InferenceSession(
        matmul_model(kind, _ROWS, _INNER, _COLUMNS),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(DISABLED_OPTIMIZERS),
    )


def _copy_rate(threads: int) -> float:
    """Return bytes a second, read and written, of the best large copy by all threads at once."""
    source = np.full(_COPY_BYTES // 8, 1.0)  # written to: pages never touched are all one page, and that is cached
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:  # numpy gives up the interpreter's lock while it copies
        end_s = time.perf_counter() + _SECONDS_OF_COPIES
        while time.perf_counter() < end_s:
            start_s = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * _COPY_BYTES / best_s


def this_gpu() -> Device:
    """Return this machine's GPU.

    Raises:
        BackendUnavailableError: there is none, or its driver does not tell clocks and units.
    """
    found = probe(probe_gpu)
    if found.value is None:
        raise BackendUnavailableError(
            "this-gpu", got=found.reason, expected="an NVIDIA GPU", remedy="Leave --device this-gpu out."
        )
    device = device_of_gpu(found.value)
    if device is None:
        raise BackendUnavailableError(
            f"this-gpu ({found.value.name})",
            got=f"no clocks or units from {found.value.asked}",
            expected="both",
            remedy="Install nvidia-ml-py; on a Jetson name the board, such as --device agx-orin-64gb.",
        )
    return device


def device_of_gpu(gpu: Gpu) -> Device | None:
    """Derive peaks from SMs, clock and operations per SM and clock; None when one of them is unknown."""
    per_sm = _FP16_PER_SM.get(gpu.sm)
    if per_sm is None or not gpu.cores or not gpu.clock_hz or not gpu.bandwidth:
        return None
    multiprocessors = gpu.cores // _CORES_PER_SM.get(gpu.sm, _MOST_CORES_PER_SM)
    fp16 = multiprocessors * per_sm * gpu.clock_hz
    peaks: dict[Arithmetic, float] = {"fp32": 2 * gpu.cores * gpu.clock_hz, "fp16": fp16}
    if gpu.sm >= 75:
        peaks["int8"] = 2 * fp16
    if gpu.sm >= 80:
        peaks["bf16"] = fp16
    return Device(
        name="this-gpu",
        memory_bytes=gpu.memory_bytes,
        bandwidth=gpu.bandwidth,
        peaks=peaks,
        source=f"{gpu.name}: {multiprocessors} SM at {gpu.clock_hz / 1e6:.0f} MHz",
        origin="derived",
    )
