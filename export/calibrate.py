"""Choose demonstration frames: some to calibrate on, others to prove on, each named so that the choice can be repeated.

Few similar frames would clip what the robot meets later, so frames are balanced over tasks, episodes and their phases.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from rfedge.arrays import Array, Float32
from rfedge.config import PolicyConfig
from rfedge.data import CalvinDataset, Segment
from rfedge.errors import DatasetError
from rfedge.export.words import Words
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.recurrence import BackboneCall, history_inputs, initial_state, observe

Inputs = dict[str, Array]
EpisodeFrame = tuple[int, int]  # (index of the segment, frame number)

Phase = Literal["beginning", "middle", "end", "closing", "opening"]

_THIRDS: Final[tuple[Phase, ...]] = ("beginning", "middle", "end")
_CHANGES: Final[tuple[Phase, ...]] = ("closing", "opening")
# To find a gripper change, all actions of an episode are read; so not all episodes of a large dataset are looked through.
_MOST_EPISODES_SEARCHED: Final = 8
# Neighbouring pixels of a camera are alike; of random bytes the mean square difference is twice the variance.
_MOST_NOISE: Final = 0.8


def choose_calibration_frames(dataset: CalvinDataset, *, num_frames: int, rng: np.random.Generator) -> list[EpisodeFrame]:
    """Return up to `num_frames` distinct (episode, frame) pairs, balanced as far as the demonstrations allow.

    The numbers of frames of any two tasks differ by at most one, and so do those of any two episodes of a task, of any two
    of `beginning`, `middle`, `end` and gripper changes, and of closing and opening the gripper.
    """
    if not dataset.segments:
        raise DatasetError(
            "calibration", got="no labelled episode", expected="at least one", remedy="Collect some with `rfedge demos`."
        )
    sampler = StratifiedSampler(dataset, rng)
    available = sum(segment.num_frames for segment in dataset.segments)
    chosen = [sampler.sample() for _ in range(min(num_frames, available))]
    _refuse_synthetic(dataset, chosen)
    return chosen


class StratifiedSampler:
    """Samples frames one by one, each from the task, episode and phase that was sampled least."""

    def __init__(self, dataset: CalvinDataset, rng: np.random.Generator) -> None:
        self._dataset = dataset
        self._rng = rng
        self._episodes: dict[str, list[int]] = {}
        for index, segment in enumerate(dataset.segments):
            self._episodes.setdefault(segment.task, []).append(index)
        for indices in self._episodes.values():
            rng.shuffle(indices)
        self._taken: set[EpisodeFrame] = set()
        self._of_task: Counter[str] = Counter()
        self._of_episode: Counter[int] = Counter()
        self._of_phase: Counter[str] = Counter()
        self._of_task_phase: Counter[tuple[str, str]] = Counter()
        self._changes: dict[int, dict[Phase, list[int]]] = {}

    def sample(self) -> EpisodeFrame:
        """Return a pair that was not returned before; there must be one left."""
        tasks = [task for task, indices in self._episodes.items() if any(map(self._has_frames, indices))]
        task = min(tasks, key=lambda name: self._of_task[name])
        fewest = min(self._of_episode[index] for index in filter(self._has_frames, self._episodes[task]))
        episodes = [index for index in self._episodes[task] if self._of_episode[index] == fewest and self._has_frames(index)]
        for phase in self._phases(task):
            for index in episodes[:_MOST_EPISODES_SEARCHED]:
                free = [frame for frame in self._frames(index, phase) if (index, frame) not in self._taken]
                if free:
                    frame = int(self._rng.choice(free))
                    self._taken.add((index, frame))
                    self._of_task[task] += 1
                    self._of_episode[index] += 1
                    self._of_phase[phase] += 1
                    self._of_task_phase[task, phase] += 1
                    return index, frame
        raise AssertionError("an episode with free frames has one in some phase")

    def _phases(self, task: str) -> list[Phase]:
        """All phases, the least sampled first."""
        directions = sorted(_CHANGES, key=lambda phase: (self._of_phase[phase], self._of_task_phase[task, phase]))
        kinds: list[tuple[Phase, ...]] = [*((third,) for third in _THIRDS), tuple(directions)]

        def taken(kind: tuple[Phase, ...]) -> tuple[int, int]:
            return sum(self._of_phase[phase] for phase in kind), sum(self._of_task_phase[task, phase] for phase in kind)

        return [phase for kind in sorted(kinds, key=taken) for phase in kind]

    def _has_frames(self, index: int) -> bool:
        return self._of_episode[index] < self._dataset.segments[index].num_frames

    def _frames(self, index: int, phase: Phase) -> Sequence[int]:
        """Every frame of an episode is in one phase: that of a gripper change, else that of a third."""
        segment = self._dataset.segments[index]
        if index not in self._changes:
            self._changes[index] = gripper_changes(self._dataset, segment)
        changes = self._changes[index]
        if phase not in _THIRDS:
            return changes[phase]
        third = _THIRDS.index(phase)
        bounds = [segment.start + segment.num_frames * part // len(_THIRDS) for part in (third, third + 1)]
        return [frame for frame in range(*bounds) if not any(frame in changes[change] for change in _CHANGES)]


def gripper_changes(dataset: CalvinDataset, segment: Segment) -> dict[Phase, list[int]]:
    """Return the frames of a segment at which the command to the gripper first differs from the one before."""
    frames = range(segment.start, segment.end + 1)
    commands = np.array([dataset.frame(frame, ("rel_actions",))["rel_actions"][6] for frame in frames])
    change = np.diff(np.sign(commands))
    return {
        "closing": [segment.start + int(step) + 1 for step in np.flatnonzero(change < 0)],
        "opening": [segment.start + int(step) + 1 for step in np.flatnonzero(change > 0)],
    }


def _refuse_synthetic(dataset: CalvinDataset, chosen: Sequence[EpisodeFrame]) -> None:
    images = set()
    noise = []
    for _, frame in chosen:
        image = dataset.frame(frame, ("rgb_static",))["rgb_static"]
        images.add(hashlib.sha256(image.tobytes()).digest())
        pixels = image.astype(np.float32)
        variance = float(pixels.var())
        noise.append(float(np.square(np.diff(pixels, axis=1)).mean()) / (2 * variance) if variance else 0.0)
    if len(images) == 1 and len(chosen) > 1:
        got = f"{len(chosen)} frames with one and the same picture"
    elif float(np.median(noise)) > _MOST_NOISE:
        got = "frames of random bytes"
    else:
        return
    expected = "pictures of a camera (synthetic calibration is refused)"
    remedy = "Collect demonstrations with `rfedge demos`, or give others with --data."
    raise DatasetError(f"calibration on {dataset.folder}", got=got, expected=expected, remedy=remedy)


def choose_proof_episodes(
    dataset: CalvinDataset, *, num_steps: int, frame_stride: int, avoid: Sequence[EpisodeFrame], rng: np.random.Generator
) -> list[list[EpisodeFrame]]:
    """Return whole episodes, every `frame_stride`-th frame, up to `num_steps`; first those without frames in `avoid`."""
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
    """Turns (episode, frame) pairs into backbone inputs, exactly as a robot's observation would become them."""

    config: PolicyConfig
    dataset: CalvinDataset
    tokenizer: InstructionTokenizer
    embedding: Float32  # (vocab, width)
    words: Words | None = None  # blocks that the graphs lack, to be run on embedded tokens

    def load(self, pair: EpisodeFrame) -> Inputs:
        segment_index, frame = pair
        images = self.dataset.frame(frame, ("rgb_static", "rgb_gripper", "robot_obs"))
        ids, mask = self.tokenizer.encode(self.dataset.segments[segment_index].instruction)
        embedded = self.embedding[ids[mask]][None]
        inputs = {
            "image_static": images["rgb_static"][None],
            "image_gripper": images["rgb_gripper"][None],
            "text_embedding": embedded if self.words is None else self.words(embedded),
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
        return map(self.load, pairs)


def hash_frames(inputs: FrameInputs, pairs: Sequence[EpisodeFrame]) -> str:
    """Return the sha256 over the pixels and instructions of `pairs`, in order."""
    digest = hashlib.sha256()
    for segment_index, frame in pairs:
        images = inputs.dataset.frame(frame, ("rgb_static", "rgb_gripper"))
        digest.update(images["rgb_static"].tobytes())
        digest.update(images["rgb_gripper"].tobytes())
        digest.update(inputs.dataset.segments[segment_index].instruction.encode())
    return digest.hexdigest()
