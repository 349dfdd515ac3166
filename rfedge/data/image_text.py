"""Image-text pairs beside the demonstrations: captions, or questions with short answers, one JSON object a line.

    {"image": "train2014/COCO_train2014_000000000009.jpg", "caption": "a tray of food"}
    {"image": "train2014/COCO_train2014_000000000025.jpg", "question": "What animal is it?", "answer": "giraffe"}

Only where each line begins is kept: a million lines cost 16 MB of memory, and a line is read again when it is sampled.
Every line is checked once, when the files are opened; its image is decoded when it is sampled.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from rfedge.errors import DatasetError
from rfedge.jobs.progress import Count
from rfedge.language.tokenizer import END_OF_CHUNK, END_OF_TEXT, IMAGE, PAD

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

ImageTextKind = Literal["caption", "vqa"]
KINDS: Final[tuple[ImageTextKind, ...]] = ("caption", "vqa")

Int64Array = npt.NDArray[np.int64]

_LONGEST_LINE_BYTES: Final = 1 << 16
_MOST_PIXELS: Final = 50_000_000
# The shorter side is brought to the policy's size, so a strip would grow without bound.
_MOST_STRETCHED: Final = 20
# Not every decoder of Pillow: some hand the file to other programs.
_IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP")
_FORMS: Final = '{"image": ..., "caption": ...} or {"image": ..., "question": ..., "answer": ...}'
_REPORT_EVERY_LINES: Final = 1000


@dataclass(frozen=True, slots=True)
class ImageTextExample:
    """One line."""

    kind: ImageTextKind  # "caption", or "vqa" for a question and its answer
    image: Path  # path of the image; a relative one was joined to the file's folder
    name: str  # the image as the line names it
    question: str
    text: str  # what is to be said: the caption or the answer
    # file, offset: where the line begins, in bytes
    file: Path
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class ImageTextSet:
    """Examples of one kind."""

    files: tuple[Path, ...]
    places: Int64Array  # int64 (N, 2), the number of the file and the byte at which the line begins

    def __len__(self) -> int:
        return len(self.places)

    def examples(self, chosen: Iterable[int]) -> list[ImageTextExample]:
        """Read the lines with these numbers again."""
        examples = []
        for file_number, offset in self.places[list(chosen)].tolist():
            path = self.files[file_number]
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    line = file.readline(_LONGEST_LINE_BYTES + 1)
            except OSError as error:
                raise _bad_file(path, got=error.strerror or str(error)) from None
            examples.append(_parse(path, offset, line))
        return examples


@dataclass(frozen=True, slots=True, eq=False)
class ImageTextData:
    """Content of some files, in two parts that share no image; a kind of which a part holds nothing is absent there."""

    training: dict[ImageTextKind, ImageTextSet]
    held_out: dict[ImageTextKind, ImageTextSet]
    content_sha256: str  # hex, over the files' bytes; images are not part of it


def open_image_text(
    files: Sequence[Path],
    *,
    validation_fraction: float,
    seed: int,
    on_byte: Count | None = None,
) -> ImageTextData:
    """Check every line and find where it begins; `validation_fraction` of the images is held out, with all their lines.

    Raises DatasetError, with file and line, where a file, line or image is missing or damaged.
    """
    paths = tuple(files)
    total = sum(_size_bytes(path) for path in paths)
    digest = hashlib.sha256()
    places = {kind: array("q") for kind in KINDS}
    images = {kind: array("Q") for kind in KINDS}  # a hash of each line's image
    done = 0
    for file_number, path in enumerate(paths):
        for count, (offset, line) in enumerate(_lines(path), 1):
            digest.update(line)
            done += len(line)
            if on_byte is not None and (count % _REPORT_EVERY_LINES == 0 or done == total):
                on_byte(done, total)
            if not line.strip():
                continue
            example = _parse(path, offset, line)
            if not os.path.isfile(example.image):
                remedy = "Paths are relative to the folder of the JSONL file."
                raise _bad_line(path, offset, f"no image {str(example.image)!r}", "an image file", remedy)
            places[example.kind].extend((file_number, offset))
            # Of the name in the line, not of the whole path: data that moved is split as before.
            name = f"{seed}:{os.path.normpath(example.name)}".encode()
            images[example.kind].append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
    return _split(paths, places, images, validation_fraction, digest.hexdigest())


def load_image(example: ImageTextExample, size: int) -> npt.NDArray[np.uint8]:
    """Return uint8 (size, size, 3) RGB: the shorter side resized to `size`, bicubic, then the centre, as CLIP does.

    Raises DatasetError, with file and line, where it cannot be decoded or is too large or narrow.
    """
    from PIL import Image

    try:
        whole = _decode(example.image)
    except Exception as error:  # decoders of damaged files raise nearly every kind
        raise _bad_line(
            example.file,
            example.offset,
            got=f"image {example.name!r} ({str(error) or type(error).__name__})",
            expected=f"{', '.join(_IMAGE_FORMATS)} of at most {_MOST_PIXELS // 1_000_000} million pixels, one side at most "
            f"{_MOST_STRETCHED} times the other",
            remedy="Replace the image, or remove the line and start over.",
        ) from None
    short = min(whole.size)
    width, height = size * whole.width // short, size * whole.height // short
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = whole.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _decode(path: Path) -> PillowImage:
    from PIL import Image

    with Image.open(path, formats=_IMAGE_FORMATS) as image:  # reads the header alone
        width, height = image.size
        if width * height > _MOST_PIXELS or max(width, height) > _MOST_STRETCHED * min(width, height):
            raise ValueError(f"{width} x {height} pixels")
        # Before the resize, unlike CLIP: Pillow resizes a palette's indices without any filter.
        return image.convert("RGB")


def _size_bytes(path: Path) -> int:
    if not path.is_file():
        raise _bad_file(path, got="a folder" if path.is_dir() else "no file")
    return path.stat().st_size


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            offset = 0
            while line := file.readline(_LONGEST_LINE_BYTES + 1):
                yield offset, line
                offset += len(line)
    except OSError as error:
        raise _bad_file(path, got=error.strerror or str(error)) from None


def _parse(path: Path, offset: int, line: bytes) -> ImageTextExample:
    if len(line) > _LONGEST_LINE_BYTES:
        raise _bad_line(path, offset, got=f"more than {_LONGEST_LINE_BYTES} bytes")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad_line(path, offset, got=f"no JSON ({error})") from None
    keys = {"image", "caption", "question", "answer"} & entry.keys() if isinstance(entry, dict) else set()
    if keys not in ({"image", "caption"}, {"image", "question", "answer"}):
        got = f"keys {sorted(entry)}" if isinstance(entry, dict) else type(entry).__name__
        raise _bad_line(path, offset, got=got)
    for key in sorted(keys):
        value = entry[key]
        if not isinstance(value, str) or not value.strip() or not _is_plain(value):
            expected = "text, not empty and without a special token such as <image>"
            raise _bad_line(path, offset, f"{key} {value!r:.80}", expected)
    is_caption = "caption" in keys
    return ImageTextExample(
        kind="caption" if is_caption else "vqa",
        image=path.parent / entry["image"],
        name=entry["image"],
        question="" if is_caption else entry["question"].strip(),
        text=entry["caption" if is_caption else "answer"].strip(),
        file=path,
        offset=offset,
    )


def _is_plain(text: str) -> bool:
    try:
        text.encode()  # JSON may hold half of a surrogate pair, which no tokenizer and no file system takes
    except UnicodeEncodeError:
        return False
    return "\0" not in text and not any(token in text for token in (IMAGE, END_OF_CHUNK, END_OF_TEXT, PAD))


def _split(
    files: tuple[Path, ...],
    places: dict[ImageTextKind, array[int]],
    images: dict[ImageTextKind, array[int]],
    fraction: float,
    content_sha256: str,
) -> ImageTextData:
    hashes = {kind: np.array(images[kind], dtype=np.uint64) for kind in KINDS}
    distinct = np.unique(np.concatenate([hashes[kind] for kind in KINDS]))
    if not len(distinct):
        raise _bad_file(files[0], got="no line")
    num_held_out = 0 if fraction == 0.0 else min(max(round(fraction * len(distinct)), 1), len(distinct) - 1)
    training: dict[ImageTextKind, ImageTextSet] = {}
    held_out: dict[ImageTextKind, ImageTextSet] = {}
    for kind in KINDS:
        rows = np.array(places[kind], dtype=np.int64).reshape(-1, 2)
        is_held_out = np.isin(hashes[kind], distinct[:num_held_out])  # hashes are in no order of their own
        for part, chosen in ((training, rows[~is_held_out]), (held_out, rows[is_held_out])):
            if len(chosen):
                part[kind] = ImageTextSet(files, chosen)
        if kind in held_out and kind not in training:
            got = f"{len(held_out[kind])}, whose images are all held out"
            remedy = "Add pairs, or pass --validation-fraction 0."
            raise DatasetError(f"image-text pairs of kind {kind}", got=got, expected="some to train on", remedy=remedy)
    return ImageTextData(training, held_out, content_sha256)


def _bad_file(path: Path, *, got: str) -> DatasetError:
    return DatasetError(f"image-text file {path}", got=got, expected=f"lines of {_FORMS}", remedy="Check --image-text.")


def _bad_line(
    path: Path, offset: int, got: str, expected: str = _FORMS, remedy: str = "Mend or remove the line."
) -> DatasetError:
    with path.open("rb") as file:  # only here, so that no line numbers need to be kept
        line = 1 + sum(file.read(min(1 << 20, offset - start)).count(b"\n") for start in range(0, offset, 1 << 20))
    return DatasetError(f"image-text file {path}, line {line}", got=got, expected=expected, remedy=remedy)
