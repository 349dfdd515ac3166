"""Policies without values: shapes at once, memory only for what is then loaded or initialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from rfedge.config import PolicyConfig
from rfedge.model.policy import RoboFlamingo

_FILLING: Final = frozenset({"normal_", "uniform_", "mul_", "fill_", "zero_", "ones_", "zeros_", "copy_"})


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters have a shape and no values; buffers are computed, as nothing on disk holds them.

    Nearly no random number is sampled and no memory is touched for weights that the file is about to replace. It holds for
    every module that the process builds meanwhile, in other threads too.
    """

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook: Callable[..., Any] = to_meta  # what it returns counts, whatever PyTorch's annotation says
    handle = register_module_parameter_registration_hook(hook)
    try:
        with _NothingToFill():
            yield
    finally:
        handle.remove()


class _NothingToFill(TorchFunctionMode):
    """Skip what fills a tensor without values: on its way PyTorch would load 800 modules, 70 MB and more than a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")  # a method of a tensor, or a function of torch.nn.init
        if func.__name__ in _FILLING and isinstance(filled, torch.Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


def empty_policy(config: PolicyConfig) -> RoboFlamingo:
    """Return a policy whose parameters have no values; the caller's random state is not touched."""
    with torch.random.fork_rng(devices=[]), parameters_on_meta():
        return RoboFlamingo(config)


def random_policy(config: PolicyConfig, seed: int, dtype: torch.dtype = torch.float32) -> RoboFlamingo:
    """Return a policy in evaluation mode with random weights, for measurements of time and memory at real size.

    Matrices are normal with deviation 1 / sqrt(inputs), so that activations keep their size through any depth. It is
    sampled tensor by tensor in `dtype`; nothing larger exists beside it.
    """
    generator = torch.Generator().manual_seed(seed)

    def sampled(module: nn.Module, parameter: nn.Parameter) -> torch.Tensor:
        deviation = 0.3 if isinstance(module, nn.Embedding) else parameter[0].numel() ** -0.5
        return torch.empty(parameter.shape, dtype=dtype).normal_(0.0, deviation, generator=generator)

    return _filled(empty_policy(config).compute_in(dtype), sampled)


def pooled_policy(config: PolicyConfig, seed: int) -> RoboFlamingo:
    """Return a policy in evaluation mode whose matrices all look into one pool of random numbers, as large as the largest.

    For graphs whose structure and sizes count and whose numbers do not: a policy of 10 GB needs the memory of one weight.
    """
    policy = empty_policy(config).compute_in(torch.float32)
    largest = max(parameter.numel() for name, parameter in policy.named_parameters() if name != "embedding.weight")
    pool = torch.empty(largest).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))

    def looked_up(module: nn.Module, parameter: nn.Parameter) -> torch.Tensor:
        if isinstance(module, nn.Embedding):  # outside the graphs
            return pool[:1].expand(parameter.shape)
        return pool[: parameter.numel()].view(parameter.shape)

    return _filled(policy, looked_up)


@torch.no_grad()
def _filled(policy: RoboFlamingo, matrix: Callable[[nn.Module, nn.Parameter], torch.Tensor]) -> RoboFlamingo:
    """Give every matrix its values; norms are one, biases zero, gates half open."""
    for module in policy.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim >= 2:
                values = matrix(module, parameter)
            else:
                number = 0.5 if name.endswith("gate") else float(name.startswith("weight"))
                values = torch.full(parameter.shape, number, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
    return policy.eval()
