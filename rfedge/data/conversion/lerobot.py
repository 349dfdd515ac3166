"""LeRobot datasets of version 3.0 on disk, read without the lerobot library.

    meta/info.json                                  version, frequency, features, path templates
    meta/tasks.parquet                              task_index -> sentence
    meta/episodes/chunk-000/file-000.parquet        bounds of each episode in the files below
    data/chunk-000/file-000.parquet                 numbers, and images where they are not video; many episodes a file
    videos/KEY/chunk-000/file-000.mp4               one camera, many episodes a file

Source: the LeRobotDataset v3.0 documentation and the files that lerobot 0.4 writes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.data.conversion.images import IMAGE_SHAPES, fit_image
from rfedge.data.conversion.options import IMAGE_FIELDS, ConversionOptions, FieldSource
from rfedge.data.conversion.records import Layout, SourceEpisode, refuse_unknown_key, select_elements, unless_replaced
from rfedge.data.conversion.video import VideoFrames
from rfedge.data.frames import Array
from rfedge.errors import DatasetError, explain

__all__ = ["LeRobotSource"]

_INFO: Final = "meta/info.json"
_VERSION: Final = "v3."
_DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Last parts of camera names in use, the usual one first.
_CAMERAS: Final = {
    "static": ("static", "rgb_static", "image", "agentview", "front", "top", "exterior", "exterior_1_left", "third_person"),
    "gripper": ("gripper", "rgb_gripper", "wrist", "wrist_image", "wrist_left", "hand", "eye_in_hand", "image2"),
}


class LeRobotSource:
    """A dataset root, open for reading; see `records.Source`.

    Raises:
        DatasetError: it is no LeRobot dataset of version 3, or a file in it is missing or damaged.
    """

    def __init__(self, path: Path, options: ConversionOptions) -> None:
        self._root = path
        self._options = options
        self._info = _read_info(path)
        self._features: dict[str, Any] = self._info["features"]
        self._videos = {key for key, feature in self._features.items() if feature.get("dtype") == "video"}
        self._cameras = [
            key
            for key, feature in self._features.items()
            if feature.get("dtype") in ("video", "image") and not _is_depth(feature)
        ]
        self.fields: Mapping[str, FieldSource] = {
            **unless_replaced(self._detected(), options.fields),
            **options.fields,
        }
        self._check_fields()
        self.layout = Layout(
            f"LeRobot {self._info['codebase_version']}, {self._info.get('robot_type') or 'unnamed robot'}",
            self.fields,
            frequency_hz=float(self._info["fps"]),
        )
        self._episodes = _read_episodes(path)
        self._sentences = _read_tasks(path)
        self._open_videos: dict[str, VideoFrames] = {}

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    def episodes(self) -> Iterator[SourceEpisode]:
        """Yield the episodes in their order.

        Raises:
            DatasetError: one is damaged or shorter than its record says.
        """
        try:
            for episode in self._episodes:
                yield self._read(episode)
        finally:
            for video in self._open_videos.values():
                video.close()

    def _detected(self) -> dict[str, FieldSource]:
        found = {}
        for field, names in _CAMERAS.items():
            by_name = {key.rsplit(".", 1)[-1]: key for key in self._cameras}
            key = next((by_name[name] for name in names if name in by_name), None)
            if key is not None:
                found[field] = FieldSource(key)
        for field, key in (("state", "observation.state"), ("actions", "action")):
            if key in self._features:
                found[field] = FieldSource(key)
        return found

    def _check_fields(self) -> None:
        for name, source in self.fields.items():
            choices = self._cameras if name in IMAGE_FIELDS else [key for key in self._features if key not in self._cameras]
            refuse_unknown_key(f"dataset {self._root}", name, source, choices)
        if "static" not in self.fields:
            raise DatasetError(
                explain(
                    f"dataset {self._root}",
                    got=f"cameras {', '.join(self._cameras) or 'none'}",
                    expected="one that is known to be the static one",
                    remedy="Say which with --map static=KEY, and the wrist camera with --map gripper=KEY.",
                )
            )

    def _read(self, episode: Mapping[str, Any]) -> SourceEpisode:
        number = int(episode["episode_index"])
        subject = f"episode {number}"
        template = self._info.get("data_path") or _DATA_PATH
        place = {"chunk_index": int(episode["data/chunk_index"]), "file_index": int(episode["data/file_index"])}
        path = self._root / template.format(**place)
        columns = {source.key for source in self.fields.values()} - self._videos
        table = _read_table(path, [*sorted(columns), "timestamp", "frame_index", "task_index"], number)
        rows = table.sort_by("frame_index")
        if not rows.num_rows or rows.num_rows != int(episode["length"]):
            raise DatasetError(
                explain(
                    f"{subject} in {path}",
                    got=f"{rows.num_rows} frames",
                    expected=f"{episode['length']}, as meta/episodes says",
                    remedy="Copy the dataset again, all of it.",
                )
            )
        values, images = {}, {}
        for field, source in self.fields.items():
            if field in IMAGE_FIELDS:
                images[field] = self._images(field, source.key, subject, episode, rows)
            elif field != "instruction":
                values[field] = select_elements(subject, source, np.array(rows[source.key].to_pylist()))
        return SourceEpisode(subject, images, values, self._instructions(subject, rows))

    def _images(self, field: str, key: str, subject: str, episode: Mapping[str, Any], rows: Any) -> npt.NDArray[np.uint8]:
        where = f"{key} of {subject}"
        if key in self._videos:
            pictures = self._video_pictures(key, episode, rows["timestamp"].to_pylist())
        else:
            pictures = (self._picture(where, item) for item in rows[key].to_pylist())
        shape, flip = IMAGE_SHAPES[field], self._options.flip or "none"
        images = np.empty((rows.num_rows, *shape), dtype=np.uint8)
        for step, picture in enumerate(pictures):
            images[step] = fit_image(where, picture, shape, resize=self._options.resize, flip=flip)
        return images

    def _video_pictures(self, key: str, episode: Mapping[str, Any], timestamps: list[float]) -> Iterator[Array]:
        template = self._info.get("video_path") or _VIDEO_PATH
        chunk, file = (int(episode[f"videos/{key}/{part}_index"]) for part in ("chunk", "file"))
        path = self._root / template.format(video_key=key, chunk_index=chunk, file_index=file)
        video = self._open_videos.get(key)
        if video is None or video.path != path:
            if video is not None:
                video.close()
            video = self._open_videos[key] = VideoFrames(path, float(self._info["fps"]))
        begin = float(episode[f"videos/{key}/from_timestamp"])
        return (video.at(begin + timestamp) for timestamp in timestamps)

    def _picture(self, where: str, item: Mapping[str, Any]) -> Array:
        from PIL import Image

        try:
            content = item["bytes"]
            with Image.open(io.BytesIO(content) if content else self._root / item["path"]) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, TypeError, KeyError) as error:
            raise DatasetError(
                explain(where, got=f"an unreadable image ({error})", expected="PNG or JPEG bytes", remedy="Copy it again.")
            ) from None

    def _instructions(self, subject: str, rows: Any) -> tuple[str, ...]:
        if self._options.instruction is not None:
            return (self._options.instruction,) * int(rows.num_rows)
        indices = rows["task_index"].to_pylist()
        unknown = next((index for index in indices if not self._sentences.get(index, "").strip()), None)
        if unknown is not None:
            raise DatasetError(
                explain(
                    subject,
                    got=f"task {unknown}, without a sentence",
                    expected=f"one of the {len(self._sentences)} in meta/tasks.parquet",
                    remedy="Give one for all episodes with --instruction.",
                )
            )
        return tuple(self._sentences[index] for index in indices)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _read_info(path: Path) -> dict[str, Any]:
    if not (path / _INFO).is_file():
        raise DatasetError(
            explain(f"source {path}", got=f"no {_INFO}", expected="the root of a LeRobot dataset", remedy="Check the path.")
        )
    try:
        info = dict(json.loads((path / _INFO).read_bytes()))
        version, _, _ = str(info["codebase_version"]), float(info["fps"]), dict(info["features"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            explain(
                f"file {path / _INFO}",
                got=f"another structure ({error!r})",
                expected="codebase_version, fps and features",
                remedy="Copy it again.",
            )
        ) from None
    if not version.startswith(_VERSION):
        raise DatasetError(
            explain(
                f"dataset {path}",
                got=f"LeRobot {version}",
                expected="v3.0",
                remedy="Convert it first with lerobot's own script: python -m "
                "lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=NAME.",
            )
        )
    return info


def _read_table(path: Path, columns: list[str], episode: int) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.read_table(path, columns=columns, filters=[("episode_index", "==", episode)])
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split()) if path.exists() else "no file"
    return DatasetError(
        explain(
            f"file {path}",
            got=f"an unreadable file ({reason})",
            expected="a parquet file with the columns that meta/info.json names",
            remedy="It is missing, truncated or damaged: copy the dataset again.",
        )
    )


def _read_episodes(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(
            explain(f"dataset {path}", got="no episodes", expected="meta/episodes/*/*.parquet", remedy="Copy it again.")
        )
    episodes: list[dict[str, Any]] = []
    file = files[0]
    try:
        for file in files:
            # Statistics of each episode make up most of these files and are not needed.
            names = [name for name in parquet.read_schema(file).names if not name.startswith("stats/")]
            episodes += parquet.read_table(file, columns=names).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
    return sorted(episodes, key=lambda episode: int(episode["episode_index"]))


def _read_tasks(path: Path) -> dict[int, str]:
    import pyarrow
    import pyarrow.parquet as parquet

    file = path / "meta" / "tasks.parquet"
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
    # The sentence is the index of a data frame, whose column has one name or another.
    return {int(row["task_index"]): next((value for value in row.values() if isinstance(value, str)), "") for row in rows}
