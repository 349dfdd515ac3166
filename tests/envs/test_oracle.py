"""Each family of tasks, on both sides of its threshold."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from rfedge.envs import TASKS, BlockState, SceneInfo, task_solved
from rfedge.errors import ConfigError
from rfedge.robot.rotations import euler_to_quaternion
from tests.errors import raises

TABLE = ("table", "base_link")
PLANK = ("table", "plank_link")
DRAWER = ("table", "drawer_link")
FINGER = ("robot", "panda_leftfinger")
PLACES = {"block_red": (0.0, -0.1, 0.46), "block_blue": (0.2, -0.1, 0.46), "block_pink": (0.1, 0.08, 0.461)}


def block(
    name: str, *, at: tuple[float, ...] | None = None, yaw_deg: float = 0.0, touches: Any = (TABLE,), speed: float = 0.0
) -> BlockState:
    return BlockState(
        position_m=np.array(at or PLACES[name]),
        orientation_xyzw=euler_to_quaternion(np.array([0.0, 0.0, math.radians(yaw_deg)])),
        linear_velocity_m_s=np.array([speed, 0.0, 0.0]),
        angular_velocity_rad_s=np.zeros(3),
        contacts=frozenset(touches),
    )


def scene(blocks: dict[str, BlockState] | None = None, robot: Any = (), **joints: float) -> SceneInfo:
    return SceneInfo(
        doors={"base__slide": joints.get("slide", 0.0), "base__drawer": joints.get("drawer", 0.0)},
        buttons={"base__button": 0.0},
        switches={"base__switch": 0.0},
        lights={"lightbulb": bool(joints.get("lightbulb", 0)), "led": bool(joints.get("led", 0))},
        blocks={name: block(name) for name in PLACES} | (blocks or {}),
        robot_contacts=frozenset(robot),
    )


@pytest.mark.parametrize(
    ("task", "joint", "before", "within", "beyond"),
    [
        ("move_slider_left", "slide", 0.0, 0.149, 0.151),
        ("move_slider_right", "slide", 0.28, 0.131, 0.129),
        ("open_drawer", "drawer", 0.0, 0.119, 0.121),
        ("close_drawer", "drawer", 0.22, 0.101, 0.099),
    ],
)
def test_doors(task: str, joint: str, before: float, within: float, beyond: float) -> None:
    start = scene(**{joint: before})
    assert not task_solved(task, start, scene(**{joint: within}))
    assert task_solved(task, start, scene(**{joint: beyond}))


@pytest.mark.parametrize("light", ["lightbulb", "led"])
def test_lights_count_changes_only(light: str) -> None:
    off, on = scene(), scene(**{light: 1})
    assert task_solved(f"turn_on_{light}", off, on)
    assert task_solved(f"turn_off_{light}", on, off)
    assert not task_solved(f"turn_on_{light}", on, on)
    assert not task_solved(f"turn_off_{light}", off, on)


@pytest.mark.parametrize(
    ("place", "surface", "rise"), [("table", TABLE, 0.05), ("slider", PLANK, 0.03), ("drawer", DRAWER, 0.05)]
)
def test_lift(place: str, surface: tuple[str, str], rise: float) -> None:
    task = f"lift_red_block_{place}"
    start = scene({"block_red": block("block_red", at=(0, 0, 0.46), touches=[surface])})

    def end(height: float, touches: Any) -> SceneInfo:
        return scene({"block_red": block("block_red", at=(0, 0, 0.46 + height), touches=touches)})

    assert task_solved(task, start, end(rise + 0.002, [FINGER]))
    assert not task_solved(task, start, end(rise - 0.002, [FINGER]))
    assert not task_solved(task, start, end(rise + 0.002, [FINGER, PLANK]))
    assert not task_solved(task, start, end(rise + 0.002, []))
    other = {"table": PLANK, "slider": DRAWER, "drawer": TABLE}[place]
    elsewhere = scene({"block_red": block("block_red", at=(0, 0, 0.46), touches=[other])})
    assert not task_solved(task, elsewhere, end(rise + 0.002, [FINGER]))


@pytest.mark.parametrize(("side", "sign"), [("left", 1.0), ("right", -1.0)])
def test_rotate(side: str, sign: float) -> None:
    task = f"rotate_blue_block_{side}"
    start = scene({"block_blue": block("block_blue", yaw_deg=170.0)})

    def end(turn_deg: float, **changes: Any) -> SceneInfo:
        return scene({"block_blue": block("block_blue", yaw_deg=170.0 + sign * turn_deg, **changes)})

    assert task_solved(task, start, end(61))
    assert not task_solved(task, start, end(59))
    assert not task_solved(task, start, end(-61))
    assert not task_solved(task, start, end(61, touches=[FINGER])), "it must stand on something"
    assert not task_solved(task, start, end(61, at=(0.31, -0.1, 0.46))), "it must not be carried away"
    tilted = dataclasses.replace(
        end(61).blocks["block_blue"], orientation_xyzw=euler_to_quaternion(np.radians([35.0, 0.0, 170.0 + sign * 61]))
    )
    assert not task_solved(task, start, scene({"block_blue": tilted}))


@pytest.mark.parametrize(("side", "sign"), [("left", -1.0), ("right", 1.0)])
def test_push(side: str, sign: float) -> None:
    task = f"push_pink_block_{side}"
    start = scene({"block_pink": block("block_pink", at=(0.1, 0, 0.46), touches=[TABLE, FINGER])})

    def end(dx: float, touches: Any = (TABLE,)) -> SceneInfo:
        return scene({"block_pink": block("block_pink", at=(0.1 + sign * dx, 0, 0.46), touches=touches)})

    assert task_solved(task, start, end(0.101))
    assert not task_solved(task, start, end(0.099))
    assert not task_solved(task, start, end(-0.101))
    assert task_solved(task, start, end(0.101, [TABLE, PLANK])), "it may touch more than at the start"
    assert not task_solved(task, start, end(0.101, [FINGER])), "it must not be lifted"
    assert not task_solved(task, start, end(0.101, [DRAWER])), "it must stay on its surface"


@pytest.mark.parametrize(("task", "surface"), [("place_in_slider", PLANK), ("place_in_drawer", DRAWER)])
def test_place(task: str, surface: tuple[str, str]) -> None:
    red = ("block_red", "base_link")
    held = scene({"block_red": block("block_red", touches=[FINGER])}, robot=[red])
    placed = scene({"block_red": block("block_red", touches=[surface])})
    assert task_solved(task, held, placed)
    assert not task_solved(task, held, scene({"block_red": block("block_red", touches=[surface, FINGER])}, robot=[red]))
    assert not task_solved(task, held, scene({"block_red": block("block_red", touches=[TABLE])}))
    assert not task_solved(task, scene({"block_red": block("block_red", touches=[FINGER, TABLE])}, robot=[red]), placed)
    assert not task_solved(task, scene({"block_red": block("block_red", touches=[FINGER])}, robot=[red, TABLE]), placed)
    assert not task_solved(task, scene(), placed)


def test_stack_and_unstack() -> None:
    blue = ("block_blue", "base_link")
    apart = scene({"block_red": block("block_red", touches=[FINGER])})
    stacked = scene({"block_red": block("block_red", touches=[blue])})
    assert task_solved("stack_block", apart, stacked)
    assert not task_solved("stack_block", stacked, stacked)
    assert not task_solved("stack_block", apart, scene({"block_red": block("block_red", touches=[blue, FINGER])}))
    assert not task_solved("stack_block", apart, scene({"block_red": block("block_red", touches=[blue], speed=1.1)}))
    assert task_solved("unstack_block", stacked, apart)
    assert not task_solved("unstack_block", apart, stacked)
    assert not task_solved("unstack_block", scene({"block_red": block("block_red", touches=[blue, TABLE])}), apart)


def test_push_into_drawer() -> None:
    fallen = scene({"block_pink": block("block_pink", touches=[DRAWER])})
    assert task_solved("push_into_drawer", scene(), fallen)
    assert not task_solved("push_into_drawer", scene({"block_pink": block("block_pink", touches=[TABLE, FINGER])}), fallen)
    held = scene({"block_pink": block("block_pink", touches=[DRAWER, FINGER])})
    assert not task_solved("push_into_drawer", scene(), held)


def test_nothing_is_solved_when_nothing_changes() -> None:
    assert [task for task in TASKS if task_solved(task, scene(), scene())] == []
    assert {task for task in TASKS if task_solved(task, scene(), scene(drawer=0.2, led=1))} == {"open_drawer", "turn_on_led"}


def test_unknown_task() -> None:
    with raises(ConfigError, expected="...did you mean..."):
        task_solved("lift_red_block", scene(), scene())


@pytest.mark.parametrize("axis", [0, 1])
def test_rotate_tilts_less_than_30_degrees(axis: int) -> None:
    start = scene({"block_blue": block("block_blue")})

    def end(tilt_deg: float) -> SceneInfo:
        turn = np.zeros(3)
        turn[axis], turn[2] = tilt_deg, 70.0
        standing = block("block_blue")
        return scene({"block_blue": dataclasses.replace(standing, orientation_xyzw=euler_to_quaternion(np.radians(turn)))})

    assert task_solved("rotate_blue_block_left", start, end(29.5))
    assert not task_solved("rotate_blue_block_left", start, end(30.5))
    assert task_solved("rotate_blue_block_left", start, end(-29.5))
    assert not task_solved("rotate_blue_block_left", start, end(-30.5))


def test_rotate_moves_at_most_a_tenth_of_a_metre() -> None:
    start = scene({"block_blue": block("block_blue", at=(0.1, -0.1, 0.46))})

    def end(shift_m: float) -> SceneInfo:
        along = shift_m / math.sqrt(3.0)  # the distance counts in all three directions
        position = (0.1 + along, -0.1 + along, 0.46 + along)
        return scene({"block_blue": block("block_blue", at=position, yaw_deg=70.0)})

    assert task_solved("rotate_blue_block_left", start, end(0.0995))
    assert not task_solved("rotate_blue_block_left", start, end(0.1005))


@pytest.mark.parametrize(("turn_deg", "task"), [(179.0, "rotate_blue_block_left"), (181.0, "rotate_blue_block_right")])
def test_half_a_turn_changes_the_side(turn_deg: float, task: str) -> None:
    start = scene({"block_blue": block("block_blue")})
    assert [
        one for one in TASKS if task_solved(one, start, scene({"block_blue": block("block_blue", yaw_deg=turn_deg)}))
    ] == [task]


@pytest.mark.parametrize("part", ["linear_velocity_m_s", "angular_velocity_rad_s"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_is_settled_below_one_per_second(part: str, axis: int) -> None:
    apart = scene({"block_red": block("block_red", touches=[FINGER])})

    def stacked(speed: float) -> SceneInfo:
        velocity = np.zeros(3)
        velocity[axis] = -speed
        upper = block("block_red", touches=[("block_blue", "base_link")])
        return scene({"block_red": dataclasses.replace(upper, **{part: velocity})})

    assert task_solved("stack_block", apart, stacked(0.99))
    assert not task_solved("stack_block", apart, stacked(1.01))
    assert task_solved("unstack_block", stacked(0.99), apart)
    assert not task_solved("unstack_block", stacked(1.01), apart)
