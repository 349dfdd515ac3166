"""From window numbers to tensors: load, shift, look up the instruction; the next batch is made while this one trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import SamplerState, WindowIndex, WindowSampler
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE
from rfedge.model import RoboFlamingo, frame_history
from rfedge.train.batches.vision_tokens import observe
from rfedge.train.batches.wording import Grammar, Wording
from rfedge.train.config import ShiftKind
from rfedge.train.distributed import Processes
from rfedge.train.losses import task_loss

T = TypeVar("T")
Self = TypeVar("Self", bound="Prefetch[Any]")


class Prefetch(Generic[T]):
    """Makes one item ahead inside its context: `plan` samples, and returns the work that is left to a thread."""

    def __init__(self, plan: Callable[[], Callable[[], T]]) -> None:
        self._plan = plan
        self._next: Future[T]

    def next(self) -> T:
        """Return the next item, or raise what making it raised."""
        ready = self._next.result()
        # Sampled here, not in the thread: so it does not depend on how far that has come.
        self._next = self._executor.submit(self._plan())
        return ready

    def __enter__(self: Self) -> Self:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rfedge-batches")
        self._next = self._executor.submit(self._plan())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)


_REFERENCE_SIZE_PX: Final = 224
STATIC_SHIFT_PX: Final = round(10 * STATIC_IMAGE_SHAPE[0] / _REFERENCE_SIZE_PX)
GRIPPER_SHIFT_PX: Final = round(4 * GRIPPER_IMAGE_SHAPE[0] / _REFERENCE_SIZE_PX)

Images = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ImageShifts:
    """Where the images of a batch are cropped: int64 (B, W or 1, 2) rows and columns, 0 to twice the limit, a camera.

    Source: RoboFlamingo's RandomShifts, 10 px (static) and 4 px (gripper) on images of 224 px. One shift a window by
    default: a new one every frame, as in the released code, buries the motion between frames under noise.
    """

    static: Offsets
    gripper: Offsets

    @classmethod
    def sample(cls, num_windows: int, num_frames: int, rng: np.random.Generator, kind: ShiftKind) -> ImageShifts | None:
        """Sample the shifts of a whole batch, of which each process then takes its part; None where nothing is shifted."""
        if kind == "none":
            return None
        static, gripper = (
            sample_offsets(num_windows, num_frames, limit_px, rng, kind) for limit_px in (STATIC_SHIFT_PX, GRIPPER_SHIFT_PX)
        )
        return cls(static, gripper)

    def part(self, chosen: slice) -> ImageShifts:
        return ImageShifts(self.static[chosen], self.gripper[chosen])

    def apply(self, static: Images, gripper: Images) -> tuple[Images, Images]:
        """Shift the images of both cameras, uint8 (B, W, H, H, 3)."""
        return shift_images(static, STATIC_SHIFT_PX, self.static), shift_images(gripper, GRIPPER_SHIFT_PX, self.gripper)


def sample_offsets(num_windows: int, num_frames: int, limit_px: int, rng: np.random.Generator, kind: ShiftKind) -> Offsets:
    """Sample up to `limit_px` pixels in both directions of both axes, once per window or per frame."""
    return rng.integers(0, 2 * limit_px + 1, size=(num_windows, num_frames if kind == "frame" else 1, 2))


def shift_images(images: Images, limit_px: int, offsets: Offsets) -> Images:
    """Crop uint8 (B, W, H, H, 3) where `sample_offsets` says, the border repeated by `limit_px` pixels first."""
    num_windows, num_frames, size = images.shape[:3]
    offsets = np.broadcast_to(offsets, (num_windows, num_frames, 2))
    border = (limit_px, limit_px)
    padded = np.pad(images, ((0, 0), (0, 0), border, border, (0, 0)), mode="edge")
    shifted = np.empty_like(images)
    for window in range(num_windows):
        for frame in range(num_frames):
            row, column = offsets[window, frame]
            shifted[window, frame] = padded[window, frame, row : row + size, column : column + size]
    return shifted


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


def batch_loader(
    index: WindowIndex,
    cache: FrameCache,
    table: InstructionTable,
    sampler: WindowSampler,
    *,
    shift: ShiftKind,
    step: int,
    processes: Processes,
    accumulate: int,
) -> Prefetch[tuple[SplitBatch[TensorBatch], SamplerState]]:
    """Make batches one ahead, each of (seed, step) and the sampler's state alone, and the sampler's state after it."""
    steps = itertools.count(step)
    own_parts = processes.parts(sampler.batch_size, accumulate)

    def plan() -> Callable[[], tuple[SplitBatch[TensorBatch], SamplerState]]:
        at = next(steps)
        rngs = [np.random.default_rng([sampler.seed, at, stream]) for stream in (_SHIFT_STREAM, _WORDING_STREAM)]
        chosen, state = sampler.next_batch(), sampler.state
        return lambda: (load(chosen, *rngs), state)

    def load(chosen: list[int], rng: np.random.Generator, wording_rng: np.random.Generator) -> SplitBatch[TensorBatch]:
        shifts = ImageShifts.sample(len(chosen), index.window, rng, shift)
        segments = [index.segments[index.windows[number].segment] for number in chosen]
        text = None if table.wording is None else table.wording.encode(segments, wording_rng)
        parts = []
        for part in own_parts:
            own_shifts = None if shifts is None else shifts.part(part)
            own_text = None if text is None else (text[0][part], text[1][part])
            parts.append(batch_tensors(index, cache, table, chosen[part], own_shifts, own_text))
        return SplitBatch(parts, int(index.cut(cache, chosen).action_mask.sum()))

    return Prefetch(plan)
