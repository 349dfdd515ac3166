"""What the shapes in the original files say about the model, and whether the files belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from rfedge.config import LSTMHeadConfig, ResamplerConfig, VisionConfig, preset, preset_names
from rfedge.errors import ArtifactError
from rfedge.messages import POSE_SIZE
from rfedge.model.original.names import split_third
from rfedge.model.original.plan import PlannedFile, names_of

Shapes = Mapping[str, tuple[int, ...]]

# No tensor tells into how many heads a MatMul is split; all released models have heads of this size.
HEAD_SIZE: Final = 64
_BLOCK = re.compile(r"backbone\.decoder\.layers\.(\d+)\.(cross_attention|block)\.(.+)")


class CrossAttention(NamedTuple):
    """The gated cross-attention of one file: width of the language model, and before every how many blocks."""

    width: int
    every: int
    heads: int
    mlp_ratio: int


class HeadSizes(NamedTuple):
    """The policy head of one file."""

    head: LSTMHeadConfig
    feature_size: int
    chunk_size: int


def shapes_of(planned: PlannedFile, kind: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file under our names; q, k and v that are apart count as one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, named in names_of(planned, kind).items():
        if named:
            name, third = split_third(named)
            shape = planned.file.shapes[key]
            shapes.setdefault(name, (3 * shape[0], *shape[1:]) if third else shape)
    return shapes


def vision_of(shapes: Shapes, heads: int | None, *, file: str) -> VisionConfig | None:
    """Return the vision transformer, or None where the file holds none.

    Args:
        heads: of the attention; heads of 64 without.

    Raises:
        ArtifactError: it is not one that the policy can hold.
    """
    part = _under(shapes, "backbone.vision.")
    if "conv1.weight" not in part or "positional_embedding" not in part:
        return None
    width, _, patch_size = part["conv1.weight"][:3]
    patches = part["positional_embedding"][-2] - 1
    side = round(patches**0.5)
    blocks = _indices(part, r"blocks\.(\d+)\.")
    if side * side != patches or not blocks:
        raise _unfit(file, f"{patches} patches, {len(blocks)} blocks", "a vision transformer over square images")
    ratio = part.get("blocks.0.mlp_up.weight", (4 * width,))[0] // width
    heads = heads or max(1, width // HEAD_SIZE)
    if width % heads:
        raise _unfit(file, f"width {width} in {heads} heads", "a number of --vision-heads that divides the width")
    return VisionConfig(
        image_size=side * patch_size, patch_size=patch_size, width=width, layers=len(blocks), heads=heads, mlp_ratio=ratio
    )


def resampler_of(shapes: Shapes) -> ResamplerConfig | None:
    """Return the resampler, or None where the file holds none."""
    part = _under(shapes, "backbone.resampler.")
    layers = _indices(part, r"layers\.(\d+)\.")
    if "latents" not in part or not layers or "layers.0.attention.to_q.weight" not in part:
        return None
    latents, width = part["latents"]
    return ResamplerConfig(
        layers=len(layers),
        latents=latents,
        heads=part["layers.0.attention.to_q.weight"][0] // HEAD_SIZE,
        mlp_ratio=part.get("layers.0.feed_forward.up.weight", (4 * width,))[0] // width,
        per_camera=any(name.startswith("backbone.resampler_gripper.") for name in shapes),
    )


def cross_attention_of(shapes: Shapes, num_blocks: int, *, file: str) -> CrossAttention | None:
    """Return the gated cross-attention, or None where the file holds none.

    Raises:
        ArtifactError: it does not stand before every n-th of `num_blocks` blocks.
    """
    found = {int(match[1]) for name in shapes if (match := _BLOCK.fullmatch(name)) and match[2] == "cross_attention"}
    if not found:
        return None
    first = min(found)
    prefix = f"backbone.decoder.layers.{first}.cross_attention."
    to_q, up = shapes.get(f"{prefix}attention.to_q.weight"), shapes.get(f"{prefix}feed_forward.up.weight")
    if to_q is None or up is None:
        raise _unfit(file, f"an incomplete cross-attention before block {first}", "to_q and the feed-forward")
    every = first + 1
    expected = set(range(first, num_blocks, every))
    if found != expected:
        raise _unfit(
            file,
            f"cross-attention before {_ranges(found)} of width {to_q[1]}{_released_like(to_q[1], every)}",
            f"before {_ranges(expected)}, every {_ordinal(every)} of {num_blocks} blocks",
        )
    return CrossAttention(to_q[1], every, to_q[0] // HEAD_SIZE, up[0] // up[1])


def head_of(shapes: Shapes, *, file: str) -> HeadSizes | None:
    """Return the LSTM head, or None where the file holds none.

    Raises:
        ArtifactError: its two MLPs do not fit each other.
    """
    part = _under(shapes, "head.")
    layers = _indices(part, r"rnn\.weight_ih_l(\d+)")
    if not layers or "rnn.weight_hh_l0" not in part:
        return None
    pose = [part[name][0] for name in _ordered(part, r"pose\.(\d+)\.weight")]
    gripper = [part[name][0] for name in _ordered(part, r"gripper\.(\d+)\.weight")]
    if not pose or not gripper or pose[:-1] != gripper[:-1] or pose[-1] != POSE_SIZE * gripper[-1]:
        raise _unfit(
            file, f"outputs {pose} and {gripper}", f"two MLPs of the same sizes, with {POSE_SIZE} and 1 output a step"
        )
    head = LSTMHeadConfig(hidden_size=part["rnn.weight_hh_l0"][1], layers=len(layers), mlp_sizes=tuple(pose[:-1]))
    return HeadSizes(head, part["rnn.weight_ih_l0"][1], gripper[-1])


def describe_family(width: int, every: int) -> str:
    """Say a language model's width and its cross-attention, with the released models that have both."""
    return f"width {width}, cross-attention every {_ordinal(every)} block{_released_like(width, every)}"


def _released_like(width: int, every: int) -> str:
    names = [
        name
        for name in preset_names()
        if preset(name).decoder.width == width and preset(name).decoder.cross_attention_every == every
    ]
    return f" (as {' or '.join(names)})" if names else ""


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _indices(names: Mapping[str, Any], pattern: str) -> set[int]:
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _ordered(names: Mapping[str, Any], pattern: str) -> list[str]:
    found = {int(match[1]): name for name in names if (match := re.fullmatch(pattern, name))}
    return [found[index] for index in sorted(found)]


def _ranges(numbers: Sequence[int] | set[int]) -> str:
    listed = sorted(numbers)
    return f"blocks {', '.join(map(str, listed[:3]))}{', ..., ' + str(listed[-1]) if len(listed) > 3 else ''}"


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _unfit(file: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(f"weights {file}", got=got, expected=expected, remedy="The file is of another model.")
