"""Settings of a run on its machine: its device, PyTorch's random state and threads, and batches that all processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.train.config import RunConfig, TrainConfig
from rfedge.train.distributed import Processes


def open_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device", got=repr(name), expected="cpu, cuda or cuda:N", remedy="Choose one of these.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            "device", got=repr(name), expected="a CUDA GPU that PyTorch can use", remedy="Pass --device cpu."
        )
    return device


@contextmanager
def torch_settings(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Seed PyTorch and set its threads and attention for the run alone: the caller's settings come back at the end."""
    num_threads = torch.get_num_threads()
    plain = device.type == "cpu" and config.mixed_precision == "bf16"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), plain_attention(when=plain):
        torch.manual_seed(config.seed)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


@contextmanager
def plain_attention(*, when: bool) -> Iterator[None]:
    """Let attention be three MatMuls where `when`."""
    if not when:
        yield
        return
    # Backwards in bf16, PyTorch's fused attention for CPUs is ten times slower than these MatMuls, at a few dozen tokens.
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(enabled=True)  # of all devices, whatever its name says
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(enabled=allowed)


def check_batches(config: TrainConfig, processes: Processes) -> None:
    """Raise ConfigError where a process would get nothing of a batch in one of its passes."""
    num_parts = processes.world_size * config.accumulate
    sizes = {"batch_size": (config.batch_size, num_parts)}
    if config.head_first_steps:
        sizes["head_first_batch_size"] = (config.head_first_batch_size, processes.world_size)
    if config.image_text:
        sizes["image_text_batch_size"] = (config.image_text_batch_size, num_parts)
    for name, (size, smallest) in sizes.items():
        if size < smallest:
            expected = f"at least {smallest}, as many as there are processes times passes"
            remedy = "It counts over all of them: raise it, or start fewer processes, or lower --accumulate."
            raise ConfigError(name, got=size, expected=expected, remedy=remedy)
