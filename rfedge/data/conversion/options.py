"""How a source's fields and conventions map to CALVIN's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

from rfedge.errors import ConfigError, one_of
from rfedge.io.disk import read_file
from rfedge.records.plan import Option
from rfedge.robot.camera import DEFAULT_RESIZE, RESIZES

IMAGE_FIELDS: Final = ("static", "gripper")
ROTATION_FIELDS: Final = ("tcp_euler", "tcp_quat", "tcp_quat_wxyz", "tcp_axis_angle")
VALUE_FIELDS: Final = ("state", "tcp_pos", *ROTATION_FIELDS, "gripper_width", "joints", "actions", "scene_obs")
FIELDS: Final = (*IMAGE_FIELDS, *VALUE_FIELDS, "instruction")

ACTION_KINDS: Final = ("relative", "absolute", "next-state")
FLIPS: Final = ("none", "vertical", "both")
CAN_BE_MISSING: Final = ("gripper", "joints")
ROTATIONS: Final = ("euler", "axis-angle")
# Disagreements of actions and measured state that can be overruled.
CAN_DISAGREE: Final = ("motion", "gripper")
# name -> (value of a closed gripper, value of an open one)
GRIPPER_CONVENTIONS: Final[Mapping[str, tuple[float, float]]] = {
    "close-1-open1": (-1.0, 1.0),
    "open-1-close1": (1.0, -1.0),
    "close0-open1": (0.0, 1.0),
    "open0-close1": (1.0, 0.0),
}

_FIELD: Final = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<start>\d+)(:(?P<stop>\d+))?\])?")


@dataclass(frozen=True, slots=True)
class FieldSource:
    """Where a field comes from: the elements `start` to `stop` (exclusive) of the source's array `key`, or all of them."""

    key: str
    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        return self.key if self.start is None else f"{self.key}[{self.start}:{self.stop}]"


def _parse_offset(text: str) -> tuple[float, float, float]:
    try:
        x_m, y_m, z_m = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            "--tcp-offset-m", got=repr(text), expected="three numbers X,Y,Z", remedy="Write, say, 0.2,0,-0.5."
        ) from None
    return x_m, y_m, z_m


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """Everything a user can decide; None leaves it to what is known of the source's layout."""

    fields: Mapping[str, FieldSource] = field(default_factory=dict)  # see `parse_fields`
    # the gripper is always the last number
    actions: Annotated[
        str,
        Option("relative, absolute, or next-state (the pose of the next frame).", panel="Conventions", choices=ACTION_KINDS),
    ] = "relative"
    position_scale_m: Annotated[float | None, Option("Metres per unit of relative actions.")] = None
    rotation_scale_rad: Annotated[float | None, Option("Radians per unit of relative actions.")] = None
    # fixed-axis xyz angles (or steps of them), or rotation vectors in the world frame, as robosuite's controllers take them
    rotation: Annotated[
        str | None,
        Option("Of the source's actions: euler or axis-angle; default from the layout, else euler.", choices=ROTATIONS),
    ] = None
    gripper: Annotated[
        str | None,
        Option(
            "close-1-open1, open-1-close1, close0-open1 or open0-close1.",
            flag="--gripper-convention",
            choices=tuple(GRIPPER_CONVENTIONS),
        ),
    ] = None
    source_fps: Annotated[float | None, Option("Frequency of the source, where it does not say.")] = None
    # None accepts only 30 Hz, which is CALVIN's
    fps: Annotated[float | None, Option("Frequency to write: the source's keeps the frames, another one resamples.")] = None
    # the policy's robot must show its pictures alike
    resize: Annotated[
        str, Option("How images reach the policy's square: crop the middle, stretch, or pad with black.", choices=RESIZES)
    ] = DEFAULT_RESIZE
    # "vertical" for images stored upside down, "both" for images turned by 180 degrees
    flip: Annotated[str | None, Option("none, vertical or both; default from the layout.", choices=FLIPS)] = None
    tcp_offset_m: Annotated[
        tuple[float, float, float],
        Option("X,Y,Z added to tcp positions, to reach CALVIN's frame.", parse=_parse_offset, text="0,0,0"),
    ] = (0.0, 0.0, 0.0)
    instruction: Annotated[str | None, Option("For all episodes, instead of the source's own.", panel="Content")] = None
    # "joints" writes zeros, as a robot without them reports
    allow_missing: Annotated[
        tuple[str, ...], Option("gripper (black images) or joints (zeros).", choices=CAN_BE_MISSING)
    ] = ()
    allow_mismatch: Annotated[
        tuple[str, ...],
        Option("motion or gripper: convert although actions and measured state disagree about it.", choices=CAN_DISAGREE),
    ] = ()
    split: Annotated[str, Option("training or validation.", choices=("training", "validation"))] = "training"
    # sentence -> task, for instructions whose task is known; matched without regard to case and full stops
    tasks: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError when a name is unknown or a number is not positive."""
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            for option in getattr(annotation, "__metadata__", ()):
                value, flag = getattr(self, name), option.flag or f"--{name.replace('_', '-')}"
                if option.choices and value is not None:
                    for one in (value,) if isinstance(value, str) else value:
                        one_of(option.choices, one, flag, remedy="Choose one of them.")
                if isinstance(value, (int, float)) and not 0.0 < value < float("inf"):
                    raise ConfigError(flag, got=value, expected="a positive number", remedy="Correct it.")
        for name in self.fields:
            one_of(FIELDS, name, "--map", remedy="Choose one of them.")


def parse_fields(texts: Iterable[str]) -> dict[str, FieldSource]:
    """Read mappings such as `static=obs/agentview_rgb` or `tcp_pos=observation.state[0:3]`; raises ConfigError."""
    fields = {}
    for text in texts:
        name, equals, source = text.partition("=")
        match = _FIELD.fullmatch(source.strip())
        if not equals or match is None:
            raise ConfigError(
                "--map", got=repr(text), expected="FIELD=KEY or FIELD=KEY[START:STOP]", remedy="Write, say, static=KEY."
            )
        field_name = one_of(FIELDS, name.strip(), "--map", remedy="Choose one of these fields.")
        start = None if match["start"] is None else int(match["start"])
        stop = None if start is None else int(match["stop"] or start + 1)
        fields[field_name] = FieldSource(match["key"].strip(), start, stop)
    return fields


def read_field_file(path: Path) -> dict[str, FieldSource]:
    """Read a YAML or JSON file of one mapping FIELD: KEY; raises ConfigError, and ModuleNotFoundError without PyYAML."""
    try:
        text = read_file(path).decode("utf-8")
        content = json.loads(text) if path.suffix == ".json" else _load_yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"file {path}", got=reason, expected="a YAML or JSON mapping", remedy="Correct it.") from None
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(
            f"file {path}", got="something else", expected="one mapping FIELD: KEY", remedy="Write, say, static: KEY."
        )
    return parse_fields(f"{name}={source}" for name, source in content.items())


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None
