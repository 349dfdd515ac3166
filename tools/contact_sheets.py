"""Draw the two contact sheets of the documentation from real renders: the four scenes, and one rollout a task family.

    MUJOCO_GL=egl python tools/contact_sheets.py

Everything is sampled from fixed seeds, so the pictures change only when scenes, experts or the renderer do.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rfedge.benchmarks.success.demonstrations import Episode, record_episode
from rfedge.envs import Environment, make_environment
from rfedge.envs.experts import EXPERT_TASKS
from rfedge.envs.interface import BLOCKS, Float64Array
from rfedge.envs.playtable.layout import SWITCH_MAX_M, find_layout
from rfedge.envs.playtable.placement import block_slice, sample_scene
from rfedge.io.atomic import atomic_file

# one task of each family
FAMILIES: Final = (
    "rotate_red_block_right",
    "push_blue_block_left",
    "move_slider_left",
    "open_drawer",
    "lift_red_block_table",
    "lift_blue_block_slider",
    "lift_pink_block_drawer",
    "place_in_slider",
    "place_in_drawer",
    "stack_block",
    "unstack_block",
    "turn_on_lightbulb",
    "turn_on_led",
    "push_into_drawer",
)
# scene -> (bulb on, LED on): each light is seen both ways
LIGHTS: Final = {"A": (False, False), "B": (True, False), "C": (False, True), "D": (True, True)}
SCENE_GAP_M: Final = 0.02
ARM_X_M: Final = -0.06  # left of it the arm hides what is on the table
SEEDS: Final = range(10)
COLUMNS: Final = 5
THUMBNAIL: Final = 150
STATIC_ZOOM: Final = 2
GRIPPER_ZOOM: Final = 4
GAP: Final = 4
CAPTION: Final = 18
COLOURS: Final = 256
KMEANS_ROUNDS: Final = 8
MAX_BYTES: Final = 600_000

UInt8Array = npt.NDArray[np.uint8]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    folder: Path = parser.parse_args().output
    write(draw_scenes(), folder / "playtable_scenes.png")
    write(draw_experts(), folder / "playtable_experts.png")
    return 0


def draw_scenes() -> Image.Image:
    """Return scenes A to D, two a row: the static view enlarged without smoothing, the gripper's view beside it."""
    static, gripper = 200 * STATIC_ZOOM, 84 * GRIPPER_ZOOM
    width, height = static + GAP + gripper, CAPTION + static
    sheet = Image.new("RGB", (2 * width + 3 * GAP, 2 * (height + GAP)), "white")
    for index, (scene, (bulb_on, led_on)) in enumerate(LIGHTS.items()):
        with make_environment("playtable", scene=scene) as environment:
            seen = environment.reset(scene_obs=_visible_scene(scene, bulb_on=bulb_on, led_on=led_on))
        left, top = GAP + (index % 2) * (width + GAP), (index // 2) * (height + GAP)
        lights = f"bulb {'on' if bulb_on else 'off'}, LED {'on' if led_on else 'off'}"
        _caption(sheet, left, top, f"scene {scene}: {lights}; static camera x{STATIC_ZOOM}, gripper camera x{GRIPPER_ZOOM}")
        sheet.paste(_enlarge(seen.static, STATIC_ZOOM), (left, top + CAPTION))
        sheet.paste(_enlarge(seen.gripper, GRIPPER_ZOOM), (left + static + GAP, top + CAPTION))
    return sheet


def draw_experts() -> Image.Image:
    """Return one row a task family: five static frames and the last gripper frame."""
    tasks = [task for task in FAMILIES if task in EXPERT_TASKS]
    for task in FAMILIES:
        if task not in tasks:
            print(f"{task}: no expert, left out")
    row_height = CAPTION + THUMBNAIL
    sheet = Image.new("RGB", ((COLUMNS + 1) * (THUMBNAIL + GAP) - GAP, len(tasks) * row_height), "white")
    with make_environment("playtable", scene="D") as environment:
        for row, task in enumerate(tasks):
            episode = _first_success(task, environment)
            frames = episode.frames["rgb_static"]
            _caption(sheet, 0, row * row_height, f'{task}: "{episode.instruction}", {len(frames)} frames')
            shown = [frames[index] for index in np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)]
            for column, image in enumerate((*shown, episode.frames["rgb_gripper"][-1])):
                thumbnail = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                sheet.paste(thumbnail, (column * (THUMBNAIL + GAP), row * row_height + CAPTION))
    return sheet


def _visible_scene(scene: str, *, bulb_on: bool, led_on: bool) -> Float64Array:
    """Return scene_obs (24,) with all blocks on the table and none behind the arm."""
    layout, rng = find_layout(scene), np.random.default_rng(0)
    while True:
        scene_obs = sample_scene(
            layout,
            rng,
            surfaces=dict.fromkeys(BLOCKS, "table"),
            switch_m=SWITCH_MAX_M if bulb_on else 0.0,
            bulb_on=bulb_on,
            led_on=led_on,
            gap_m=SCENE_GAP_M,
        )
        if min(scene_obs[block_slice(layout, block)][0] for block in BLOCKS) > ARM_X_M:
            return scene_obs


def _first_success(task: str, environment: Environment) -> Episode:
    for seed in SEEDS:
        episode = record_episode(task, seed=seed, environment=environment)
        if episode.success:
            return episode
    raise SystemExit(f"{task}: not done from any of {len(SEEDS)} starts")


def _enlarge(image: UInt8Array, factor: int) -> Image.Image:
    return Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _caption(sheet: Image.Image, left: int, top: int, text: str) -> None:
    ImageDraw.Draw(sheet).text((left + 2, top + 2), text, fill="black", font=ImageFont.load_default(size=11))


def write(sheet: Image.Image, path: Path) -> None:
    """Write `sheet` with a palette, which halves its size, and say how large it became."""
    # A palette that begins with the colours furthest apart keeps the rare ones, which are the blocks; the rounds of
    # k-means then bring the frequent ones, which are wood, to where they belong.
    reduced = sheet.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=KMEANS_ROUNDS, dither=Image.Dither.NONE)
    save(reduced, path, MAX_BYTES, format="PNG", optimize=True)


def save(image: Image.Image, path: Path, most_bytes: int, **how: Any) -> None:
    """Write `image` as `how` says, whole or not at all, and say how large it became; a larger file is refused."""
    with atomic_file(path) as temporary:
        image.save(temporary, **how)
        size = os.path.getsize(temporary)
        if size > most_bytes:
            raise SystemExit(f"{path.name}: {size} bytes, more than {most_bytes}")
    print(f"{path}: {image.width} x {image.height}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    raise SystemExit(main())
