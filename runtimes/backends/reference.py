"""The policy in PyTorch, straight from its checkpoint: the truth the other backends are compared with.

The only module here that imports torch, and only when a checkpoint is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rfedge.arrays import Array, Float32
from rfedge.contract import GraphContract, policy_contract
from rfedge.model import load_checkpoint
from rfedge.model.bitsandbytes_weights import WEIGHT_FORMATS, keep_weights_in, stored_bytes
from rfedge.runtimes.backends.base import GraphRunner, PolicyParts, RuntimeSettings, Stage
from rfedge.runtimes.policy.backbone import refuse_one_stage_at_a_time
from rfedge.runtimes.policy.text import InstructionEncoder

Forward = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


class TorchRunner(GraphRunner):
    """Calls one half of a PyTorch policy, eager, under the same contract as an exported graph.

    Inputs go to `forward` by name; floats are converted to `torch_dtype` on the way in and to float32 on the way out.
    """

    def __init__(self, stage: Stage, contract: GraphContract, forward: Forward, settings: RuntimeSettings) -> None:
        super().__init__(stage, contract, settings)
        self._forward = forward
        self._dtype: torch.dtype = getattr(torch, self.settings.torch_dtype)

    def effective_settings(self) -> dict[str, str]:
        return {"providers": "torch eager cpu", "threads": str(torch.get_num_threads())}

    def _activate(self) -> None:
        """Nothing to load: the checkpoint is open already."""

    def _deactivate(self) -> None:
        """Nothing to free before the policy itself goes."""

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = {spec.name: self._to_tensor(inputs[spec.name]) for spec in self.contract.inputs}
        with torch.inference_mode():
            outputs = self._forward(**tensors)
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        return {
            spec.name: output.float().numpy().astype(spec.dtype, copy=True)
            for spec, output in zip(self.contract.outputs, outputs, strict=True)
        }

    def _to_tensor(self, array: Array) -> torch.Tensor:
        # torch has no read-only tensors and warns about such arrays (cached text, frames from a message).
        tensor = torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def open_checkpoint(path: Path, settings: RuntimeSettings) -> PolicyParts:
    """Open a checkpoint for PyTorch on the CPU.

    `settings.threads` is set for the whole process, because PyTorch has one pool; 0 leaves it as it is.
    """
    if settings.one_stage_at_a_time:
        raise refuse_one_stage_at_a_time(f"checkpoint {path}")
    checkpoint = load_checkpoint(path)
    dtype: torch.dtype = getattr(torch, settings.torch_dtype)
    policy = checkpoint.policy.eval()
    if dtype != torch.float32:
        policy.compute_in(dtype)
    precision = "fp32" if dtype == torch.float32 else "bf16"
    blocks = {"policy": precision}
    if settings.torch_weights != "as-is":
        num_layers = keep_weights_in(policy.backbone, settings.torch_weights, dtype)
        kept = f"{settings.torch_weights} ({num_layers} linear layers, the rest {precision})"
        blocks, precision = {"backbone": kept, "head": precision}, settings.torch_weights
    if settings.threads:
        torch.set_num_threads(settings.threads)
    contract = policy_contract(checkpoint.config)
    folder_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def embed(ids: npt.NDArray[np.int64]) -> Float32:
        with torch.inference_mode():
            return np.asarray(policy.embed_text(torch.from_numpy(ids[None]))[0].float().numpy(), dtype=np.float32)

    return PolicyParts(
        source=path,
        backend="torch",
        config=checkpoint.config,
        contract=contract,
        backbone=TorchRunner("backbone", contract.backbone, policy.backbone, settings),
        head=TorchRunner("head", contract.head, policy.head, settings),
        encoder=InstructionEncoder(checkpoint.tokenizer, embed),
        precision=precision,
        # A precision that is made while loading is in no file.
        size_bytes=folder_bytes if precision == "fp32" else stored_bytes(policy),
        block_precisions=blocks,
    )


def try_bitsandbytes() -> None:
    """Run a small MatMul in every weight format of bitsandbytes; whatever goes wrong is raised."""
    for weights in WEIGHT_FORMATS:
        layers = torch.nn.Sequential(torch.nn.Linear(64, 64))
        keep_weights_in(layers, weights, torch.float32)
        with torch.inference_mode():
            layers(torch.ones(1, 64))
