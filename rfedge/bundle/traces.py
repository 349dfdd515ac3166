"""A rollout as numbers: what a policy's graphs returned over recorded frames, how two of them differ, and the frames that a
bundle carries so that whatever runs it later can be held to the same gates (proof.npz).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.config import PolicyConfig
from rfedge.errors import ArtifactError
from rfedge.messages import FloatArray
from rfedge.recurrence import BackboneCall, HeadCall, acting_row, advance, initial_state, observe

Inputs = dict[str, npt.NDArray[Any]]
# one list of graph inputs per episode; the state is reset between episodes
Episodes = Sequence[Sequence[Inputs]]
PROOF_STEPS: Final = 8  # 0.3 MB of camera frames
_OUTPUTS: Final = ("features", "pose", "gripper", "h", "c")


@dataclass(frozen=True, slots=True, eq=False)
class RolloutTrace:
    """Everything one side produced, T steps over all episodes."""

    features: FloatArray  # (T, width)
    pose: FloatArray  # (T, k, 6)
    gripper: FloatArray  # (T, k) probability
    # h, c: (T, layers, hidden) after each step, of the LSTM that acted; (T, 0, 0) where the head has no state
    h: FloatArray
    c: FloatArray


def rollout(
    config: PolicyConfig,
    backbone: BackboneCall,
    head: HeadCall,
    episodes: Episodes,
    on_step: Callable[[], None] = lambda: None,
) -> RolloutTrace:
    """Step backbone and head through `episodes`, with carried state."""
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


def compare_traces(reference: RolloutTrace, candidate: RolloutTrace) -> dict[str, float]:
    """Return the metrics that the gates of an export are on, plus the means that help to read them.

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


def save_proof(path: Path, episodes: Episodes, trace: RolloutTrace) -> None:
    """Write the first `PROOF_STEPS` steps of the first episode, with what PyTorch returned there."""
    steps = episodes[0][:PROOF_STEPS]
    count = len(steps)
    arrays = {f"inputs/{name}": np.stack([step[name] for step in steps]) for name in steps[0]}
    arrays |= {name: getattr(trace, name)[:count] for name in _OUTPUTS}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_proof(path: Path) -> tuple[Episodes, RolloutTrace]:
    """Return the one episode and the trace of `save_proof`. Raises ArtifactError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            trace = RolloutTrace(**{name: file[name] for name in _OUTPUTS})
            inputs = {name.removeprefix("inputs/"): file[name] for name in file.files if name.startswith("inputs/")}
        steps = [{name: array[index] for name, array in inputs.items()} for index in range(len(trace.features))]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(
            f"proof {path.name}", got=str(error), expected="recorded frames", remedy="Export the bundle again."
        ) from None
    return [steps], trace
