"""From window numbers to tensors: load, shift, look up the instruction; the next batch is made while this one trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, Generic, TypeVar

import numpy as np
import torch

from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import SamplerState, WindowIndex, WindowSampler
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import RoboFlamingo, frame_history
from rfedge.train.batches.augmentation import ImageShifts
from rfedge.train.batches.prefetch import Prefetch
from rfedge.train.batches.vision_tokens import observe
from rfedge.train.batches.wording import Grammar, Wording
from rfedge.train.config import ShiftKind
from rfedge.train.distributed import Processes
from rfedge.train.task_probe import task_loss

# Separate the streams of shifts and of instructions from the sampler's, which is sampled from the same seed.
_SHIFT_STREAM: Final = 1
_WORDING_STREAM: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class LabelledWindows:
    """Labels of B windows of W frames, K a frame; axes as in `rfedge.data.windows.WindowCut`."""

    actions: torch.Tensor
    frame_mask: torch.Tensor
    action_mask: torch.Tensor

    @property
    def num_frames(self) -> int:
        """Frames that are no filling, each of which costs a pass of the backbone."""
        return int(self.frame_mask.sum())


@dataclass(frozen=True, slots=True, eq=False)
class TensorBatch(LabelledWindows):
    """Windows of images."""

    # image_static, image_gripper: images, or float16 (B, W, P, V) what the vision tower made of them
    # (`rfedge.train.batches.vision_tokens`)
    image_static: torch.Tensor
    image_gripper: torch.Tensor
    token_ids: torch.Tensor  # int64 (B, T)
    text_mask: torch.Tensor  # bool (B, T)
    robot_state: torch.Tensor
    tasks: torch.Tensor  # int64 (B,), as `InstructionTable.tasks` counts them

    def to(self, device: torch.device) -> TensorBatch:
        return TensorBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


B = TypeVar("B", bound=LabelledWindows)


@dataclass(frozen=True, slots=True)
class SplitBatch(Generic[B]):
    """Part of a batch that this process learns."""

    parts: list[B]  # of its windows, one a pass
    num_actions: int  # recorded actions of the whole batch, over which the loss is the mean

    @property
    def num_frames(self) -> int:
        return sum(part.num_frames for part in self.parts)


class InstructionTable:
    """Tokens of every segment's instruction, encoded once."""

    def __init__(self, tokenizer: InstructionTokenizer, index: WindowIndex, grammar: Grammar | None = None) -> None:
        # says the instructions of training batches anew; None where they stay what they are
        self.wording = None if grammar is None else Wording(grammar, tokenizer)
        rows = {text: tokenizer.encode(text) for text in {segment.instruction for segment in index.segments}}
        self.token_ids = torch.from_numpy(np.stack([rows[segment.instruction][0] for segment in index.segments]))
        self.text_mask = torch.from_numpy(np.stack([rows[segment.instruction][1] for segment in index.segments]))
        self.tasks = tuple(sorted({segment.task for segment in index.segments}))  # ids of all tasks, sorted
        self.task_ids = torch.tensor([self.tasks.index(segment.task) for segment in index.segments])


