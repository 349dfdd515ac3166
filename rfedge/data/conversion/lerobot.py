"""LeRobot datasets of version 3.0 on disk, read without the lerobot library.

    meta/info.json                                  version, frequency, features, path templates
    meta/tasks.parquet                              task_index -> sentence
    meta/episodes/chunk-000/file-000.parquet        bounds of each episode in the files below
    data/chunk-000/file-000.parquet                 numbers, and images where they are not video; many episodes a file
    videos/KEY/chunk-000/file-000.mp4               one camera, many episodes a file

Row i of an episode and its i-th picture belong together, whatever the stamps say. Source: the LeRobotDataset v3.0
documentation and the files that lerobot 0.4 writes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.data.conversion.lerobot_tables import RowTables, read_episodes, read_info, read_sentences
from rfedge.data.conversion.options import IMAGE_FIELDS, ConversionOptions, FieldSource
from rfedge.data.conversion.records import Layout, Source, SourceEpisode, select_elements
from rfedge.data.frames import Array
from rfedge.errors import DatasetError, RfedgeError

_VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Last parts of camera names in use, the usual one first.
_CAMERAS: Final = {
    "static": ("static", "rgb_static", "image", "agentview", "front", "top", "exterior", "exterior_1_left", "third_person"),
    "gripper": ("gripper", "rgb_gripper", "wrist", "wrist_image", "wrist_left", "hand", "eye_in_hand", "image2"),
}
# Of a frame: a stamp that is further off is worth a word.
_STAMP_TOLERANCE: Final = 0.5


class LeRobotSource(Source):
    """A dataset root, open for reading; see `records.Source`."""

    def __init__(self, path: Path, options: ConversionOptions) -> None:
        self._root = path
        self._info = read_info(path)
        self._features: dict[str, Any] = self._info["features"]
        self._videos = {key for key, feature in self._features.items() if feature.get("dtype") == "video"}
        self._cameras = [
            key
            for key, feature in self._features.items()
            if feature.get("dtype") in ("video", "image") and not _is_depth(feature)
        ]
        super().__init__(options, self._detected())
        self.subject, expected = f"dataset {path}", "one that is known to be the static one"
        remedy = "Say which with --map static=KEY, and the wrist camera with --map gripper=KEY."
        self.no_static = f"cameras {', '.join(self._cameras) or 'none'}", expected, remedy
        self._fps = float(self._info["fps"])
        self.layout = Layout(
            f"LeRobot {self._info['codebase_version']}, {self._info.get('robot_type') or 'unnamed robot'}",
            self.fields,
            frequency_hz=self._fps,
        )
        self._episodes = read_episodes(path, sorted(self._shown_videos()))
        self.num_episodes = len(self._episodes)
        self._sentences: dict[int, str] = {}
        self._sentence_faults: list[RfedgeError] = []
        if self._reads_tasks:
            try:
                self._sentences = read_sentences(path)
            except DatasetError as error:
                self._sentence_faults.append(error)
        self._tables = RowTables(path, self._info.get("data_path"))
        self._open_videos: dict[str, VideoFrames] = {}
        self._late: dict[int, float] = {}

    def choices(self, field: str) -> Sequence[str] | None:
        return self._cameras if field in IMAGE_FIELDS else [key for key in self._features if key not in self._cameras]

    def file_faults(self) -> list[RfedgeError]:
        """List what is wrong with sentences and videos; of each video the end alone is decoded."""
        return self._sentence_faults + self._video_faults()

    def notes(self) -> list[str]:
        notes = [
            f"data/file_index of episode {number} names {named.name}, its rows lie in {found.name}, as lerobot's converter "
            "from v2.1 leaves it"
            for number, (named, found) in sorted(self._tables.moved.items())
        ]
        if self._late:
            worst = max(self._late.values())
            notes.append(
                f"timestamps of {len(self._late)} episodes are up to {1000 * worst:.0f} ms off frame_index / fps; pictures "
                "were taken by their number"
            )
        return notes

    def read(self, index: int, *, images: bool) -> SourceEpisode:
        """Read episode `index` in the order of the record, with or without its images."""
        episode = self._episodes[index]
        number = int(episode["episode_index"])
        subject = f"episode {number}"
        numbers = {source.key for name, source in self.fields.items() if name not in IMAGE_FIELDS}
        if self._reads_tasks:
            numbers.add("task_index")
        has_stamps = "timestamp" in self._features
        wanted = [*sorted(numbers), *(["timestamp"] if has_stamps else [])]
        _, rows = self._tables.read(episode, wanted, whole_file=True)
        if has_stamps:
            self._check_stamps(number, rows)
        values, shown = {}, {}
        for field, source in self.fields.items():
            if field not in IMAGE_FIELDS and field != "instruction":
                values[field] = select_elements(subject, source, np.array(rows[source.key].to_pylist()))
            elif field in IMAGE_FIELDS and images:
                shown[field] = self._images(field, source.key, subject, episode)
        return SourceEpisode(subject, shown, values, self._instructions(subject, rows))

    def close(self) -> None:
        for video in self._open_videos.values():
            video.close()
        self._open_videos = {}

    @property
    def _reads_tasks(self) -> bool:
        return self.options.instruction is None and "instruction" not in self.fields

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

    def _shown_videos(self) -> set[str]:
        shown = {source.key for name, source in self.fields.items() if name in IMAGE_FIELDS}
        return shown & self._videos & set(self._cameras)

    def _video_faults(self) -> list[RfedgeError]:
        found: list[RfedgeError] = []
        for key in sorted(self._shown_videos()):
            files: dict[Path, list[Mapping[str, Any]]] = {}
            for episode in self._episodes:
                files.setdefault(self._video_file(key, episode), []).append(episode)
            for file, episodes in files.items():
                try:
                    length = count_frames(file)
                except DatasetError as error:
                    found.append(error)
                    continue
                found += self._lengths(key, file, length, episodes)
        return found

    def _lengths(self, key: str, file: Path, length: int, episodes: list[Mapping[str, Any]]) -> list[RfedgeError]:
        short = [episode for episode in episodes if self._first_frame(key, episode) + int(episode["length"]) > length]
        if short:
            last = max(self._first_frame(key, episode) + int(episode["length"]) for episode in short)
            names = ", ".join(str(episode["episode_index"]) for episode in short[:5])
            expected = f"{last}, so that every row of episode {names}{' ...' if len(short) > 5 else ''} has its picture"
            remedy = "It is cut short, or the recording lost frames: copy the dataset again, or leave these out."
            return [DatasetError(f"video {file}", got=f"{length} frames", expected=expected, remedy=remedy)]
        name = f"videos/{key}/to_timestamp"
        beyond = [episode for episode in episodes if float(episode.get(name) or 0.0) * self._fps > length + 1.0]
        return [
            DatasetError(
                f"{name} of episode {episode['episode_index']}",
                got=f"{float(episode[name]):.3f} s",
                expected=f"at most {length / self._fps:.3f} s, where {file.name} ends",
                remedy="The record is of another video: write meta/episodes again, or copy the dataset again.",
            )
            for episode in beyond
        ]

    def _first_frame(self, key: str, episode: Mapping[str, Any]) -> int:
        return round(float(episode[f"videos/{key}/from_timestamp"]) * self._fps)

    def _video_file(self, key: str, episode: Mapping[str, Any]) -> Path:
        template = self._info.get("video_path") or _VIDEO_PATH
        chunk, file = (int(episode[f"videos/{key}/{part}_index"]) for part in ("chunk", "file"))
        return self._root / template.format(video_key=key, chunk_index=chunk, file_index=file)

    def _check_stamps(self, number: int, rows: Any) -> None:
        stamps = np.array(rows["timestamp"].to_pylist(), dtype=np.float64)
        off = np.abs(stamps - stamps[0] - np.arange(len(stamps)) / self._fps).max(initial=0.0)
        if off * self._fps > _STAMP_TOLERANCE:
            self._late[number] = float(off)

    def _images(self, field: str, key: str, subject: str, episode: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        where = f"{key} of {subject}"
        pictures: Iterator[Array]
        if key in self._videos:
            pictures = self._video_pictures(key, episode)
        else:
            _, rows = self._tables.read(episode, [key], whole_file=False)
            pictures = (self._picture(where, item) for item in rows[key].to_pylist())
        return self.fit_images(field, where, pictures, int(episode["length"]))

    def _video_pictures(self, key: str, episode: Mapping[str, Any]) -> Iterator[Array]:
        path = self._video_file(key, episode)
        video = self._open_videos.get(key)
        if video is None or video.path != path:
            if video is not None:
                video.close()
            video = self._open_videos[key] = VideoFrames(path)
        first = self._first_frame(key, episode)
        return (video.at(first + step) for step in range(int(episode["length"])))

    def _picture(self, where: str, item: Mapping[str, Any]) -> Array:
        from PIL import Image

        try:
            content = item["bytes"]
            with Image.open(io.BytesIO(content) if content else self._root / item["path"]) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, TypeError, KeyError) as error:
            raise DatasetError(
                where, got=f"an unreadable image ({error})", expected="PNG or JPEG bytes", remedy="Copy it again."
            ) from None

    def _instructions(self, subject: str, rows: Any) -> tuple[str, ...]:
        if self.options.instruction is not None:
            return (self.options.instruction,) * int(rows.num_rows)
        if "instruction" in self.fields:
            key = self.fields["instruction"].key
            given = rows[key].to_pylist()
            if any(not isinstance(text, str) or not text.strip() for text in given):
                raise DatasetError(
                    f"{key} of {subject}", got="no words", expected="a sentence in every row", remedy="Map another column."
                )
            return tuple(given)
        indices = rows["task_index"].to_pylist()
        if self._sentence_faults:  # said once, for all episodes
            return ("",) * len(indices)
        unknown = next((index for index in indices if not self._sentences.get(index, "").strip()), None)
        if unknown is not None:
            expected = f"one of the {len(self._sentences)} in meta/tasks.parquet"
            remedy = "Give one for all episodes with --instruction."
            raise DatasetError(subject, got=f"task {unknown}, without a sentence", expected=expected, remedy=remedy)
        return tuple(self._sentences[index] for index in indices)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


class VideoFrames:
    """Frames of one open video file by number, decoded in order: reading one episode after the other never seeks."""

    # Not by time: stamps jitter and a stream may start late, and rows and pictures were written one for one all the same.

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = -1
        self._current: Any = None
        self._open()

    def at(self, index: int) -> Array:
        """Return frame `index` as uint8 (height, width, 3) RGB; cheap when indices only grow."""
        import av

        try:
            if index < self._index:
                self.close()
                self._open()
            while self._index < index:
                self._current = next(self._frames, None)
                if self._current is None:
                    raise _damaged(self.path, f"it ends after {self._index + 1} frames, before frame {index}")
                self._index += 1
            picture: Array = self._current.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            raise _damaged(self.path, str(error)) from None
        return picture

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        self._container, stream = _open_video(self.path)
        stream.thread_type = "AUTO"
        self._frames: Iterator[Any] = self._container.decode(stream)
        self._current, self._index = None, -1


def count_frames(path: Path) -> int:
    """Return how many frames a video has, from its header where that tells, and decode its end to see that it is there."""
    import av

    container, stream = _open_video(path)
    try:
        with container:
            if not stream.frames or not stream.duration:
                return sum(1 for packet in container.demux(stream) if packet.size)
            container.seek((stream.start_time or 0) + stream.duration, stream=stream)
            if next(container.decode(stream), None) is None:
                raise _damaged(path, "its last frames are not there")
            return int(stream.frames)
    except av.FFmpegError as error:
        raise _damaged(path, str(error)) from None


def _open_video(path: Path) -> tuple[Any, Any]:
    import av

    try:
        container: Any = av.open(str(path))
        return container, container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> DatasetError:
    got = f"an unreadable file ({' '.join(reason.split())})" if path.exists() else "no file"
    remedy = "It is missing, truncated or damaged: copy the dataset again."
    return DatasetError(f"video {path}", got=got, expected="all frames that meta/episodes names", remedy=remedy)
