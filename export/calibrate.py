"""Choose demonstration frames: some to calibrate on, others to prove on, each named so that the choice can be repeated.

Ranges taken from a handful of similar frames clip what the robot meets later. So frames are dealt round-robin over the
tasks, over a task's episodes, and over the phases of an episode (beginning, middle, end, a gripper change).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.config import PolicyConfig
from rfedge.data import CalvinDataset
from rfedge.errors import DatasetError, explain
from rfedge.timekeeping import BackboneCall, history_inputs, initial_state, observe
from rfedge.tokenizer import InstructionTokenizer

__all__ = ["FrameInputs", "choose_calibration_frames", "choose_proof_episodes", "hash_frames"]

Inputs = dict[str, npt.NDArray[Any]]
EpisodeFrame = tuple[int, int]  # (index of the segment, frame number)

_PHASES = 4


def choose_calibration_frames(dataset: CalvinDataset, *, num_frames: int, rng: np.random.Generator) -> list[EpisodeFrame]:
    """Return up to `num_frames` distinct (episode, frame) pairs, balanced over tasks, episodes and phases.

    Raises:
        DatasetError: the dataset holds no labelled episode.
    """
    if not dataset.segments:
        raise DatasetError(
            explain(
                "calibration", got="no labelled episode", expected="at least one", remedy="Collect some with `rfedge demos`."
            )
        )
    by_task: dict[str, list[int]] = {}
    for index, segment in enumerate(dataset.segments):
        by_task.setdefault(segment.task, []).append(index)
    for indices in by_task.values():
        rng.shuffle(indices)
    chosen: dict[EpisodeFrame, None] = {}  # insertion-ordered set
    available = sum(segment.end - segment.start + 1 for segment in dataset.segments)
    visit = 0
    while len(chosen) < min(num_frames, available):
        for indices in by_task.values():
            segment_index = indices[visit % len(indices)]
            frame = _phase_frame(dataset, segment_index, phase=(visit // len(indices) + visit) % _PHASES, rng=rng)
            if len(chosen) < num_frames:
                chosen.setdefault((segment_index, frame))
        visit += 1
    return list(chosen)


def _phase_frame(dataset: CalvinDataset, segment_index: int, *, phase: int, rng: np.random.Generator) -> int:
    segment = dataset.segments[segment_index]
    length = segment.end - segment.start + 1
    if phase == _PHASES - 1:
        frames = range(segment.start, segment.end + 1)
        gripper = np.array([dataset.frame(frame, ("rel_actions",))["rel_actions"][6] for frame in frames])
        changes = np.flatnonzero(np.diff(gripper))
        if changes.size:
            return segment.start + int(rng.choice(changes)) + 1
        return segment.start + int(rng.integers(length))
    third = max(length // (_PHASES - 1), 1)
    return segment.start + min(phase * third + int(rng.integers(third)), length - 1)


def choose_proof_episodes(
    dataset: CalvinDataset, *, num_steps: int, frame_stride: int, avoid: Sequence[EpisodeFrame], rng: np.random.Generator
) -> list[list[EpisodeFrame]]:
    """Return whole episodes, read every `frame_stride`-th frame as the robot would, until `num_steps` are reached.

    Episodes that lent no frame to the calibration come first.
    """
    used = {segment for segment, _ in avoid}
    order = sorted(rng.permutation(len(dataset.segments)).tolist(), key=lambda index: index in used)
    episodes: list[list[EpisodeFrame]] = []
    missing = num_steps
    for index in order:
        if missing <= 0:
            break
        segment = dataset.segments[index]
        frames = [(index, frame) for frame in range(segment.start, segment.end + 1, frame_stride)][:missing]
        episodes.append(frames)
        missing -= len(frames)
    return episodes


@dataclass(frozen=True)
class FrameInputs:
    """Turns (episode, frame) pairs into backbone inputs, exactly as a robot's observation would become them.

    Attributes:
        config: the policy's.
        dataset: where frames come from.
        tokenizer: the checkpoint's.
        embedding: float32 (vocab, width) token table.
    """

    config: PolicyConfig
    dataset: CalvinDataset
    tokenizer: InstructionTokenizer
    embedding: npt.NDArray[np.float32]

    def load(self, pair: EpisodeFrame) -> Inputs:
        segment_index, frame = pair
        images = self.dataset.frame(frame, ("rgb_static", "rgb_gripper", "robot_obs"))
        ids, mask = self.tokenizer.encode(self.dataset.segments[segment_index].instruction)
        inputs = {
            "image_static": images["rgb_static"][None],
            "image_gripper": images["rgb_gripper"][None],
            "text_embedding": self.embedding[ids[mask]][None],
            "text_mask": mask[mask][None],
        }
        if self.config.proprioception:
            inputs["robot_state"] = images["robot_obs"].astype(np.float32)[None]
        return inputs

    def with_history(self, pairs: Sequence[EpisodeFrame], call: BackboneCall) -> Iterator[Inputs]:
        """Yield the inputs of each pair with the latents of the frames before it, computed by `call` (graph in fp32)."""
        for segment_index, frame in pairs:
            first = self.dataset.segments[segment_index].start
            stride = self.config.frame_stride
            past = [
                older for older in range(frame - stride * (self.config.media_frames - 1), frame, stride) if older >= first
            ]
            state = initial_state(self.config)
            for older in past:
                _, state = observe(self.config, call, self.load((segment_index, older)), state)
            yield {**self.load((segment_index, frame)), **history_inputs(self.config, state)}

    def stream(self, pairs: Sequence[EpisodeFrame]) -> Iterator[Inputs]:
        for pair in pairs:
            yield self.load(pair)


def hash_frames(inputs: FrameInputs, pairs: Sequence[EpisodeFrame]) -> str:
    """Return the sha256 over the pixels and instructions of `pairs`, in order."""
    digest = hashlib.sha256()
    for segment_index, frame in pairs:
        images = inputs.dataset.frame(frame, ("rgb_static", "rgb_gripper"))
        digest.update(images["rgb_static"].tobytes())
        digest.update(images["rgb_gripper"].tobytes())
        digest.update(inputs.dataset.segments[segment_index].instruction.encode())
    return digest.hexdigest()
