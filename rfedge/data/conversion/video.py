"""Frames of a video by time, decoded in order, so that reading one episode after the other never seeks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfedge.data.frames import Array
from rfedge.errors import DatasetError, explain

__all__ = ["VideoFrames"]


class VideoFrames:
    """One open video file.

    Args:
        path: the file.
        frequency_hz: of its frames; a frame belongs to a time that is less than half a frame away.

    Raises:
        DatasetError: the file is missing or damaged.
    """

    def __init__(self, path: Path, frequency_hz: float) -> None:
        import av

        self.path = path
        self._tolerance_s = 0.5 / frequency_hz
        self._damage: type[Exception] = av.FFmpegError
        try:
            self._container: Any = av.open(str(path))
            self._stream: Any = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise self._damaged(str(error)) from None
        self._stream.thread_type = "AUTO"
        self._frames: Iterator[Any] = self._container.decode(self._stream)
        self._current: Any = None

    def at(self, time_s: float) -> Array:
        """Return the uint8 (height, width, 3) RGB frame at `time_s`; cheap when times only grow.

        Raises:
            DatasetError: there is none, or it cannot be decoded.
        """
        try:
            if self._current is not None and self._current.time > time_s + self._tolerance_s:
                self._container.seek(max(int(time_s / self._stream.time_base), 0), stream=self._stream)
                self._frames = self._container.decode(self._stream)
                self._current = None
            while self._current is None or self._current.time < time_s - self._tolerance_s:
                self._current = next(self._frames, None)
                if self._current is None:
                    raise self._damaged(f"it ends before {time_s:.3f} s")
            if self._current.time > time_s + self._tolerance_s:
                raise self._damaged(f"it has no frame at {time_s:.3f} s")
            picture: Array = self._current.to_ndarray(format="rgb24")
        except self._damage as error:
            raise self._damaged(str(error)) from None
        return picture

    def close(self) -> None:
        """Release the file; calling it again does nothing."""
        self._container.close()

    def _damaged(self, reason: str) -> DatasetError:
        return DatasetError(
            explain(
                f"video {self.path}",
                got=f"an unreadable file ({' '.join(reason.split())})" if self.path.exists() else "no file",
                expected="all frames that meta/episodes names",
                remedy="It is missing, truncated or damaged: copy the dataset again.",
            )
        )
