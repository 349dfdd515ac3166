"""Frames of a video by their number, decoded in order, so that reading one episode after the other never seeks.

By number, not by time: a recording's stamps jitter and its stream may start late, and its rows and pictures were written one
for one all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfedge.data.frames import Array
from rfedge.errors import DatasetError


class VideoFrames:
    """One open video file."""

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
