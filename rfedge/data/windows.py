"""Training windows: which frames a window holds, which actions label them, and in which order windows are sampled.

With `frame_stride` s and `chunk_size` k, a window that starts at frame f holds the frames f, f + s, f + 2s, ... and the
label of a held frame i is the k consecutive actions rel_actions[i : i + k]. With s = k this is jump-step training: the
LSTM sees one frame per executed chunk, in training as on the robot. Three decisions:

1. Every frame of every segment starts a window. So the first steps of an episode are trained from zero state, and the
   middle of an episode is too, which keeps the LSTM from learning a motion by heart instead of looking.
2. A window that reaches past its segment is cut there and filled with copies of its last frame, marked in `frame_mask`.
   Segments have at most 64 frames: at stride 5 not one full window of 12 fits.
3. Actions past the end of a segment get CALVIN's padding (pose zero, gripper repeated) and are marked in `action_mask`.
   The loss leaves them out: nobody showed them, and near a segment's end they would teach to stop before it is done.

Sources: RoboFlamingo section 5.5 (jump-step); CALVIN's dataset loader (padding rule).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rfedge.data.calvin import CalvinDataset, Segment
from rfedge.data.frame_cache import FrameCache
from rfedge.errors import ConfigError
from rfedge.messages import ACTION_SIZE, POSE_SIZE
from rfedge.records.plan import check_least

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Start of one window: `segment` is an index into the dataset's segments, `offset` frames after its first."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class WindowCut:
    """Where B windows of W frames lie, and the K labels of each frame."""

    steps: Int64Array  # int64 (B, W) frames after the first of each window's segment
    segments: Int64Array  # int64 (B,) which segment each window is of
    actions: npt.NDArray[np.float32]  # (B, W, K, 7) rel_actions, normalised units, gripper -1 or 1
    frame_mask: BoolArray  # (B, W), true on frames of the segment; always a run of trues, then falses
    action_mask: BoolArray  # (B, W, K), true on recorded actions; false wherever `frame_mask` is


@dataclass(frozen=True, slots=True, eq=False)
class WindowBatch(WindowCut):
    """B windows of W frames with K labels a frame.

    Attributes:
        image_static: uint8 (B, W, 200, 200, 3).
        image_gripper: uint8 (B, W, 84, 84, 3).
        robot_state: float32 (B, W, 15) robot_obs.
    """

    image_static: npt.NDArray[np.uint8]
    image_gripper: npt.NDArray[np.uint8]
    robot_state: npt.NDArray[np.float32]


def label_chunks(
    actions: npt.NDArray[np.float32], steps: Int64Array, chunk_size: int
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """Return K actions from each of `steps` (W,) on, float32 (W, K, 7), and which were recorded, bool (W, K)."""
    wanted = steps[:, None] + np.arange(chunk_size)
    recorded: BoolArray = wanted < len(actions)
    labels = actions[np.minimum(wanted, len(actions) - 1)]
    labels[..., :POSE_SIZE][~recorded] = 0.0
    return labels, recorded


class WindowIndex:
    """The windows of `window` frames, `frame_stride` control steps apart, over all or the `chosen` segments of a dataset."""

    def __init__(
        self,
        segments: Sequence[Segment],
        chosen: Iterable[int] | None = None,
        *,
        window: int,
        frame_stride: int = 1,
        chunk_size: int = 1,
    ) -> None:
        numbers = {"window": window, "frame_stride": frame_stride, "chunk_size": chunk_size}
        check_least(1, numbers, "Give a positive whole number.")
        self.segments = tuple(segments)
        self.window = window
        self.frame_stride = frame_stride
        self.chunk_size = chunk_size
        used = range(len(self.segments)) if chosen is None else chosen
        self.windows = tuple(Window(index, offset) for index in used for offset in range(self.segments[index].num_frames))

    def __len__(self) -> int:
        return len(self.windows)

    def steps(self, window: Window) -> tuple[Int64Array, BoolArray]:
        """Return the steps within the segment, int64 (W,), and which of them are real, bool (W,)."""
        wanted = window.offset + self.frame_stride * np.arange(self.window)
        real: BoolArray = wanted < self.segments[window.segment].num_frames
        return np.where(real, wanted, wanted[real][-1]), real

    def cut(self, cache: FrameCache, chosen: Iterable[int]) -> WindowCut:
        """Return places and labels of the windows with these numbers."""
        windows = [self.windows[number] for number in chosen]
        steps = np.empty((len(windows), self.window), dtype=np.int64)
        frame_mask = np.empty(steps.shape, dtype=np.bool_)
        actions = np.empty((*steps.shape, self.chunk_size, ACTION_SIZE), dtype=np.float32)
        action_mask = np.empty(actions.shape[:-1], dtype=np.bool_)
        for position, window in enumerate(windows):
            segment = self.segments[window.segment]
            first = cache.row(segment.start)
            steps[position], frame_mask[position] = self.steps(window)
            actions[position], recorded = label_chunks(
                cache.rel_actions[first : first + segment.num_frames], steps[position], self.chunk_size
            )
            action_mask[position] = recorded & frame_mask[position][:, None]
        segments = np.array([window.segment for window in windows], dtype=np.int64)
        return WindowCut(steps, segments, actions, frame_mask, action_mask)

    def load(self, cache: FrameCache, chosen: Iterable[int]) -> WindowBatch:
        """Copy the windows with these numbers out of the cache."""
        cut = self.cut(cache, chosen)
        firsts = np.array([cache.row(self.segments[segment].start) for segment in cut.segments], dtype=np.int64)
        rows = firsts[:, None] + cut.steps
        seen = np.asarray(cache.rgb_static[rows]), np.asarray(cache.rgb_gripper[rows]), cache.robot_obs[rows]
        return WindowBatch(cut.steps, cut.segments, cut.actions, cut.frame_mask, cut.action_mask, *seen)


@dataclass(frozen=True, slots=True)
class SamplerState:
    """Where a sampler stands; all that a resumed run needs."""

    epoch: int = 0
    position: int = 0


class WindowSampler:
    """Samples every window once per epoch in an order that depends on (seed, epoch) alone.

    A batch that reaches the end of an epoch goes on with the next one, so every batch is full and no window is lost.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int, state: SamplerState | None = None) -> None:
        if num_windows < 1 or batch_size < 1:
            got = f"{num_windows} and {batch_size}"
            remedy = "Collect more demonstrations or raise --batch-size."
            raise ConfigError("windows and batch size", got=got, expected="at least 1 of each", remedy=remedy)
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.seed = seed
        self.state = state or SamplerState()
        self._order = self._permutation(self.state.epoch)

    def _permutation(self, epoch: int) -> Int64Array:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)

    def next_batch(self) -> list[int]:
        """Return the next `batch_size` window numbers and move on."""
        epoch, position = self.state.epoch, self.state.position
        batch: list[int] = []
        while len(batch) < self.batch_size:
            taken = self._order[position : position + self.batch_size - len(batch)]
            batch += [int(number) for number in taken]
            position += len(taken)
            if position == self.num_windows:
                epoch, position = epoch + 1, 0
                self._order = self._permutation(epoch)
        self.state = SamplerState(epoch, position)
        return batch


def split_segments(dataset: CalvinDataset, fraction: float, seed: int, *, share: float = 1.0) -> tuple[list[int], list[int]]:
    """Split segment indices into (training, held out), `fraction` of them held out, sampled by `seed`.

    Training keeps `share` of the others, and is never empty. Segments of the original CALVIN may share frames, so there a
    held-out loss is not fully independent. Raises ConfigError where a part is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError("share of the data", got=share, expected="0 < share <= 1", remedy="Try 0.1.")
    if not 0.0 <= fraction < 1.0:
        raise ConfigError("validation fraction", got=fraction, expected="0 <= fraction < 1", remedy="Try 0.1.")
    total = len(dataset.segments)
    held_out = 0 if fraction == 0.0 else min(max(round(fraction * total), 1), total - 1)
    order = np.random.default_rng(seed).permutation(total)
    last = held_out + max(round(share * (total - held_out)), 1)
    return sorted(int(index) for index in order[held_out:last]), sorted(int(index) for index in order[:held_out])
