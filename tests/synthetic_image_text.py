"""Image-text pairs for tests: coloured shapes, named in a caption and asked about."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "yellow": (240, 220, 40)}
SHAPES = ("circle", "square", "triangle")
WORDS = ("A photo of a red circle", "a green square", "a blue triangle", "a yellow circle")
QUESTIONS = ("Question:What colour is it? Short answer:red", "Question:What shape is it? Short answer:square")


def draw_shape(colour: str, shape: str, rng: np.random.Generator, size: tuple[int, int] = (48, 40)) -> Image.Image:
    image = Image.new("RGB", size, tuple(int(value) for value in rng.integers(0, 60, 3)))
    draw = ImageDraw.Draw(image)
    left, top = int(rng.integers(2, 12)), int(rng.integers(2, 8))
    box = (left, top, left + 28, top + 28)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(left, top + 28), (left + 28, top + 28), (left + 14, top)], fill=COLOURS[colour])
    return image


def write_lines(path: Path, entries: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write_image_text(root: Path, *, num_images: int = 24, questions: bool = True, seed: int = 0) -> Path:
    """Write `root`/pairs.jsonl and `root`/images, a caption and a question an image, and return the file."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    entries = []
    for number in range(num_images):
        colour, shape = list(COLOURS)[number % 4], SHAPES[number // 4 % 3]
        name = f"images/{number:03d}.{'png' if number % 2 else 'jpg'}"
        draw_shape(colour, shape, rng).save(root / name)
        entries.append({"image": name, "caption": f"a {colour} {shape}"})
        if questions:
            asked, answer = ("colour", colour) if number % 2 else ("shape", shape)
            entries.append({"image": name, "question": f"What {asked} is it?", "answer": answer})
    return write_lines(root / "pairs.jsonl", entries)
