"""Backbone features of all training frames, computed once, for the steps in which only the head learns.

A frame's feature does not depend on the window it is seen in (where the text also reads older frames, all that the
segment has are given, as on a robot). While the backbone stands
still, 2,500 frames cost it one minute on two cores, and a step of the head over 32 windows a few hundredths of a second
instead of seven.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import WindowIndex
from rfedge.model import RoboFlamingo
from rfedge.train.batches import InstructionTable

__all__ = ["FeatureBatch", "FeatureTable"]

# F = frames of all segments in use, B = windows, W = frames a window, D = feature width, K = chunk

_FRAMES_A_CALL = 32


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """Windows of features: (B, W, D), and their labels as in `TensorBatch`."""

    features: torch.Tensor
    actions: torch.Tensor
    frame_mask: torch.Tensor
    action_mask: torch.Tensor

    @property
    def num_frames(self) -> int:
        return int(self.frame_mask.sum())


class FeatureTable:
    """One feature for every frame of every segment in use, in the order of `index.windows`.

    Every frame starts a window, so the number of a window is also the row of its first frame.
    """

    def __init__(self, index: WindowIndex, cache: FrameCache, features: torch.Tensor) -> None:
        self.index = index
        self.cache = cache
        self.features = features  # (F, D)

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
        on_frame: Callable[[int, int], None] | None = None,
    ) -> FeatureTable:
        """Run the backbone, in evaluation mode and without augmentation, over every frame of the index."""
        policy.eval()
        ages = index.frame_stride * torch.arange(policy.config.media_frames - 1, 0, -1)
        older: torch.Tensor | None = None  # latents of the frames before these, as many as the text may read
        rows = []
        for first in range(0, len(index), _FRAMES_A_CALL):
            windows = index.windows[first : first + _FRAMES_A_CALL]
            places = [cache.row(index.segments[window.segment].start) + window.offset for window in windows]
            segments = torch.tensor([window.segment for window in windows])
            mask = table.text_mask[segments]
            num_tokens = int(mask.sum(dim=1).max())
            media = policy.backbone.observe(
                torch.from_numpy(cache.rgb_static[places]).to(device), torch.from_numpy(cache.rgb_gripper[places]).to(device)
            )
            history = seen = None
            if len(ages):
                known = media if older is None else torch.cat([older, media])
                row = len(known) - len(media) + torch.arange(len(media))[:, None] - ages
                history = known[row.clamp(min=0).to(device)]
                seen = (torch.tensor([window.offset for window in windows])[:, None] >= ages).to(device)
                older = known[-int(ages[0]) :]
            features = policy.backbone.fuse(
                policy.embed_text(table.token_ids[segments, :num_tokens].to(device)),
                mask[:, :num_tokens].to(device),
                media,
                torch.from_numpy(cache.robot_obs[places]).to(device),
                history,
                seen,
            )
            rows.append(features)
            if on_frame is not None:
                on_frame(min(first + _FRAMES_A_CALL, len(index)), len(index))
        return cls(index, cache, torch.cat(rows))

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
