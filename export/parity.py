"""Proof: the exported graphs against the PyTorch policy, over a rollout in which each side carries its own state.

A feature may agree at every step and the policy still drift apart, because the LSTM integrates small errors. So both
sides are stepped through the same frames, each with its own hidden state, and the actions are compared as a robot
would receive them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS, open_exact
from rfedge.bundle.stages import call_in_order
from rfedge.config import PolicyConfig
from rfedge.contract import TensorSpec, policy_contract
from rfedge.jobs.progress import StageProgress
from rfedge.messages import FloatArray
from rfedge.model import RoboFlamingo
from rfedge.recurrence import Arrays, BackboneCall, HeadCall, acting_row, advance, initial_state, observe

__all__ = [
    "Episodes",
    "RolloutTrace",
    "StageProgress",
    "backbone_call",
    "compare_traces",
    "graph_call",
    "onnx_rollout",
    "torch_rollout",
]

Inputs = dict[str, npt.NDArray[Any]]
# one list of graph inputs per episode; the state is reset between episodes
Episodes = Sequence[Sequence[Inputs]]


@dataclass(frozen=True, slots=True, eq=False)
class RolloutTrace:
    """Everything one side produced, T steps over all episodes.

    Attributes:
        features: (T, width).
        pose: (T, k, 6).
        gripper: (T, k) probability.
        h, c: (T, layers, hidden) after each step, of the LSTM that acted; (T, 0, 0) where the head has no state.
    """

    features: FloatArray
    pose: FloatArray
    gripper: FloatArray
    h: FloatArray
    c: FloatArray


def _rollout(
    config: PolicyConfig, backbone: BackboneCall, head: HeadCall, episodes: Episodes, on_step: Callable[[], None]
) -> RolloutTrace:
    features, poses, grippers, hs, cs = [], [], [], [], []
    for episode in episodes:
        state = initial_state(config)
        for inputs in episode:
            feature, state = observe(config, backbone, inputs, state)
            pose, gripper, state = advance(config, head, feature, state)
            features.append(feature[0])
            poses.append(pose)
            grippers.append(gripper)
            hs.append(state.h[:, acting_row(state)])
            cs.append(state.c[:, acting_row(state)])
            on_step()
    return RolloutTrace(np.stack(features), np.stack(poses), np.stack(grippers), np.stack(hs), np.stack(cs))


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
        return _rollout(policy.config, backbone, head, episodes, on_step)


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
    return _rollout(config, backbone_call(config, graphs, open_graph=open_graph), open_graph(head), episodes, on_step)


def compare_traces(reference: RolloutTrace, candidate: RolloutTrace) -> dict[str, float]:
    """Return the metrics that `thresholds.py` judges, plus the means that help to read them.

    min_feature_cosine and feature_relative_rms are per step (worst step, whole rollout); action errors are in
    normalised units over the six pose numbers, p99 over the largest of each step; a gripper flip is a probability on
    the other side of 0.5.
    """
    f, g = reference.features.astype(np.float64), candidate.features.astype(np.float64)
    cosine = (f * g).sum(-1) / np.maximum(np.linalg.norm(f, axis=-1) * np.linalg.norm(g, axis=-1), 1e-30)
    pose_error = np.abs(reference.pose - candidate.pose)
    flips = (reference.gripper > 0.5) != (candidate.gripper > 0.5)
    # a head without a state drifts by nothing
    drift = np.abs(reference.h - candidate.h).reshape(len(f), -1).max(-1, initial=0.0)
    return {
        "min_feature_cosine": float(cosine.min()),
        "feature_relative_rms": float(np.sqrt(((f - g) ** 2).mean() / max((f**2).mean(), 1e-30))),
        "action_max_error": float(pose_error.max()),
        "action_p99_error": float(np.quantile(pose_error.reshape(len(f), -1).max(-1), 0.99)),
        "action_mean_error": float(pose_error.mean()),
        "gripper_flip_rate": float(flips.mean()),
        "gripper_max_error": float(np.abs(reference.gripper - candidate.gripper).max()),
        "hidden_max_drift": float(drift.max()),
        "hidden_last_drift": float(drift[-1]),
        "cell_max_drift": float(np.abs(reference.c - candidate.c).max(initial=0.0)),
    }
