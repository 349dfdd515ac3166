"""What the vision tower sees in every frame, computed once and kept on disk, for runs in which the tower is frozen.

A tower that does not learn says the same of a frame in every epoch, and it is most of a step's cost: reading its tokens
instead makes a step several times faster on a CPU. They are kept in fp16 beside the frame cache, 64 kB a frame for
playtable-small.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch

from rfedge.atomic import atomic_directory
from rfedge.data.frame_cache import FrameCache
from rfedge.errors import DatasetError, explain
from rfedge.model import RoboFlamingo

__all__ = ["TOKENS_FOLDER", "observe", "with_vision_tokens"]

# N = frames, P = patches, V = vision width

TOKENS_FOLDER: Final = ".vision-tokens"
_FILES: Final = {"rgb_static": "static.npy", "rgb_gripper": "gripper.npy"}
_RECORD: Final = "tokens.json"
_FRAMES_A_CALL: Final = 32


def observe(policy: RoboFlamingo, static: torch.Tensor, gripper: torch.Tensor) -> torch.Tensor:
    """Return the latents (N, R, V) of images, as `Backbone.observe` takes them, or of a tower's tokens (N, P, V)."""
    if static.dtype == torch.uint8:
        return policy.backbone.observe(static, gripper)
    return policy.backbone.media(torch.cat([static, gripper]).to(policy.backbone.vision.conv1.weight.dtype))


@torch.no_grad()
def with_vision_tokens(
    cache: FrameCache,
    policy: RoboFlamingo,
    folder: Path,
    device: torch.device,
    *,
    on_frame: Callable[[int, int], None] | None = None,
) -> FrameCache:
    """Return the cache with the tower's tokens, float16 (N, P, V) and read-only, in place of both cameras' images.

    They are computed where `folder` does not hold them for these frames and these weights.

    Args:
        cache: of images.
        policy: its tower must not learn as long as the result is used.
        folder: gets a folder for each tower.
        device: of the policy.
        on_frame: called as (frames done, frames in all) while they are computed.

    Raises:
        DatasetError: the folder cannot be written.
    """
    digest = hashlib.sha256(f"{policy.config.vision} {cache.content_sha256}\n".encode())
    for name, tensor in sorted(policy.backbone.vision.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    place = folder / digest.hexdigest()[:16]
    if not (place / _RECORD).is_file():
        try:
            _build(cache, policy, place, device, on_frame)
        except OSError as error:
            raise DatasetError(
                explain(
                    f"vision tokens {place}",
                    got=str(error),
                    expected="a folder that can be written and has room",
                    remedy="Free some disk space, name another folder with --cache, or leave --vision-tokens out.",
                )
            ) from None
    tokens = {key: np.load(place / file, mmap_mode="r") for key, file in _FILES.items()}
    return dataclasses.replace(cache, **tokens)


def _build(
    cache: FrameCache,
    policy: RoboFlamingo,
    place: Path,
    device: torch.device,
    on_frame: Callable[[int, int], None] | None,
) -> None:
    policy.eval()
    backbone, vision = policy.backbone, policy.config.vision
    count = len(cache.numbers)
    with atomic_directory(place, overwrite=True) as temporary:
        arrays = {
            key: np.lib.format.open_memmap(
                temporary / file, mode="w+", dtype=np.float16, shape=(count, vision.num_patches, vision.width)
            )
            for key, file in _FILES.items()
        }
        for first in range(0, count, _FRAMES_A_CALL):
            rows = slice(first, min(first + _FRAMES_A_CALL, count))
            for key, preprocess in (
                ("rgb_static", backbone.preprocess_static),
                ("rgb_gripper", backbone.preprocess_gripper),
            ):
                images = torch.from_numpy(np.array(getattr(cache, key)[rows])).to(device)
                arrays[key][rows] = backbone.vision(preprocess(images)).cpu().to(torch.float16).numpy()
            if on_frame is not None:
                on_frame(rows.stop, count)
        del arrays  # closing the maps hands their last pages to the files
        (temporary / _RECORD).write_text(json.dumps({"num_frames": count, "vision": vision.model_dump()}, indent=2) + "\n")