def batch_tensors(
    index: WindowIndex,
    cache: FrameCache,
    table: InstructionTable,
    chosen: list[int],
    shifts: ImageShifts | None = None,
    text: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> TensorBatch:
    """Load the windows `chosen` and shift their images; `text`, token ids and mask, stands in for their instructions."""
    batch = index.load(cache, chosen)
    static, gripper = batch.image_static, batch.image_gripper
    if shifts is not None:
        static, gripper = shifts.apply(static, gripper)
    segments = torch.from_numpy(batch.segments)
    token_ids, text_mask = (table.token_ids[segments], table.text_mask[segments]) if text is None else text
    return TensorBatch(
        image_static=torch.from_numpy(static),
        image_gripper=torch.from_numpy(gripper),
        token_ids=token_ids,
        text_mask=text_mask,
        robot_state=torch.from_numpy(batch.robot_state),
        actions=torch.from_numpy(batch.actions),
        frame_mask=torch.from_numpy(batch.frame_mask),
        action_mask=torch.from_numpy(batch.action_mask),
        tasks=table.task_ids[segments],
    )


def window_forward(policy: RoboFlamingo, batch: TensorBatch) -> tuple[torch.Tensor, ...]:
    """Return pose (B, W, K, 6), gripper logit (B, W, K) and, with a task probe, its loss; only `frame_mask` counts."""
    num_windows, num_frames = batch.frame_mask.shape
    features, real = window_features(policy, batch)
    # Filling comes last in a window, so it cannot reach a real step through the LSTM.
    filled = features.new_zeros(num_windows * num_frames, features.shape[-1]).index_copy(0, real, features)
    acted = policy.head.unroll(filled.unflatten(0, (num_windows, num_frames)))
    probed = task_loss(policy, features, batch.tasks[real // num_frames])
    return acted if probed is None else (*acted, probed)


def window_features(policy: RoboFlamingo, batch: TensorBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the backbone on the real frames of a batch: features (N, D) and their places (N,) among all B * W frames."""
    real = batch.frame_mask.flatten().nonzero().squeeze(1)
    window = real // batch.frame_mask.shape[1]
    # Padding comes last and is masked out of the pool, so columns that no instruction of this batch uses change nothing.
    num_tokens = int(batch.text_mask.sum(dim=1).max())
    media = observe(policy, batch.image_static.flatten(0, 1)[real], batch.image_gripper.flatten(0, 1)[real])
    history = seen = None
    if policy.config.media_frames > 1:
        places = media.new_zeros(batch.frame_mask.numel(), *media.shape[1:]).index_copy(0, real, media)
        history, seen = frame_history(places.unflatten(0, batch.frame_mask.shape), policy.config.media_frames)
        history, seen = history[real], seen[real]
    features = policy.backbone.fuse(
        policy.embed_text(batch.token_ids[:, :num_tokens])[window],
        batch.text_mask[window, :num_tokens],
        media,
        batch.robot_state.flatten(0, 1)[real],
        history,
        seen,
    )
    return features, real


class BatchLoader(Prefetch[tuple[SplitBatch[TensorBatch], SamplerState]]):
    """Makes batches one ahead, from (seed, step) and the sampler's state alone; `next` also returns the state after it."""

    def __init__(
        self,
        index: WindowIndex,
        cache: FrameCache,
        table: InstructionTable,
        sampler: WindowSampler,
        *,
        shift: ShiftKind,
        step: int,
        processes: Processes,
        accumulate: int,
    ) -> None:
        self._sources = (index, cache, table)
        self._sampler = sampler
        self._shift: ShiftKind = shift
        self._step = step
        self._parts = processes.parts(sampler.batch_size, accumulate)
        super().__init__(self._plan_batch)

    def _plan_batch(self) -> Callable[[], tuple[SplitBatch[TensorBatch], SamplerState]]:
        index, cache, table = self._sources
        rng, wording_rng = (
            np.random.default_rng([self._sampler.seed, self._step, stream]) for stream in (_SHIFT_STREAM, _WORDING_STREAM)
        )
        chosen = self._sampler.next_batch()
        state = self._sampler.state
        self._step += 1

        def load() -> tuple[SplitBatch[TensorBatch], SamplerState]:
            shifts = ImageShifts.sample(len(chosen), index.window, rng, self._shift)
            segments = [index.segments[index.windows[number].segment] for number in chosen]
            text = None if table.wording is None else table.wording.encode(segments, wording_rng)
            parts = [
                batch_tensors(
                    index,
                    cache,
                    table,
                    chosen[part],
                    None if shifts is None else shifts.part(part),
                    None if text is None else (text[0][part], text[1][part]),
                )
                for part in self._parts
            ]
            return SplitBatch(parts, int(index.cut(cache, chosen).action_mask.sum())), state

        return load
