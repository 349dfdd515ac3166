"""Labels of the pictures of a demonstration: captions and questions whose answers nobody wrote.

A report says where each thing is; a request is the demonstration's instruction, and its answer where the hand goes next: the
tool's place when the gripper's label changes next, or at the segment's end. So these must be demonstrations that reached
their goal. Numbers are counts of 5 mm from a corner of the workspace, one token each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.data.calvin import CalvinDataset
from rfedge.data.frame_cache import FrameCache
from rfedge.data.frames import Float64Array
from rfedge.data.scene.scenes import BLOCK_ORDER, FURNITURE, furniture_m, project_gripper, project_static
from rfedge.data.windows import WindowIndex
from rfedge.errors import DatasetError

STEP_M: Final = 0.005
NUMBERS: Final = tuple(str(number) for number in range(200))
COLOURS: Final = ("red", "blue", "pink")
# Corner from which places are counted, and offset of a difference of places, so that neither is ever negative.
_CORNER_M: Final = np.array([-0.5, -0.45, 0.2])
_OFFSET_M: Final = 0.5
_TURN_RAD: Final = np.pi / 36.0
_DOOR_M: Final = 0.28
_DRAWER_M: Final = 0.22
_GRADES: Final = 40  # of a joint, closed to open
# A held block is this near to the tool, between fingers that are neither closed nor open.
_HELD_M: Final = 0.035
_HELD_WIDTHS_M: Final = (0.015, 0.07)
_REPORT_ITEMS: Final = 6
# Words that `ask_request` adds to an instruction.
NUM_ANSWER_WORDS: Final = 8
# Words of the questions and answers, for a tokenizer's vocabulary.
QUESTION_WORDS: Final = (
    *NUMBERS, *COLOURS, "block", "turn", "reach", "gripper", "door", "drawer", "lamp", "led", "on", "off", "holds",
    "nothing", "where", "move",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Words of a caption or question; `is_said` marks the answer, which alone is learnt."""

    words: str
    is_said: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SceneFacts:
    """Labels of each frame of a `WindowIndex`, in its order; lengths in m, angles in rad."""

    blocks_m: Float64Array  # float64 (N, 3, 3), centre by colour in the order of `COLOURS`
    turns_rad: Float64Array  # float64 (N, 3), about the vertical
    furniture_m: Float64Array  # float64 (N, 4, 3), see `rfedge.data.scene.scenes`
    joints_m: Float64Array  # float64 (N, 2), door and drawer
    lights: npt.NDArray[np.bool_]  # bool (N, 2), lamp and led
    tool_m: Float64Array  # float64 (N, 3)
    tool_euler_rad: Float64Array  # float64 (N, 3)
    width_m: Float64Array  # float64 (N,), between the fingers
    goal_m: Float64Array  # float64 (N, 3), where the tool goes next

    @classmethod
    def of(cls, dataset: CalvinDataset, cache: FrameCache, index: WindowIndex) -> SceneFacts:
        """Gather the facts of every frame of `index`; raises DatasetError where its scene, so its blocks, are unknown."""
        rows = np.array([cache.row(index.segments[at.segment].start) + at.offset for at in index.windows], dtype=np.int64)
        scene, robot = cache.scene_obs[rows].astype(np.float64), cache.robot_obs[rows].astype(np.float64)
        places, furniture = np.zeros((len(rows), len(COLOURS)), dtype=np.int64), np.zeros((len(rows), len(FURNITURE), 3))
        for name, inside in _scene_rows(dataset, cache, rows):
            places[inside] = [BLOCK_ORDER[name].index(colour) for colour in COLOURS]
            furniture[inside] = furniture_m(name, scene[inside])
        blocks = scene[:, 6:24].reshape(-1, 3, 6)[np.arange(len(rows))[:, None], places]
        return cls(
            blocks_m=blocks[..., :3],
            turns_rad=blocks[..., 5],
            furniture_m=furniture,
            joints_m=scene[:, :2],
            lights=scene[:, 4:6] > 0.5,
            tool_m=robot[:, :3],
            tool_euler_rad=robot[:, 3:6],
            width_m=robot[:, 6],
            goal_m=np.concatenate(
                [_goals(cache, index, segment) for segment in dict.fromkeys(at.segment for at in index.windows)]
            ),
        )

    def scene_labels(self, frames: Sequence[int]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return what queries point at in these n frames: blocks, in the order of `COLOURS`, then furniture; all float32.

        Returns:
            places (n, 8, 3) in m of these and the tool; turns (n, 3, 2) in rad of the blocks in the world and relative to
            the tool; (u, v) of the places in the static picture (n, 8, 2) and, without the tool, in the gripper's
            (n, 7, 2), see `rfedge.data.scene.scenes`.
        """
        tool_m, tool_rad = self.tool_m[frames], self.tool_euler_rad[frames]
        things_m = np.concatenate([self.blocks_m[frames], self.furniture_m[frames]], axis=1)
        places_m = np.concatenate([things_m, tool_m[:, None]], axis=1)
        turns_rad = np.stack([self.turns_rad[frames], self.turns_rad[frames] - tool_rad[:, 2:]], axis=-1)
        in_gripper = project_gripper(things_m, np.concatenate([tool_m, tool_rad], axis=1))
        return tuple(array.astype(np.float32) for array in (places_m, turns_rad, project_static(places_m), in_gripper))


def ask_report(facts: SceneFacts, frame: int, rng: np.random.Generator) -> tuple[TextPiece, ...]:
    """Return a caption that names some things of a frame, each with where or how it is."""
    items = _items(facts, frame)
    chosen = rng.permutation(len(items))[:_REPORT_ITEMS]
    return tuple(piece for number in chosen for piece in items[number])


def ask_request(facts: SceneFacts, frame: int, instruction: str) -> tuple[TextPiece, ...]:
    """Return an instruction as the policy reads it, then where the tool goes and how far that is from where it is."""
    return (
        TextPiece(instruction),
        TextPiece("where"),
        TextPiece(_place(facts.goal_m[frame]), is_said=True),
        TextPiece("move"),
        TextPiece(_way(facts.goal_m[frame] - facts.tool_m[frame]), is_said=True),
    )


def _items(facts: SceneFacts, frame: int) -> list[tuple[TextPiece, TextPiece]]:
    tool, width = facts.tool_m[frame], facts.width_m[frame]
    items = [("gripper", _place(tool))]
    held = "nothing"
    for colour, block, turn in zip(COLOURS, facts.blocks_m[frame], facts.turns_rad[frame], strict=True):
        items += [
            (f"{colour} block", _place(block)),
            (f"reach {colour} block", _way(block - tool)),
            # A block looks the same after half a turn.
            (f"turn {colour} block", _number(turn % np.pi / _TURN_RAD)),
        ]
        if np.linalg.norm(block - tool) < _HELD_M and _HELD_WIDTHS_M[0] < width < _HELD_WIDTHS_M[1]:
            held = colour
    door, drawer = facts.joints_m[frame]
    lamp, led = facts.lights[frame]
    items += [
        ("door", _number(_GRADES * door / _DOOR_M)),
        ("drawer", _number(_GRADES * drawer / _DRAWER_M)),
        ("lamp", "on" if lamp else "off"),
        ("led", "on" if led else "off"),
        ("holds", held),
    ]
    return [(TextPiece(name), TextPiece(answer, is_said=True)) for name, answer in items]


def _number(value: float) -> str:
    return NUMBERS[int(np.clip(value, 0, len(NUMBERS) - 1))]


def _place(point_m: Float64Array) -> str:
    return " ".join(_number(value) for value in (point_m - _CORNER_M) / STEP_M)


def _way(difference_m: Float64Array) -> str:
    return " ".join(_number(value) for value in (difference_m + _OFFSET_M) / STEP_M)


def _scene_rows(
    dataset: CalvinDataset, cache: FrameCache, rows: npt.NDArray[np.int64]
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return each scene with bool (N,), its frames: which block is which, and where furniture is, differs between scenes."""
    numbers = cache.numbers[rows]
    found = [
        (scene.scene, (numbers >= scene.first) & (numbers <= (numbers.max() if scene.last is None else scene.last)))
        for scene in dataset.scenes
    ]
    unknown = ~np.any([inside for _, inside in found], axis=0) if found else np.ones(len(rows), dtype=bool)
    if unknown.any():
        got = f"{int(unknown.sum())} frames of an unknown scene"
        expected = "scene_info.npy or a recorded configuration that names it"
        remedy = "Which block is which differs between scenes; copy that file too."
        raise DatasetError(f"dataset {dataset.folder}", got=got, expected=expected, remedy=remedy)
    return found


def _goals(cache: FrameCache, index: WindowIndex, segment: int) -> Float64Array:
    """Return float64 (T, 3) for all frames of one segment."""
    first, count = cache.row(index.segments[segment].start), index.segments[segment].num_frames
    gripper, tool_m = cache.rel_actions[first : first + count, -1], cache.robot_obs[first : first + count, :3]
    turns = np.append(np.flatnonzero(np.diff(gripper)) + 1, count - 1)
    following = np.searchsorted(turns, np.arange(count), side="right").clip(max=len(turns) - 1)
    goals: Float64Array = tool_m[turns[following]].astype(np.float64)
    return goals
