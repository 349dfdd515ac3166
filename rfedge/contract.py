"""The split, stated once: names, shapes, dtypes and axes of the backbone and head graphs, and of the actions.

    image_static, image_gripper, text_embedding, text_mask ──► backbone ──► feature
    features, h, c ──► head ──► pose, gripper, h_out, c_out

Some members of the family have more or fewer: `robot_state` with proprioception; `media_history`, `media_mask` and the
output `media` where the text reads older frames; no `h` and `c` where the head is no LSTM.

A backbone in two graphs is cut where the frames are latents; together they are the backbone, to the last name:

    image_static, image_gripper ──► vision ──► media
    media, text_embedding, text_mask (robot_state, media_history, media_mask) ──► decoder ──► feature

The exporter writes these specs into the manifest, the runtimes check arrays against them, tests derive inputs from
them. Nothing else repeats a tensor's name or shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from rfedge.arrays import Array
from rfedge.config import LSTMHeadConfig, PolicyConfig
from rfedge.errors import ContractError
from rfedge.messages import (
    GRIPPER_IMAGE_SHAPE,
    POSE_SIZE,
    POSITION_SCALE_M,
    ROTATION_SCALE_RAD,
    STATE_SIZE,
    STATIC_IMAGE_SHAPE,
)

__all__ = [
    "MEDIA",
    "ActionSemantics",
    "BackboneStage",
    "GraphContract",
    "GraphName",
    "PolicyContract",
    "TensorSpec",
    "policy_contract",
]

BackboneStage = Literal["vision", "decoder"]
GraphName = Literal["backbone", "vision", "decoder", "head"]
# The latents of one frame, both cameras: what the vision stage hands to the decoder.
MEDIA: Final = "media"


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Spec):
    """One graph input or output; an axis of size -1 is dynamic, and at most `longest` where that is given."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    longest: int | None = None

    def check(self, array: Array) -> None:
        """Raise ContractError unless `array` has this dtype and shape and, when it is float, only finite values."""
        fits = len(array.shape) == len(self.shape) and all(
            want == have or (want == -1 and 0 < have <= (self.longest or have))
            for want, have in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise ContractError(
                f"tensor {self.name!r}",
                got=f"shape {array.shape}",
                expected=f"shape {self.shape} ({', '.join(self.axes)})",
                remedy="Give it the shape named in the bundle's manifest.",
            )
        if array.dtype != np.dtype(self.dtype):
            expected, remedy = f"dtype {self.dtype}", "Cast it before the call."
            raise ContractError(f"tensor {self.name!r}", got=f"dtype {array.dtype}", expected=expected, remedy=remedy)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            remedy = "Drop this step's input."
            raise ContractError(f"tensor {self.name!r}", got="NaN or Inf", expected="finite values", remedy=remedy)

    def sample(self, rng: np.random.Generator, *, dynamic_size: int | None = None) -> Array:
        """Sample an array that satisfies `check`: bytes 0 to 255, standard normal floats, all-true masks.

        A dynamic axis gets `dynamic_size`, else its longest size, else 1.
        """
        shape = tuple((dynamic_size or self.longest or 1) if size == -1 else size for size in self.shape)
        kind = np.dtype(self.dtype).kind
        if kind == "u":
            return rng.integers(0, 256, size=shape, dtype=np.dtype(self.dtype))
        if kind == "b":
            return np.ones(shape, dtype=np.bool_)
        return rng.standard_normal(shape).astype(self.dtype)


class GraphContract(_Spec):
    """Inputs and outputs of one graph, in call order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def sample_inputs(self, rng: np.random.Generator, *, dynamic_size: int | None = None) -> dict[str, Array]:
        """Sample one array per input; every test builds its inputs here."""
        return {spec.name: spec.sample(rng, dynamic_size=dynamic_size) for spec in self.inputs}


class ActionSemantics(_Spec):
    """Meaning of the seven numbers of an action (CALVIN relative actions)."""

    order: tuple[str, ...] = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    frame: str = "world"
    position_scale_m: float = POSITION_SCALE_M
    rotation_scale_rad: float = ROTATION_SCALE_RAD
    rotation: str = "steps of fixed-axis xyz Euler angles"
    gripper: str = "-1 close, 1 open"


class PolicyContract(_Spec):
    """Both graphs and the action; `backbone` output `feature` feeds `head` input `features`.

    `backbone` is what a caller gives and gets; `backbone_stages` are the graphs that make it up, empty where it is one.
    """

    backbone: GraphContract
    head: GraphContract
    action: ActionSemantics = ActionSemantics()
    backbone_stages: dict[BackboneStage, GraphContract] = {}

    @property
    def graphs(self) -> dict[GraphName, GraphContract]:
        """Every graph there is a file of, in call order."""
        backbone: Iterable[tuple[GraphName, GraphContract]] = self.backbone_stages.items() or [("backbone", self.backbone)]
        return {**dict(backbone), "head": self.head}


_float = partial(TensorSpec, dtype="float32")


def policy_contract(config: PolicyConfig, *, two_stages: bool = False) -> PolicyContract:
    """Derive the contract of a policy from its configuration; batch is always 1."""
    return PolicyContract(
        backbone=_backbone_contract(config),
        head=_head_contract(config),
        backbone_stages=_stage_contracts(config) if two_stages else {},
    )


def _backbone_contract(config: PolicyConfig) -> GraphContract:
    text, past = config.decoder.text_length, config.media_frames - 1
    image_axes = ("batch", "row", "column", "rgb")
    media = _media(config)
    inputs = [
        TensorSpec(name="image_static", dtype="uint8", shape=(1, *STATIC_IMAGE_SHAPE), axes=image_axes),
        TensorSpec(name="image_gripper", dtype="uint8", shape=(1, *GRIPPER_IMAGE_SHAPE), axes=image_axes),
        _float(name="text_embedding", shape=(1, -1, config.decoder.width), axes=("batch", "token", "width"), longest=text),
        TensorSpec(name="text_mask", dtype="bool", shape=(1, -1), axes=("batch", "token"), longest=text),
    ]
    outputs = [_float(name="feature", shape=(1, config.feature_size), axes=("batch", "width"))]
    if config.proprioception:
        inputs.append(_float(name="robot_state", shape=(1, STATE_SIZE), axes=("batch", "state")))
    if past:
        inputs += [
            _float(name="media_history", shape=(1, past, *media.shape[1:]), axes=("batch", "frame", *media.axes[1:])),
            TensorSpec(name="media_mask", dtype="bool", shape=(1, past), axes=("batch", "frame")),
        ]
        outputs.append(media)
    return GraphContract(inputs=tuple(inputs), outputs=tuple(outputs))


def _media(config: PolicyConfig) -> TensorSpec:
    shape = (1, config.latents_per_frame, config.vision.width)
    return _float(name=MEDIA, shape=shape, axes=("batch", "latent", "vision_width"))


def _stage_contracts(config: PolicyConfig) -> dict[BackboneStage, GraphContract]:
    """Whatever the backbone reads besides the cameras is the decoder's."""
    backbone, media = _backbone_contract(config), _media(config)
    images = tuple(spec for spec in backbone.inputs if spec.name.startswith("image_"))
    others = tuple(spec for spec in backbone.inputs if spec not in images)
    return {
        "vision": GraphContract(inputs=images, outputs=(media,)),
        "decoder": GraphContract(inputs=(media, *others), outputs=tuple(spec for spec in backbone.outputs if spec != media)),
    }


def _head_contract(config: PolicyConfig) -> GraphContract:
    chunk, is_gpt, head = config.chunk_size, config.head.kind == "gpt", config.head
    shape = (1, -1 if is_gpt else 1, config.feature_size)
    longest = config.window if is_gpt else None  # it has no position for one frame more
    inputs = [_float(name="features", shape=shape, axes=("batch", "step", "width"), longest=longest)]
    outputs = [
        _float(name="pose", shape=(config.lstm_rows, chunk, POSE_SIZE), axes=("row", "chunk", "pose")),
        _float(name="gripper", shape=(config.lstm_rows, chunk), axes=("row", "chunk")),
    ]
    if isinstance(head, LSTMHeadConfig):
        shape, axes = (head.layers, config.lstm_rows, head.hidden_size), ("layer", "row", "hidden")
        inputs += [_float(name=name, shape=shape, axes=axes) for name in ("h", "c")]
        outputs += [_float(name=name, shape=shape, axes=axes) for name in ("h_out", "c_out")]
    return GraphContract(inputs=tuple(inputs), outputs=tuple(outputs))
