"""The JSON records beside a split that say where it comes from, and the conventions that they hand on.

collection.json   `rfedge demos`, `rfedge demos merge`
conversion.json   `rfedge demos convert`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rfedge.errors import DatasetError
from rfedge.io.disk import read_json
from rfedge.robot.camera import RESIZES
from rfedge.robot.conventions import Conventions

CALVIN_HZ: Final = 30.0
COLLECTION_RECORD: Final = "collection.json"
CONVERSION_RECORD: Final = "conversion.json"


def find_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the record `name` in a split folder or beside it; None without one, empty where it cannot be read."""
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            try:
                content = read_json(path)
            except ValueError:
                return {}
            return content if isinstance(content, dict) else {}
    return None


def read_conventions(folder: Path) -> Conventions:
    """Return control rate and camera geometry of a split, CALVIN's 30 Hz and square cameras where no record says more."""
    conversion, collection = find_record(folder, CONVERSION_RECORD), find_record(folder, COLLECTION_RECORD)
    if conversion is not None:
        options = conversion.get("options")
        resize = options.get("resize") if isinstance(options, dict) else None
        return _checked(folder / CONVERSION_RECORD, conversion.get("frequency_hz"), resize)
    merged = (collection or {}).get("conventions")
    if isinstance(merged, dict):
        return _checked(folder / COLLECTION_RECORD, merged.get("control_hz"), merged.get("resize"))
    return Conventions(control_hz=CALVIN_HZ)


def recorded_conventions(path: Path) -> Conventions:
    """Return those of the split that `path` is or holds; nothing where there is none."""
    folder = path / "training"
    folder = folder if folder.is_dir() else path
    return read_conventions(folder) if folder.is_dir() else Conventions()


def missing_parts(folder: Path) -> tuple[str, ...]:
    """Return what the source of a converted or merged split did not have, such as "gripper", whose images are black."""
    named: list[str] = []
    for name in (CONVERSION_RECORD, COLLECTION_RECORD):
        missing = (find_record(folder, name) or {}).get("missing")
        named += [str(part) for part in missing] if isinstance(missing, list) else []
    return tuple(dict.fromkeys(named))


def _checked(path: Path, control_hz: object, resize: object) -> Conventions:
    is_rate = isinstance(control_hz, (int, float)) and not isinstance(control_hz, bool) and 0.0 < control_hz <= 1000.0
    if not is_rate or (resize is not None and resize not in RESIZES):
        expected = f"a rate above 0, and {', '.join(RESIZES)} or none"
        remedy = "Convert the demonstrations again."
        raise DatasetError(f"record {path}", got=f"{control_hz!r} Hz, resize {resize!r}", expected=expected, remedy=remedy)
    assert isinstance(control_hz, (int, float))
    return Conventions(float(control_hz), None if resize is None else str(resize))
