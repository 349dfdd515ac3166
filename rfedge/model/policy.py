"""RoboFlamingo: backbone X_t = f(o_t, l) and head a_t = p(X_t, h_{t-1}), split where the paper puts the split."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import MPTConfig, PolicyConfig
from rfedge.errors import ConfigError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, POSE_SIZE, STATIC_IMAGE_SHAPE
from rfedge.model.decoder import FusionDecoder, hidden_latents
from rfedge.model.head import build_head
from rfedge.model.resampler import PerceiverResampler
from rfedge.model.vision import FramePreprocess, VisionTransformer

# B = windows, W = frames a window, N = frames (B * W), M = frames whose latents the text reads, R = latents of a frame,
# V = vision width, T = text tokens, D = decoder width, F = feature width, K = chunk

# Places in `robot_state` (CALVIN's robot_obs): the tcp's pose and the last gripper command.
_GRIPPER_COMMAND: Final = 14
# Parts that belong to another's group of parameters: the original trains and stores them with it.
_GROUPS: Final = {
    "resampler_gripper": "resampler",
    "frame_embedding": "resampler",
    "proprioception": "head",
    "output_projection": "decoder",
    # Parts of the training alone, `rfedge.train.pretraining.pointing` and `rfedge.train.losses`.
    "pointing": "vision",
    "task_probe": "head",
}


class Proprioception(nn.Module):
    """The arm's pose and the gripper's last command -> what is added to a feature. Source: RoboFlamingo, `use_state`."""

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.arm = nn.Linear(POSE_SIZE, feature_size)
        self.gripper = nn.Embedding(2, feature_size)
        self.out = nn.Linear(2 * feature_size, feature_size)

    def forward(self, robot_state: torch.Tensor) -> torch.Tensor:
        """Robot state, float (N, 15), see `rfedge.messages.Observation.state` -> (N, F)."""
        arm = torch.relu(self.arm(robot_state[:, :POSE_SIZE]))
        gripper = torch.relu(self.gripper((robot_state[:, _GRIPPER_COMMAND] > 0).long()))
        return self.out(torch.cat([arm, gripper], dim=-1))  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """One observed frame and the embedded instruction -> one feature; what it may know of older frames is an argument."""

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
        frames = config.media_frames
        # By age, the oldest first: how long ago a frame was is all that the text can tell from its place.
        self.frame_embedding = nn.Parameter(torch.randn(frames, 1, config.vision.width) * 0.02) if frames > 1 else None
        self.proprioception = Proprioception(config.feature_size) if config.proprioception else None
        # Whether `forward` returns `media` beside the feature; an exporter that cuts the backbone there wants it of all.
        self.returns_media = frames > 1

    def forward(
        self,
        image_static: torch.Tensor,
        image_gripper: torch.Tensor,
        text_embedding: torch.Tensor,
        text_mask: torch.Tensor,
        robot_state: torch.Tensor | None = None,
        media_history: torch.Tensor | None = None,
        media_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Run one frame.

        Args:
            image_static: uint8 (N, 200, 200, 3).
            image_gripper: uint8 (N, 84, 84, 3).
            text_embedding: float (N, T, D).
            text_mask: bool (N, T), true on real tokens.
            robot_state: float (N, 15), of a policy with proprioception alone.
            media_history: float (N, M - 1, R, V), `media` of the frames before, the newest last, and
            media_mask: bool (N, M - 1), true where there was such a frame; both with `media_frames` above 1 alone.

        Returns:
            feature (N, F); with `media_frames` above 1 also media (N, R, V), a later call's history (`returns_media`).
        """
        media = self.observe(image_static, image_gripper)
        feature = self.fuse(text_embedding, text_mask, media, robot_state, media_history, media_mask)
        return (feature, media) if self.returns_media else feature

    def observe(self, image_static: torch.Tensor, image_gripper: torch.Tensor) -> torch.Tensor:
        """Images of a frame -> latents (N, R, V); no text, no memory."""
        # Both cameras in one batch: the ViT and the resampler are shared, and half the calls use wider MatMuls.
        images = torch.cat([self.preprocess_static(image_static), self.preprocess_gripper(image_gripper)])
        seen = self.vision(images.to(self.vision.conv1.weight.dtype))
        return self.media(*seen) if self.vision.merge_tokens else self.media(seen)

    def media(self, tokens: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
        """Patch tokens (2N, P, V), all static cameras first -> latents (N, R, V) that the text reads.

        Merged tokens come with the number of patches in each, `size` (2N, P, 1).
        """
        seen = [tokens] if size is None else [tokens, size]
        if self.fusion == "pre":
            return self.resampler(*(torch.cat(part.chunk(2), dim=1) for part in seen))  # type: ignore[no-any-return]
        if self.resampler_gripper is None:
            static, gripper = self.resampler(*seen).chunk(2)
        else:
            seen_static, seen_gripper = zip(*(part.chunk(2) for part in seen), strict=True)
            static, gripper = self.resampler(*seen_static), self.resampler_gripper(*seen_gripper)
        return torch.cat([static, gripper], dim=1)

    def fuse(
        self,
        text_embedding: torch.Tensor,
        text_mask: torch.Tensor,
        media_NRV: torch.Tensor,
        robot_state: torch.Tensor | None = None,
        media_history: torch.Tensor | None = None,
        media_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Let the text read the latents; arguments as of `forward`, returns feature (N, F)."""
        if self.fusion == "two_way":
            both = torch.cat(media_NRV.chunk(2, dim=1))
            feature = torch.cat(
                self.decoder(torch.cat([text_embedding] * 2), torch.cat([text_mask] * 2), both).chunk(2), dim=-1
            )
        elif self.frame_embedding is None:
            feature = self.decoder(text_embedding, text_mask, media_NRV)
        else:
            assert media_history is not None, "a policy with media_frames above 1 needs media_history"
            assert media_mask is not None, "media_history needs media_mask"
            frames = torch.cat([media_history, media_NRV[:, None]], dim=1) + self.frame_embedding
            seen = torch.cat([media_mask, torch.ones_like(media_mask[:, :1])], dim=1).repeat_interleave(
                frames.shape[2], dim=1
            )
            feature = self.decoder(text_embedding, text_mask, frames.flatten(1, 2), hidden_latents(seen))
        return feature if self.proprioception is None else feature + self.proprioception(robot_state)


def frame_history(media_BWRV: torch.Tensor, media_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give every frame of a window the latents of the frames before it: (B * W, M - 1, R, V) and its mask (B * W, M - 1).

    Before its first frame a window knows nothing, as at the start of an episode.
    """
    num_windows, num_frames = media_BWRV.shape[:2]
    place = torch.arange(num_frames)[:, None] + torch.arange(1 - media_frames, 0)
    history = media_BWRV[:, place.clamp(min=0)].flatten(0, 1)
    return history, (place >= 0).repeat(num_windows, 1).to(media_BWRV.device)


class RoboFlamingo(nn.Module):
    """The whole policy; only training and export hold it in one piece."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.decoder.vocab_size, config.decoder.width)
        nn.init.normal_(self.embedding.weight, std=0.3)  # below what the cameras add, above what they could drown
        self.backbone = Backbone(config)
        self.head = build_head(config.head, config.feature_size, config.chunk_size, config.window)
        own = not isinstance(config.decoder, MPTConfig) and config.decoder.output_projection
        self.output_projection = nn.Linear(config.decoder.width, config.decoder.vocab_size, bias=False) if own else None

    def compute_in(self, dtype: torch.dtype) -> RoboFlamingo:
        """Convert all but the camera resize, whose bytes need float32, and return the policy itself."""
        for name, module in self.named_modules():
            if name.startswith("backbone.preprocess"):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(module, key, buffer.to(dtype))
        return self

    def embed_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (B, T) -> float (B, T, D)."""
        return self.embedding(token_ids)  # type: ignore[no-any-return]

    def logits(self, hidden_NTD: torch.Tensor) -> torch.Tensor:
        """Output of the final norm (N, T, D) -> scores of the next token (N, T, vocabulary).

        Raises ConfigError if the policy was imported without its language model's output projection.
        """
        if isinstance(self.config.decoder, MPTConfig):
            return F.linear(hidden_NTD, self.embedding.weight)
        if self.output_projection is None:
            expected = f"the output projection of {self.config.decoder.kind}"
            remedy = "Import the original weights again with --keep-output-projection."
            raise ConfigError("decoder.output_projection", got="a policy without it", expected=expected, remedy=remedy)
        return self.output_projection(hidden_NTD)  # type: ignore[no-any-return]

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every parameter under the part of the paper it belongs to; the groups are disjoint and complete."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {
            group: [] for group in ("vision", "resampler", "cross_attention", "decoder", "embedding", "head")
        }
        for name, parameter in self.named_parameters():
            parts = name.split(".")
            part = parts[1] if parts[0] == "backbone" else parts[0]
            groups["cross_attention" if "cross_attention" in parts else _GROUPS.get(part, part)].append((name, parameter))
        return groups


def build_policy(config: PolicyConfig, seed: int) -> RoboFlamingo:
    """Build a policy with random weights sampled from `seed`; the caller's random state is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RoboFlamingo(config)
