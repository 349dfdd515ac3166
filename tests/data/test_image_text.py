"""Image-text files: what is read back, how images are cut, who is held out, and how every damage is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfedge.data.image_text import ImageTextExample, ImageTextSet, load_image, open_image_text
from rfedge.errors import DatasetError
from tests.errors import raises
from tests.synthetic_image_text import write_image_text, write_lines


def open_all(*files: Path, seed: int = 0) -> dict[str, ImageTextSet]:
    return dict(open_image_text(files, validation_fraction=0.0, seed=seed).training)


def names(part: ImageTextSet) -> set[str]:
    return {example.name for example in part.examples(range(len(part)))}


def pair(image: Path) -> ImageTextExample:
    return ImageTextExample("caption", image, image.name, "", "a thing", image.parent / "pairs.jsonl", 0)


def test_lines_are_read_back_by_kind(tmp_path: Path) -> None:
    path = write_image_text(tmp_path / "a", num_images=5)
    other = tmp_path / "b" / "more.jsonl"
    absolute = str(tmp_path / "a" / "images" / "000.jpg")
    write_lines(other, [{"image": absolute, "caption": " a café \n", "id": 7}])
    other.write_text("\n" + other.read_text() + "  \n")  # empty lines are skipped
    progress: list[tuple[int, int]] = []
    data = open_image_text(
        [path, other], validation_fraction=0.0, seed=0, on_byte=lambda done, total: progress.append((done, total))
    )
    captions, questions = data.training["caption"], data.training["vqa"]
    assert (len(captions), len(questions), data.held_out) == (6, 5, {})
    assert captions.places.dtype == np.int64
    first, last = captions.examples([0, 5])
    assert (first.text, first.name, first.image) == ("a red circle", "images/000.jpg", tmp_path / "a" / "images" / "000.jpg")
    assert (last.text, last.image, last.offset) == ("a café", Path(absolute), 1)
    asked = questions.examples([1])[0]
    assert (asked.question, asked.text, asked.kind) == ("What colour is it?", "green", "vqa")
    total = path.stat().st_size + other.stat().st_size
    assert progress[-1] == (total, total)


def test_images_are_cut_as_clip_does(tmp_path: Path) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    wide.save(tmp_path / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    cut = load_image(pair(tmp_path / "wide.png"), 32)
    whole = np.asarray(wide.resize((48, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(cut, whole[:, 8:40])
    assert load_image(pair(tmp_path / "tall.png"), 32).shape == (32, 32, 3)
    square = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    square.save(tmp_path / "square.png")
    np.testing.assert_array_equal(load_image(pair(tmp_path / "square.png"), 32), np.asarray(square))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (50, 40), (250, 10, 10)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    red.save(path)
    pixels = load_image(pair(path), 16)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    if mode != "L":
        assert pixels[..., 0].min() > 230
        assert pixels[..., 1:].max() < 40


def test_held_out_images_are_in_no_training_pair(tmp_path: Path) -> None:
    path = write_image_text(tmp_path / "a", num_images=40)
    data = open_image_text([path], validation_fraction=0.25, seed=0)
    held_out = names(data.held_out["caption"]) | names(data.held_out["vqa"])
    assert len(held_out) == 10
    assert not held_out & (names(data.training["caption"]) | names(data.training["vqa"]))
    assert names(open_image_text([path], validation_fraction=0.25, seed=1).held_out["caption"]) != held_out
    shutil.move(tmp_path / "a", tmp_path / "moved")
    moved = open_image_text([tmp_path / "moved" / "pairs.jsonl"], validation_fraction=0.25, seed=0)
    assert names(moved.held_out["caption"]) == held_out
    assert moved.content_sha256 == data.content_sha256


def test_the_sha_names_the_lines(tmp_path: Path) -> None:
    path = write_image_text(tmp_path, num_images=3)
    before = open_image_text([path], validation_fraction=0.0, seed=0).content_sha256
    path.write_text(path.read_text().replace("a red circle", "a red disc"))
    assert open_image_text([path], validation_fraction=0.0, seed=0).content_sha256 != before


GOOD = {"image": "images/000.jpg", "caption": "a red circle"}


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b"{", "no JSON..."),
        (b"\xff\xfe", "no JSON..."),
        (b"[" * 60_000, "no JSON..."),
        (b'["a"]', "list"),
        (b'{"image": "images/000.jpg"}', "keys ['image']"),
        (b'{"image": "images/000.jpg", "question": "What?"}', "keys ['image', 'question']"),
        (b'{"image": "images/000.jpg", "caption": "a", "question": "b", "answer": "c"}', "keys ..."),
        (b'{"image": "images/000.jpg", "caption": " "}', "caption ' '"),
        (b'{"image": "images/000.jpg", "caption": 3}', "caption 3"),
        (b'{"image": "images/000.jpg", "caption": "\\ud800"}', "caption '\\ud800'"),
        (b'{"image": "images/\\u0000.jpg", "caption": "a"}', "image 'images/\\x00.jpg'"),
        (b'{"image": "images/000.jpg", "caption": "a <image> of b"}', "caption 'a <image> of b'"),
        (b'{"image": "images/nowhere.jpg", "caption": "a"}', "no image '..."),
        (b'{"image": "images", "caption": "a folder"}', "...image..."),
        (json.dumps({**GOOD, "caption": "a" * 70_000}).encode(), "more than 65536 bytes"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, got: str) -> None:
    path = write_image_text(tmp_path, num_images=3, questions=False)
    path.write_bytes(path.read_bytes() + line + b"\n" + json.dumps(GOOD).encode())
    with raises(DatasetError, f"image-text file {path}, line 4", got=got) as caught:
        open_all(path)
    assert len(str(caught.value)) < 600


def test_missing_and_empty_files_are_told(tmp_path: Path) -> None:
    with raises(DatasetError, "...nowhere.jsonl", got="no file", expected="lines of..."):
        open_all(tmp_path / "nowhere.jsonl")
    with raises(DatasetError, got="a folder"):
        open_all(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with raises(DatasetError, "...empty.jsonl", got="no line"):
        open_all(tmp_path / "empty.jsonl")


def test_a_kind_that_was_all_held_out_is_told(tmp_path: Path) -> None:
    path = write_image_text(tmp_path, num_images=8, questions=False)
    lines = path.read_text()
    for number in range(8):
        asked = {"image": f"images/{number:03d}.{'png' if number % 2 else 'jpg'}", "question": "What?", "answer": "a thing"}
        path.write_text(lines + json.dumps(asked) + "\n")
        try:
            data = open_image_text([path], validation_fraction=0.1, seed=0)
        except DatasetError as error:
            assert "kind vqa: got 1, whose images are all held out" in str(error)  # noqa: PT017
            return
        assert len(data.training["vqa"]) == 1
    pytest.fail("the one image held out was none of the eight")


def test_a_line_altered_later_is_named_when_it_is_drawn(tmp_path: Path) -> None:
    path = write_image_text(tmp_path, num_images=4, questions=False)
    part = open_all(path)["caption"]
    path.write_bytes(path.read_bytes().replace(b'"a blue circle"', b'"a blue circle '))
    part.examples([1])
    with raises(DatasetError, "...pairs.jsonl, line 3", got="no JSON..."):
        part.examples([1, 2])
    path.unlink()
    with raises(DatasetError, "...pairs.jsonl", got="No such file or directory"):
        part.examples([1])


def _text(path: Path) -> None:
    path.write_text("no image")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _strip(path: Path) -> None:
    Image.new("RGB", (210, 10)).save(path, format="PNG")


def _large(path: Path) -> None:
    Image.new("1", (8000, 8000)).save(path, format="PNG")


def _gif(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path, format="GIF")


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (_text, "cannot identify image file"),
        (_cut, "truncated"),
        (_strip, "210 x 10 pixels"),
        (_large, "8000 x 8000 pixels"),
        (_gif, "cannot identify image file"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_damaged_image_is_named_with_its_line(tmp_path: Path, damage: Callable[[Path], None], got: str) -> None:
    path = write_image_text(tmp_path, num_images=4, questions=False)
    example = open_all(path)["caption"].examples([2])[0]
    damage(example.image)
    expected = "JPEG, PNG, WEBP, BMP of at most 50 million pixels..."
    with raises(DatasetError, f"...{path}, line 3", got=f"image 'images/002.jpg' (...{got}...", expected=expected):
        load_image(example, 32)
