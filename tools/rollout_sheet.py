"""Film the shipped jump-step policy at eight tasks, seed 0 of each whatever comes of it, as one GIF for the README.

    MUJOCO_GL=egl python tools/rollout_sheet.py

Nothing is chosen by its outcome; what was not done within six seconds says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

from contact_sheets import save
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from pipeline import run

from rfedge.policies import JUMP_STEP

TASKS: Final = (
    "open_drawer",
    "move_slider_left",
    "turn_on_lightbulb",
    "turn_on_led",
    "push_blue_block_left",
    "lift_red_block_table",
    "rotate_pink_block_right",
    "place_in_drawer",
)
MAX_STEPS: Final = 180
COLUMNS: Final = 4
THUMBNAIL: Final = 150
GAP: Final = 4
CAPTION: Final = 30
EVERY: Final = 4  # of the frames: one a policy call
PAUSE_FRAMES: Final = 8
COLOURS: Final = 96
MAX_BYTES: Final = 3_000_000
DONE, NOT_DONE = "#1a7f37", "#b35900"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent.parent / "docs" / "images" / "jump_step_policy.gif"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--bundle", default=JUMP_STEP)
    options = parser.parse_args()
    films, captions = [], []
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            path = Path(folder) / f"{task}.gif"
            flags = ("--task", task, "--seed", 0, "--max-steps", MAX_STEPS, "--video", path)
            report = run(task, "run", options.bundle, *flags)
            episode = report["episodes"][0]
            taken_s = episode["num_steps"] / report["control_hz"]
            done = episode["success"]
            captions.append((task, f"done in {taken_s:.1f} s" if done else f"not done in {taken_s:.1f} s", done))
            films.append(read_film(path))
    write(draw(films, captions), options.output)
    return 0


def read_film(path: Path) -> list[Image.Image]:
    """Return every fourth frame of the static camera, the left square of the film, and the last one."""
    with Image.open(path) as film:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
    kept = frames[::EVERY] if (len(frames) - 1) % EVERY == 0 else [*frames[::EVERY], frames[-1]]
    size = (THUMBNAIL, THUMBNAIL)
    return [frame.crop((0, 0, frame.height, frame.height)).resize(size, Image.Resampling.LANCZOS) for frame in kept]


def draw(films: list[list[Image.Image]], captions: list[tuple[str, str, bool]]) -> list[Image.Image]:
    """Return the frames of the sheet; a film that is over shows its last frame and what came of it."""
    rows = -(-len(films) // COLUMNS)
    cell = (THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP)
    font = ImageFont.load_default(size=11)
    sheets = []
    for index in range(max(map(len, films)) + PAUSE_FRAMES):
        sheet = Image.new("RGB", (COLUMNS * cell[0] + GAP, rows * cell[1] + GAP), "white")
        pen = ImageDraw.Draw(sheet)
        for place, (film, (task, outcome, done)) in enumerate(zip(films, captions, strict=True)):
            left, top = GAP + place % COLUMNS * cell[0], GAP + place // COLUMNS * cell[1]
            over = index >= len(film)
            sheet.paste(film[-1] if over else film[index], (left, top + CAPTION))
            pen.text((left + 1, top + 1), task, fill="black", font=font)
            if over:
                pen.text((left + 1, top + 15), outcome, fill=DONE if done else NOT_DONE, font=font)
        sheets.append(sheet)
    return sheets


def write(sheets: list[Image.Image], path: Path) -> None:
    """Write the film with one palette for all frames, so that only what moves is stored, and say how large it became."""
    palette = sheets[-1].quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    first, *rest = (sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets)
    save(first, path, MAX_BYTES, format="GIF", save_all=True, append_images=rest, duration=130, loop=0, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
