"""Backbone features of all training frames, computed once, for the steps in which only the head learns.

A frame's feature does not depend on its window: 2,500 frames cost one minute on two cores, and a step of the head over 32
windows a few hundredths of a second instead of seven.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import WindowIndex
from rfedge.jobs.progress import Count
from rfedge.model import RoboFlamingo
from rfedge.train.batches.loader import InstructionTable, LabelledWindows, SplitBatch
from rfedge.train.batches.vision_tokens import observe
from rfedge.train.compute_context import ComputeContext
from rfedge.train.distributed import Processes

# F = frames of all segments in use, B = windows, W = frames a window, D = feature width, K = chunk

_FRAMES_A_CALL = 32


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch(LabelledWindows):
    """Windows of features, (B, W, D)."""

    features: torch.Tensor


@dataclass(eq=False)
class FeatureTable:
    """One feature for every frame of every segment in use: the number of a window is also the row of its first frame."""

    index: WindowIndex
    cache: FrameCache
    features: torch.Tensor  # (F, D)

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        policy: RoboFlamingo,
        index: WindowIndex,
        cache: FrameCache,
        table: InstructionTable,
        device: torch.device,
        *,
        on_frame: Count | None = None,
        scope: ComputeContext | None = None,
        processes: Processes | None = None,
    ) -> FeatureTable:
        """Run the backbone, without augmentation, over every frame of the index; several processes share the segments."""
        policy.eval()
        scope, processes = scope or ComputeContext(device), processes or Processes()
        shares = _shares(index, processes.world_size)
        start, stop = shares[processes.rank]
        # Under FSDP2 all must run as many computations: who has less to do repeats the first, for nothing.
        num_calls = max(-(-(last - first) // _FRAMES_A_CALL) for first, last in shares)
        ages = index.frame_stride * torch.arange(policy.config.media_frames - 1, 0, -1)
        older: torch.Tensor | None = None  # latents of the frames before these, as many as the text may read
        rows = []
        for first in range(start, start + num_calls * _FRAMES_A_CALL, _FRAMES_A_CALL):
            is_mine = first < stop
            windows = index.windows[first : min(first + _FRAMES_A_CALL, stop)] if is_mine else index.windows[:1]
            places = [cache.row(index.segments[window.segment].start) + window.offset for window in windows]
            segments = torch.tensor([window.segment for window in windows])
            mask = table.text_mask[segments]
            num_tokens = int(mask.sum(dim=1).max())
            static = torch.from_numpy(cache.rgb_static[places]).to(device)
            gripper = torch.from_numpy(cache.rgb_gripper[places]).to(device)
            media = scope.run(partial(observe, policy, static, gripper))
            history = seen = None
            if len(ages):
                known = media if older is None or not is_mine else torch.cat([older, media])
                row = len(known) - len(media) + torch.arange(len(media))[:, None] - ages
                history = known[row.clamp(min=0).to(device)]
                seen = (torch.tensor([window.offset for window in windows])[:, None] >= ages).to(device)
                older = known[-int(ages[0]) :]
            token_ids, state = table.token_ids[segments, :num_tokens].to(device), torch.from_numpy(cache.robot_obs[places])
            text_mask = mask[:, :num_tokens].to(device)
            fuse = partial(_fuse, policy, token_ids, text_mask, media, state.to(device), history, seen)
            features = scope.run(fuse).float()
            if is_mine:
                rows.append(features)
                if on_frame is not None:
                    on_frame(min(first + _FRAMES_A_CALL, stop) - start, stop - start)
        if processes.world_size == 1:
            return cls(index, cache, torch.cat(rows))
        whole = features.new_zeros(len(index), features.shape[1])
        if rows:
            whole[start:stop] = torch.cat(rows)
        processes.exchange_rows(whole, shares)
        return cls(index, cache, whole)

    def batch(self, chosen: list[int]) -> FeatureBatch:
        """Return the windows with these numbers; places that only fill a window hold copies of its last frame."""
        cut = self.index.cut(self.cache, chosen)
        rows = torch.tensor(chosen)[:, None] + torch.from_numpy(cut.steps - cut.steps[:, :1])
        device = self.features.device
        return FeatureBatch(
            features=self.features[rows.to(device)],
            actions=torch.from_numpy(cut.actions).to(device),
            frame_mask=torch.from_numpy(cut.frame_mask).to(device),
            action_mask=torch.from_numpy(cut.action_mask).to(device),
        )

    def split(self, chosen: list[int], parts: list[slice]) -> SplitBatch[FeatureBatch]:
        num_actions = int(self.index.cut(self.cache, chosen).action_mask.sum())
        return SplitBatch([self.batch(chosen[part]) for part in parts], num_actions)


def _fuse(policy: RoboFlamingo, token_ids: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
    text_mask, media, *rest = others
    assert text_mask is not None
    assert media is not None
    return policy.backbone.fuse(policy.embed_text(token_ids), text_mask, media, *rest)


def _shares(index: WindowIndex, world_size: int) -> list[tuple[int, int]]:
    """Cut all windows into runs of about the same length, each of whole segments: what the text reads is of one."""
    starts = [number for number, window in enumerate(index.windows) if window.offset == 0] + [len(index)]
    bounds = [starts[bisect_left(starts, len(index) * rank // world_size)] for rank in range(world_size + 1)]
    return list(pairwise(bounds))
