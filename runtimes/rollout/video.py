"""Collects what the policy saw and writes it as one film, both cameras side by side."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.errors import BackendUnavailableError, ConfigError, did_you_mean
from rfedge.io.atomic import atomic_file
from rfedge.messages import Observation

SUFFIXES: Final = (".gif", ".mp4")
_GRIPPER_ZOOM: Final = 2  # 84 -> 168 pixels, so that the small camera fills the height of the large one


class VideoRecorder:
    """Gathers frames and writes them in one go, so that a killed run leaves no half film."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            remedy = "Change the file's ending."
            raise ConfigError("--video", got=repr(path.name), expected=did_you_mean(suffix, SUFFIXES), remedy=remedy)
        # Looked up before the first step: nobody wants to learn this after the rollout.
        module, package = ("PIL", "pillow") if suffix == ".gif" else ("imageio_ffmpeg", "imageio-ffmpeg")
        if importlib.util.find_spec(module) is None:
            raise BackendUnavailableError(
                f"--video {path.name}",
                got=f"no module {module!r}",
                expected="an installed video writer",
                remedy=f"pip install {package}, or write {'an .mp4' if suffix == '.gif' else 'a .gif'}.",
            )
        self._path = path
        self._rate_hz = rate_hz
        self._frames: list[npt.NDArray[np.uint8]] = []

    def add(self, observation: Observation) -> None:
        self._frames.append(_side_by_side(observation))

    def write(self) -> None:
        """Write the film; without a frame nothing is written."""
        if not self._frames:
            return
        height, width, _ = self._frames[0].shape
        with atomic_file(self._path) as temporary:
            if self._path.suffix.lower() == ".gif":
                from PIL import Image

                first, *rest = (Image.fromarray(frame) for frame in self._frames)
                # The format counts in hundredths of a second: 30 Hz plays at 33 Hz.
                duration_ms = max(10, round(100 / self._rate_hz) * 10)
                first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=duration_ms, loop=0)
                return
            writers = importlib.import_module("imageio_ffmpeg")  # no import statement: it has no types
            # The temporary name has no .mp4, so the container is named; yuv420p is what browsers play.
            settings = {"fps": self._rate_hz, "macro_block_size": 2, "output_params": ["-f", "mp4"]}
            writer = writers.write_frames(str(temporary), (width, height), **settings)
            writer.send(None)
            for frame in self._frames:
                writer.send(np.ascontiguousarray(frame))
            writer.close()


def _side_by_side(observation: Observation) -> npt.NDArray[np.uint8]:
    """Return uint8 (200, 368, 3): the static camera, then the enlarged wrist camera centred on black."""
    static = observation.static
    wrist = observation.gripper.repeat(_GRIPPER_ZOOM, axis=0).repeat(_GRIPPER_ZOOM, axis=1)
    frame = np.zeros((static.shape[0], static.shape[1] + wrist.shape[1], 3), dtype=np.uint8)
    top = (static.shape[0] - wrist.shape[0]) // 2
    frame[:, : static.shape[1]] = static
    frame[top : top + wrist.shape[0], static.shape[1] :] = wrist
    return frame
