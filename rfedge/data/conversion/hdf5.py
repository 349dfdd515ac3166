"""HDF5 files of demonstrations, one group each: robomimic, LIBERO, or CALVIN's own keys.

    data/demo_0/actions, data/demo_0/obs/agentview_image, ...     robomimic, robosuite's names
    data/demo_0/actions, data/demo_0/obs/agentview_rgb, ...       LIBERO
    data/demo_0/rgb_static, data/demo_0/robot_obs, ...            CALVIN's keys; the group `data` may be left out

Both robosuite layouts: relative actions of 0.05 m and 0.5 rad a unit at 20 Hz, the rotation a rotation vector, gripper -1
open and 1 close. LIBERO stores images as OpenGL renders, from the bottom row. hdf5.json holds the layouts. Sources: the
documentation of robomimic, the dataset scripts of LIBERO, robosuite's operational space controller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rfedge.data.conversion.options import IMAGE_FIELDS, ConversionOptions, FieldSource
from rfedge.data.conversion.records import Layout, Source, SourceEpisode, select_elements
from rfedge.errors import DatasetError

_SUFFIXES: Final = (".hdf5", ".h5")
_INSTRUCTION_NAMES: Final = ("instruction", "language_instruction", "language", "task")


# The array that gives a layout away -> the layout.
_LAYOUTS: Final[dict[str, Layout]] = {
    key: Layout(**{**layout, "fields": {name: FieldSource(array) for name, array in layout["fields"].items()}})
    for key, layout in json.loads(Path(__file__).with_suffix(".json").read_text()).items()
}


class Hdf5Source(Source):
    """One file, or all files of a folder, open for reading; see `records.Source`."""

    def __init__(self, path: Path, options: ConversionOptions) -> None:
        self._files = _find_files(path)
        self._demos = [(file, name) for file in self._files for name in _demo_names(file)]
        if not self._demos:
            raise DatasetError(
                f"source {path}", got="no demonstrations", expected="groups demo_0, demo_1, ...", remedy="Check the file."
            )
        first_file, first_name = self._demos[0]
        with _open(first_file) as file:
            demo = file[first_name]
            known = next((layout for key, layout in _LAYOUTS.items() if key in demo), Layout("unknown keys"))
            # Not every robomimic file has every camera: a field of the layout that is not there is simply not mapped.
            present = {name: source for name, source in known.fields.items() if source.key in demo}
            arrays: list[str] = []
            demo.visititems(lambda name, item: arrays.append(name) if hasattr(item, "shape") else None)
            arrays.sort()
            frequency = _control_frequency(file)
        super().__init__(options, present)
        name, frequency_hz = f"HDF5, {known.name}", frequency or known.frequency_hz
        self.layout = replace(known, name=name, fields=self.fields, frequency_hz=frequency_hz)
        self._arrays, self.num_episodes = arrays, len(self._demos)
        self.subject, expected = f"{first_name} of {first_file}", "keys of robomimic, LIBERO or CALVIN"
        remedy = "Name the fields, say --map static=KEY --map gripper=KEY --map actions=KEY."
        self.no_static = f"arrays {', '.join(arrays)}", expected, remedy
        self._open_file: tuple[Path, Any] | None = None

    def choices(self, field: str) -> Sequence[str] | None:
        return None if field == "instruction" else self._arrays

    def read(self, index: int, *, images: bool) -> SourceEpisode:
        path, name = self._demos[index]
        if self._open_file is None or self._open_file[0] != path:
            self.close()
            self._open_file = (path, _open(path))
        file = self._open_file[1]
        try:
            return self._read_demo(f"{name.rpartition('/')[2]} of {path.name}", file, name, images=images)
        except (OSError, KeyError) as error:
            reason = " ".join(str(error).split())
            got = f"an unreadable array ({reason})"
            remedy = "It is truncated or damaged: copy it again."
            raise DatasetError(f"{name} of {path}", got=got, expected="a complete file", remedy=remedy) from None

    def close(self) -> None:
        if self._open_file is not None:
            self._open_file[1].close()
            self._open_file = None

    def _read_demo(self, subject: str, file: Any, name: str, *, images: bool) -> SourceEpisode:
        demo = file[name]
        values, shown, lengths = {}, {}, {}
        for field, source in self.fields.items():
            if field == "instruction":
                continue
            array = demo[source.key]
            lengths[source.key] = len(array)
            if field in IMAGE_FIELDS:
                # Without images one row still tells whether they are images.
                seen = array if images else array[:1]
                where = f"{source.key} of {subject}"
                shown[field] = self.fit_images(field, where, (seen[step] for step in range(len(seen))), len(seen))
            else:
                values[field] = select_elements(subject, source, array[()])
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise DatasetError(
                subject, got=f"lengths {lengths}", expected="one length of at least 1", remedy="Check the recording."
            )
        sentence = self._instruction(subject, file, demo)
        return SourceEpisode(subject, shown if images else {}, values, (sentence,) * next(iter(lengths.values())))

    def _instruction(self, subject: str, file: Any, demo: Any) -> str:
        if self.options.instruction is not None:
            return self.options.instruction
        names = (self.fields["instruction"].key,) if "instruction" in self.fields else _INSTRUCTION_NAMES
        for group in (demo, file.get("data", file), file):
            for name in names:
                value = group.attrs.get(name)
                if value is None and name in group and getattr(group[name], "shape", None) == ():
                    value = group[name][()]
                if value is not None:
                    return value.decode() if isinstance(value, bytes) else str(value)
            sentence = _json_attribute(group, "problem_info").get("language_instruction")
            if sentence:  # LIBERO: a sentence or its words, with quotation marks left from its task files
                return (sentence if isinstance(sentence, str) else " ".join(sentence)).strip('" ')
        remedy = "Give one for all with --instruction, or name the attribute with --map instruction=KEY."
        raise DatasetError(subject, got="no instruction", expected=f"an attribute {', '.join(names)}", remedy=remedy)


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES) if path.is_dir() else []
    if not files:
        got = "no HDF5 file in it" if path.is_dir() else "no file"
        raise DatasetError(f"source {path}", got=got, expected="*.hdf5 or *.h5", remedy="Check the path.")
    return files


def _open(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"file {path}", got=f"an unreadable file ({reason})", expected="an HDF5 file", remedy="Check or copy it again."
        ) from None


def _demo_names(path: Path) -> list[str]:
    """Paths of the demonstrations below `data`, or at the root, by number: demo_2 comes before demo_10."""
    with _open(path) as file:
        prefix = "data/" if "data" in file else ""
        root = file["data"] if prefix else file
        found = [(int(match[1]), name) for name in root if (match := re.fullmatch(r"(?:demo|episode)_(\d+)", name))]
    return [prefix + name for _, name in sorted(found)]


def _json_attribute(group: Any, name: str) -> dict[str, Any]:
    try:
        value = json.loads(group.attrs[name])
    except (KeyError, TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _control_frequency(file: Any) -> float | None:
    group = file.get("data", file)
    for holder in (_json_attribute(group, "env_args"), _json_attribute(group, "env_info")):
        for keywords in (holder.get("env_kwargs"), holder):
            if isinstance(keywords, dict) and isinstance(keywords.get("control_freq"), (int, float)):
                return float(keywords["control_freq"])
    value = group.attrs.get("fps")
    return None if value is None else float(value)
