"""RoboFlamingo: backbone X_t = f(o_t, l) and head a_t = p(X_t, h_{t-1}), split where the paper puts the split."""

from __future__ import annotations

import torch
from torch import nn

from rfedge.config import PolicyConfig
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE
from rfedge.model.decoder import FusionDecoder
from rfedge.model.head import LSTMHead
from rfedge.model.resampler import PerceiverResampler
from rfedge.model.vision import FramePreprocess, VisionTransformer

__all__ = ["Backbone", "RoboFlamingo", "build_policy"]

# B = windows, W = frames a window, N = frames (B * W), T = text tokens, D = decoder width, K = chunk


class Backbone(nn.Module):
    """One observed frame and the embedded instruction -> one feature; no memory."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.preprocess_static = FramePreprocess(STATIC_IMAGE_SHAPE[0], config.vision.image_size)
        self.preprocess_gripper = FramePreprocess(GRIPPER_IMAGE_SHAPE[0], config.vision.image_size)
        self.vision = VisionTransformer(config.vision)
        self.resampler = PerceiverResampler(config.resampler, config.vision.width)
        own = config.resampler.per_camera
        self.resampler_gripper = PerceiverResampler(config.resampler, config.vision.width) if own else None
        self.fusion = config.fusion
        self.decoder = FusionDecoder(config.decoder, config.vision.width, config.pooling)

    def forward(
        self,
        image_static: torch.Tensor,
        image_gripper: torch.Tensor,
        text_embedding: torch.Tensor,
        text_mask: torch.Tensor,
    ) -> torch.Tensor:
        """uint8 (N, 200, 200, 3), uint8 (N, 84, 84, 3), float (N, T, D), bool (N, T) -> feature (N, D)."""
        # Both cameras in one batch: the ViT and the resampler are shared, and half the calls use wider products.
        images = torch.cat([self.preprocess_static(image_static), self.preprocess_gripper(image_gripper)])
        media = self.media(self.vision(images))
        return self.decoder(text_embedding, text_mask, media)  # type: ignore[no-any-return]

    def media(self, tokens_static_then_gripper: torch.Tensor) -> torch.Tensor:
        """Patch tokens (2N, P, V), all static cameras first -> latents (N, R, V) that the text reads."""
        if self.fusion == "pre":
            return self.resampler(torch.cat(tokens_static_then_gripper.chunk(2), dim=1))  # type: ignore[no-any-return]
        if self.resampler_gripper is None:
            static, gripper = self.resampler(tokens_static_then_gripper).chunk(2)
        else:
            tokens_static, tokens_gripper = tokens_static_then_gripper.chunk(2)
            static, gripper = self.resampler(tokens_static), self.resampler_gripper(tokens_gripper)
        return torch.cat([static, gripper], dim=1)


class RoboFlamingo(nn.Module):
    """The whole policy; only training and export hold it in one piece."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.decoder.vocab_size, config.decoder.width)
        nn.init.normal_(self.embedding.weight, std=0.3)  # below what the cameras add, above what they could drown
        self.backbone = Backbone(config)
        self.head = LSTMHead(config.head, config.feature_size, config.chunk_size)

    def embed_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (B, T) -> float (B, T, D)."""
        return self.embedding(token_ids)  # type: ignore[no-any-return]

    def forward_window(
        self, image_static: torch.Tensor, image_gripper: torch.Tensor, token_ids: torch.Tensor, text_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Training path over windows of frames, the LSTM from zero state.

        Args:
            image_static: uint8 (B, W, 200, 200, 3).
            image_gripper: uint8 (B, W, 84, 84, 3).
            token_ids: int64 (B, T), one instruction a window.
            text_mask: bool (B, T), true on real tokens.

        Returns:
            pose (B, W, K, 6) in [-1, 1] and gripper logit (B, W, K).
        """
        num_windows, num_frames = image_static.shape[:2]
        longest = int(text_mask.sum(dim=1).max())  # padding never reaches the feature, so it need not be computed
        token_ids, text_mask = token_ids[:, :longest], text_mask[:, :longest]
        features = self.backbone(
            image_static.flatten(0, 1),
            image_gripper.flatten(0, 1),
            self.embed_text(token_ids).repeat_interleave(num_frames, dim=0),
            text_mask.repeat_interleave(num_frames, dim=0),
        )
        return self.head.unroll(features.unflatten(0, (num_windows, num_frames)))

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every parameter under the part of the paper it belongs to; the groups are disjoint and complete."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {
            group: [] for group in ("vision", "resampler", "cross_attention", "decoder", "embedding", "head")
        }
        for name, parameter in self.named_parameters():
            parts = name.split(".")
            group = parts[1].removesuffix("_gripper") if parts[0] == "backbone" else parts[0]
            groups["cross_attention" if "cross_attention" in parts else group].append((name, parameter))
        return groups


def build_policy(config: PolicyConfig, seed: int) -> RoboFlamingo:
    """Build a policy with random weights drawn from `seed`; the caller's random state is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RoboFlamingo(config)
