"""The plainest way to run a policy over windows of frames: what the training's own way is compared with."""

import torch

from rfedge.model import RoboFlamingo, frame_history


def forward_window(
    policy: RoboFlamingo,
    image_static: torch.Tensor,
    image_gripper: torch.Tensor,
    token_ids: torch.Tensor,
    text_mask: torch.Tensor,
    robot_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run B windows of W frames, the head remembering nothing before the first.

    Args:
        image_static: uint8 (B, W, 200, 200, 3).
        image_gripper: uint8 (B, W, 84, 84, 3).
        token_ids: int64 (B, T), one instruction a window.
        text_mask: bool (B, T), true on real tokens.
        robot_state: float (B, W, 15), of a policy with proprioception alone.

    Returns:
        pose (B, W, K, 6) in [-1, 1] and gripper logit (B, W, K).
    """
    num_windows, num_frames = image_static.shape[:2]
    longest = int(text_mask.sum(dim=1).max())  # padding never reaches the feature, so it need not be computed
    token_ids, text_mask = token_ids[:, :longest], text_mask[:, :longest]
    media = policy.backbone.observe(image_static.flatten(0, 1), image_gripper.flatten(0, 1))
    history = mask = None
    if policy.config.media_frames > 1:
        history, mask = frame_history(media.unflatten(0, (num_windows, num_frames)), policy.config.media_frames)
    features = policy.backbone.fuse(
        policy.embed_text(token_ids).repeat_interleave(num_frames, dim=0),
        text_mask.repeat_interleave(num_frames, dim=0),
        media,
        None if robot_state is None else robot_state.flatten(0, 1),
        history,
        mask,
    )
    return policy.head.unroll(features.unflatten(0, (num_windows, num_frames)))
