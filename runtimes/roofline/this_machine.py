"""This machine as a device: its CPU by a short measurement, its GPU by what the driver tells of clocks and units."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.errors import BackendUnavailableError
from rfedge.machine.gpu import Gpu, probe_gpu
from rfedge.machine.memory import probe_memory
from rfedge.machine.probing import probe
from rfedge.machine.processor import probe_processor
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.matmul_model import MatMulKind, chain_model, matmul_model
from rfedge.runtimes.backends.registry import open_parts
from rfedge.runtimes.roofline.devices import Device
from rfedge.runtimes.roofline.graph_work import head_steps
from rfedge.runtimes.roofline.work import Arithmetic

T = TypeVar("T")
# Between the decoder's 32 rows and the 514 of the ViT's two cameras, and short enough to find an undisturbed moment.
_ROWS, _INNER, _COLUMNS = 128, 1024, 1024
_SECONDS_OF_MATMULS: Final = 1.2
# Far larger than any cache, so that copies run at the speed of memory.
_COPY_BYTES: Final = 256 * 2**20
_SLICE_BYTES: Final = 4 * 2**20
_SECONDS_OF_COPIES: Final = 0.6
_SECONDS_OF_CALLS: Final = 2.0
_FEWEST_CALLS: Final = 5
_OPERATORS: Final = 200
_SECONDS_OF_OPERATORS: Final = 0.2

# Dense fp16 operations per SM and clock by compute capability; int8 is twice that from SM75 on. Sources: whitepapers of
# Volta, Turing, A100, GA102, Orin, Ada, H100, Blackwell and RTX Blackwell; Thor from its data sheet (258 TFLOPS, 20 SM).
_FP16_PER_SM: Final = {70: 1024, 75: 1024, 80: 2048, 86: 1024, 87: 2048, 89: 1024, 90: 4096, 100: 8192, 110: 8192, 120: 1024}
_CORES_PER_SM: Final = {70: 64, 75: 64, 80: 64}
_MOST_CORES_PER_SM: Final = 128


def measure_cpu(threads: int | None = None) -> Device:
    """Time MatMuls and small operators on onnxruntime and copies in numpy, about two seconds in all; nothing is stored."""
    processor = probe_processor()
    threads, cores = threads or processor.usable_cores, processor.usable_cores
    memory = probe(probe_memory).value
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # the figures are too low where others compute here
    disturbed = f", disturbed by a load of {load:.1f}" if load > 0.5 * cores else ""
    copies = _copy_rate(threads)
    x = np.random.default_rng(0).standard_normal((_ROWS, _INNER)).astype(np.float32)
    kinds: tuple[MatMulKind, ...] = ("fp32", "int8")
    models = {kind: matmul_model(kind, _ROWS, _INNER, _COLUMNS) for kind in kinds}
    # operations a second of the best MatMul: a roof is what the machine can do when nobody disturbs it
    matmuls_s = _best_s(models, x, threads, _SECONDS_OF_MATMULS)
    rates: dict[Arithmetic, float] = {kind: 2 * _ROWS * _INNER * _COLUMNS / best_s for kind, best_s in matmuls_s.items()}
    # operators that compute next to nothing
    chain_s = _best_s({"": chain_model(_OPERATORS)}, np.ones((1, 16), np.float32), threads, _SECONDS_OF_OPERATORS)[""]
    return cpu_device(
        f"{processor.model}, {threads} threads{disturbed}",
        memory.usable_bytes if memory is not None else 0,
        copies,
        rates,
        1e6 * chain_s / _OPERATORS,
    )


def cpu_device(
    source: str, memory_bytes: int, bandwidth: float, peaks: Mapping[Arithmetic, float], operator_us: float
) -> Device:
    return Device(
        name="this-cpu",
        memory_bytes=memory_bytes,
        bandwidth=bandwidth,
        peaks=peaks,
        source=source,
        origin="measured",
        best=1.0,
        worst=0.5,  # RoboFlamingo-3B on two cores reached .73 of its roofline in int8, .85 in fp32; small policies .5 to .6
        least_launch_us=operator_us,
        most_launch_us=3 * operator_us,
    )


@dataclass(frozen=True, slots=True)
class MeasuredCalls:
    """Policy calls of a bundle on this CPU: what a prediction is compared with."""

    num_calls: int
    p50_ms: float  # backbone and head, without pre-processing; the median of `num_calls`


def measure_bundle(bundle: Bundle, threads: int | None = None) -> MeasuredCalls:
    """Time policy calls on onnxruntime, for some two seconds: text of the full length, a head in its steady state."""
    settings = RuntimeSettings(threads=threads or probe_processor().usable_cores, verify=False)
    parts = open_parts("onnxruntime", bundle.root, settings)
    rng = np.random.default_rng(0)
    graphs = [
        (parts.backbone, parts.contract.backbone.sample_inputs(rng, dynamic_size=parts.config.decoder.text_length)),
        (parts.head, parts.contract.head.sample_inputs(rng, dynamic_size=head_steps(parts.config))),
    ]
    for runner, _ in graphs:
        runner.activate()
    calls_ms: list[float] = []
    end_s = time.perf_counter() + _SECONDS_OF_CALLS
    while len(calls_ms) <= _FEWEST_CALLS or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        for runner, inputs in graphs:
            runner.infer(inputs)
        calls_ms.append(1e3 * (time.perf_counter() - start_s))
    for runner, _ in graphs:
        runner.deactivate()
    return MeasuredCalls(len(calls_ms) - 1, float(np.median(calls_ms[1:])))  # the first call allocates


def _best_s(models: Mapping[T, bytes], x: npt.NDArray[np.float32], threads: int, for_s: float) -> dict[T, float]:
    """Return the shortest time of each model, which take turns, so that a disturbance hits all of them."""
    sessions = {name: _session(model, threads) for name, model in models.items()}
    best_s = dict.fromkeys(models, float("inf"))
    rounds, end_s = 0, time.perf_counter() + for_s
    while time.perf_counter() < end_s or rounds < 3:
        for name, session in sessions.items():
            start_s = time.perf_counter()
            session.run(None, {"x": x})
            best_s[name] = min(best_s[name], time.perf_counter() - start_s)
        rounds += 1
    return best_s


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return ort.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )


def _copy_rate(threads: int) -> float:
    """Return bytes a second, read and written, of copies by all threads at once, slice after slice of large arrays."""
    source = np.full(_COPY_BYTES // 8, 1.0)  # written to: pages never touched are all one page, and that is cached
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # numpy gives up the interpreter's lock while it copies
        return sum(pool.map(_slice_rate, parts))


def _slice_rate(part: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]) -> float:
    """Return bytes a second of one thread; the quickest quarter of short slices, in which nobody else computed."""
    times_s: list[float] = []
    step = _SLICE_BYTES // 8
    end_s = time.perf_counter() + _SECONDS_OF_COPIES
    while time.perf_counter() < end_s:
        for start in range(0, len(part[0]) - step, step):
            start_s = time.perf_counter()
            np.copyto(part[0][start : start + step], part[1][start : start + step])
            times_s.append(time.perf_counter() - start_s)
    return 2 * _SLICE_BYTES / float(np.quantile(times_s, 0.25))


def this_gpu() -> Device:
    found = probe(probe_gpu)
    if found.value is None:
        raise BackendUnavailableError(
            "this-gpu", got=found.reason, expected="an NVIDIA GPU", remedy="Leave --device this-gpu out."
        )
    device = device_of_gpu(found.value)
    if device is None:
        got = f"no clocks or units from {found.value.asked}"
        remedy = "Install nvidia-ml-py; on a Jetson name the board, such as --device agx-orin-64gb."
        raise BackendUnavailableError(f"this-gpu ({found.value.name})", got=got, expected="both", remedy=remedy)
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
