"""Where a policy is computed: alone, with its gradients shared (DDP), or with its weights spread over processes (FSDP2).

Device, random state, threads and attention of PyTorch are set for the run alone.

DDP and FSDP2 see only what goes through a module's `forward`, while training asks a policy for its parts: features, the
head, logits. So one module around the policy takes any computation as its argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.model import RoboFlamingo
from rfedge.train.config import MixedPrecision, RunConfig, TrainConfig
from rfedge.train.distributed import Processes

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


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


T = TypeVar("T")

_AUTOCAST_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Computation(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class ComputeContext:
    """Runs computations of a policy in the run's precision, so that gradients are means over the processes."""

    def __init__(
        self, device: torch.device, mixed_precision: MixedPrecision = "no", sharded: nn.Module | None = None
    ) -> None:
        self.device = device
        self._dtype = _AUTOCAST_DTYPES.get(mixed_precision)
        self._module = sharded
        self._ddp: DistributedDataParallel | None = None

    def share_gradients_of(self, module: nn.Module, *, all_learn: bool) -> ComputeContext:
        """Return a context in which all processes get the mean gradients of `module`."""
        from torch.nn.parallel import DistributedDataParallel

        # What buffers hold does not change. The newer of the two names makes the older one warn.
        names = inspect.signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        other = copy(self)
        other._ddp = DistributedDataParallel(_Computation(module), find_unused_parameters=not all_learn, **options)
        other._module = other._ddp
        return other

    def run(self, compute: Callable[[], T]) -> T:
        """Return what `compute` returns; under FSDP2 every process must run as many computations as the others."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            return compute() if self._module is None else self._module(compute)

    @contextmanager
    def gradients(self, *, shared: bool) -> Iterator[None]:
        """Around forward and backward of one pass of several: gradients need to be shared in the last one alone."""
        # FSDP2 shares them in every pass, or it would have to keep all of them, not its part.
        with nullcontext() if shared or self._ddp is None else self._ddp.no_sync():
            yield


def reach_all(outputs: Iterable[torch.Tensor], parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether each of `parameters` has a part in `outputs`, by the graph that was recorded."""
    missing = {id(parameter) for parameter in parameters}
    nodes = [output.grad_fn for output in outputs]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        missing.discard(id(getattr(node, "variable", None)))
        nodes += [earlier for earlier, _ in node.next_functions]
    return not missing


def shard(policy: RoboFlamingo, device: torch.device, processes: Processes) -> nn.Module:
    """Spread the weights of `policy` over all processes, block by block, and return the module to compute in.

    Its parameters are then DTensors on `device`. A block's weights are whole only while it is computed.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.world_size,))
    root = _Computation(policy)
    for module in (*policy.backbone.vision.blocks, *policy.backbone.decoder.layers, root):
        # The root too: what an optimizer and a training state hold are its parts, not what a measurement left whole.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return root


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a DTensor, which all processes must ask for together, and any other tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(policy: nn.Module, processes: Processes) -> dict[str, torch.Tensor]:
    """Return all weights on the CPU; empty but in the first process. All processes must call it together."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    if any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
        gathered: dict[str, Any] = get_model_state_dict(
            policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return gathered if processes.is_first else {}
    if not processes.is_first:
        return {}
    return {name: tensor.detach().cpu() for name, tensor in policy.state_dict().items()}


def like_parameter(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor of `parameter`'s shape as that is: on its device, and cut as it is cut."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    # Every process has read the whole: each takes its part without asking the others.
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
