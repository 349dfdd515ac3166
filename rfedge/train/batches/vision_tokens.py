"""Vision tokens of every frame, computed once and kept on disk, for runs in which the tower is frozen.

Tokens are kept in fp16, 64 kB a frame for playtable-small. Frames of other data that the same tower has seen already are
copied, so a dataset that grows costs what was added to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from rfedge.data.frame_cache import FrameCache
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import read_json
from rfedge.jobs.progress import Count
from rfedge.model import RoboFlamingo
from rfedge.train.compute_context import ComputeContext
from rfedge.train.config import MixedPrecision

# N = frames, P = patches, V = vision width

TOKENS_FOLDER: Final = ".vision-tokens"
_FILES: Final = {"rgb_static": "static.npy", "rgb_gripper": "gripper.npy"}
_RECORD: Final = "tokens.json"
_DIGESTS: Final = "digests.npy"
_FRAMES_A_CALL: Final = 32
_DIGEST_BYTES: Final = 16


def observe(policy: RoboFlamingo, static: torch.Tensor, gripper: torch.Tensor) -> torch.Tensor:
    """Return the latents (N, R, V) of images, as `Backbone.observe` takes them, or of a tower's tokens (N, P, V)."""
    if static.dtype == torch.uint8:
        return policy.backbone.observe(static, gripper)
    dtype = policy.backbone.vision.conv1.weight.dtype  # each alone: autocast to bf16 does not join fp16
    return policy.backbone.media(torch.cat([static.to(dtype), gripper.to(dtype)]))


@torch.no_grad()
def with_vision_tokens(
    cache: FrameCache,
    policy: RoboFlamingo,
    folder: Path,
    device: torch.device,
    *,
    mixed_precision: MixedPrecision = "no",
    on_frame: Count | None = None,
) -> FrameCache:
    """Return the cache with the tower's tokens, float16 (N, P, V), for images, computed where `folder` lacks them."""
    tower = _tower_digest(policy, mixed_precision)
    place = folder / hashlib.sha256(f"{tower} {cache.content_sha256}\n".encode()).hexdigest()[:16]
    if not (place / _RECORD).is_file():
        _build(cache, policy, place, tower, ComputeContext(device, mixed_precision), on_frame)
    tokens = {key: np.load(place / file, mmap_mode="r") for key, file in _FILES.items()}
    return dataclasses.replace(cache, **tokens)


def _tower_digest(policy: RoboFlamingo, mixed_precision: MixedPrecision) -> str:
    """Name a tower by all that its tokens depend on but the images."""
    digest = hashlib.sha256(f"{policy.config.vision} {mixed_precision}\n".encode())
    for name, tensor in sorted(policy.backbone.vision.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """Tokens of other data: where those of a frame are, by what the frame shows."""

    rows: dict[bytes, tuple[int, int]]
    arrays: list[dict[str, npt.NDArray[np.float16]]]

    @classmethod
    def beside(cls, place: Path, tower: str) -> _Seen:
        rows: dict[bytes, tuple[int, int]] = {}
        arrays: list[dict[str, npt.NDArray[np.float16]]] = []
        for record in sorted(place.parent.glob(f"*/{_RECORD}")):
            if read_json(record).get("tower") == tower:
                digests = np.load(record.parent / _DIGESTS)
                rows |= {bytes(digest): (len(arrays), row) for row, digest in enumerate(digests)}
                arrays.append({key: np.load(record.parent / file, mmap_mode="r") for key, file in _FILES.items()})
        return cls(rows, arrays)


def _build(
    cache: FrameCache,
    policy: RoboFlamingo,
    place: Path,
    tower: str,
    scope: ComputeContext,
    on_frame: Count | None,
) -> None:
    policy.eval()
    backbone, vision = policy.backbone, policy.config.vision
    preprocess = {"rgb_static": backbone.preprocess_static, "rgb_gripper": backbone.preprocess_gripper}
    count = len(cache.numbers)
    seen = _Seen.beside(place, tower)
    digests = np.empty((count, _DIGEST_BYTES), dtype=np.uint8)
    with atomic_directory(place, overwrite=True, shared=True) as temporary:
        arrays = {
            key: np.lib.format.open_memmap(
                temporary / file, mode="w+", dtype=np.float16, shape=(count, vision.num_patches, vision.width)
            )
            for key, file in _FILES.items()
        }
        for first in range(0, count, _FRAMES_A_CALL):
            last = min(first + _FRAMES_A_CALL, count)
            new = []
            for row in range(first, last):
                digest = _frame_digest(cache, row)
                digests[row] = np.frombuffer(digest, dtype=np.uint8)
                if (known := seen.rows.get(digest)) is None:
                    new.append(row)
                else:
                    for key, array in arrays.items():
                        array[row] = seen.arrays[known[0]][key][known[1]]
            for key, array in arrays.items() if new else ():
                images = torch.from_numpy(np.ascontiguousarray(getattr(cache, key)[new])).to(scope.device)
                tokens = scope.run(partial(torch.nn.Sequential(preprocess[key], backbone.vision), images))
                array[new] = tokens.cpu().to(torch.float16).numpy()
            if on_frame is not None:
                on_frame(last, count)
        del arrays  # closing the maps hands their last pages to the files
        np.save(temporary / _DIGESTS, digests)
        record = {"num_frames": count, "tower": tower, "vision": vision.model_dump()}
        (temporary / _RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _frame_digest(cache: FrameCache, row: int) -> bytes:
    digest = hashlib.blake2b(cache.rgb_static[row].tobytes(), digest_size=_DIGEST_BYTES)
    digest.update(cache.rgb_gripper[row].tobytes())
    return digest.digest()
