"""Proof: the exported graphs against the PyTorch policy, over a rollout in which each side carries its own state.

A feature may agree at every step and the policy still drift apart, because the LSTM integrates small errors. So both
sides are stepped through the same frames, each with its own hidden state, and the actions are compared as a robot
would receive them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS, open_exact
from rfedge.bundle.stages import call_in_order
from rfedge.bundle.traces import Episodes, RolloutTrace, rollout
from rfedge.config import PolicyConfig
from rfedge.contract import TensorSpec, policy_contract
from rfedge.model import RoboFlamingo
from rfedge.recurrence import Arrays, BackboneCall


def torch_rollout(policy: RoboFlamingo, episodes: Episodes, *, on_step: Callable[[], None] = lambda: None) -> RolloutTrace:
    """Step the PyTorch policy through `episodes`."""
    policy.eval()
    contract = policy_contract(policy.config)

    def caller(module: torch.nn.Module, specs: Sequence[TensorSpec]) -> Callable[[Arrays], Arrays]:
        def call(inputs: Arrays) -> Arrays:
            outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            return {spec.name: output.numpy() for spec, output in zip(specs, outputs, strict=True)}

        return call

    backbone = caller(policy.backbone, contract.backbone.outputs)
    head = caller(policy.head, contract.head.outputs)
    with torch.inference_mode():
        return rollout(policy.config, backbone, head, episodes, on_step)


def graph_call(path: Path) -> Callable[[Arrays], Arrays]:
    """Open a graph in ONNX Runtime on the CPU: inputs by name -> outputs by name."""

    def make_options() -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return options

    def open_session(options: Any) -> Any:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
        )

    session, _ = open_exact(make_options, open_session, path)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def backbone_call(
    config: PolicyConfig, graphs: Sequence[Path], *, open_graph: Callable[[Path], BackboneCall] = graph_call
) -> BackboneCall:
    """Open a backbone in ONNX Runtime on the CPU: its one graph, or both stages in call order."""
    if len(graphs) == 1:
        return open_graph(graphs[0])
    contract = policy_contract(config, two_stages=True)
    stages = list(zip(contract.backbone_stages.values(), map(open_graph, graphs), strict=True))
    return lambda inputs: call_in_order(contract.backbone, stages, inputs)


def onnx_rollout(
    config: PolicyConfig,
    backbone: Path | Sequence[Path],
    head: Path,
    episodes: Episodes,
    *,
    on_step: Callable[[], None] = lambda: None,
    open_graph: Callable[[Path], BackboneCall] = graph_call,
) -> RolloutTrace:
    """Step the graphs through `episodes` in ONNX Runtime on the CPU; a backbone is one graph or both stages in order."""
    graphs = [backbone] if isinstance(backbone, Path) else backbone
    return rollout(config, backbone_call(config, graphs, open_graph=open_graph), open_graph(head), episodes, on_step)
