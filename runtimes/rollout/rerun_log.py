"""Writes a run for the Rerun viewer: both cameras, the action wanted and sent, ages, durations and interventions."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from rfedge.errors import ConfigError
from rfedge.messages import POSITION_SCALE_M, ROTATION_SCALE_RAD
from rfedge.runtimes.backends.optional_library import import_optional
from rfedge.runtimes.control.modes import ControlStep

RERUN_SUFFIX: Final = ".rrd"
_TIMELINE: Final = "control_step"


class RerunLog(AbstractContextManager["RerunLog"]):
    """Writes one run to a file that `rerun FILE.rrd` shows, up to its last whole part if it is killed."""

    def __init__(self, path: Path) -> None:
        if path.suffix != RERUN_SUFFIX:
            remedy = "Change it."
            raise ConfigError("--rerun", got=repr(path.name), expected=f"a name ending in {RERUN_SUFFIX}", remedy=remedy)
        self._rerun: Any = import_optional(
            "rerun", needed_for=f"--rerun {path.name}", remedy="pip install 'rfedge[viewer]', or use --record FILE."
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: Any = self._rerun.RecordingStream("rfedge")
        self._stream.save(str(path))
        self._num_steps = 0

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
        self._stream.disconnect()

    def add(self, step: ControlStep) -> None:
        """Write one control step; steps of all episodes follow each other on one timeline."""
        rerun, stream = self._rerun, self._stream
        stream.set_time(_TIMELINE, sequence=self._num_steps)
        self._num_steps += 1
        if step.instruction is not None:
            stream.log("instruction", rerun.TextLog(step.instruction))
        if step.observation is not None:
            stream.log("camera/static", rerun.Image(step.observation.static))
            stream.log("camera/gripper", rerun.Image(step.observation.gripper))
        for name, action in (("wanted", step.action), ("sent", step.sent)):
            stream.log(f"action/{name}/translation_m", rerun.Scalars(action[:3] * POSITION_SCALE_M))
            stream.log(f"action/{name}/rotation_rad", rerun.Scalars(action[3:6] * ROTATION_SCALE_RAD))
            stream.log(f"action/{name}/gripper", rerun.Scalars(action[6:]))
        stream.log("time/age_ms", rerun.Scalars(step.age_ms))
        stream.log("time/lag_ms", rerun.Scalars(1000.0 * step.lag_s))
        if step.inference is not None:
            for stage, duration_ms in step.inference.timings_ms.items():
                stream.log(f"time/{stage}_ms", rerun.Scalars(duration_ms))
        for intervention in (*step.interventions, *((step.missing,) if step.missing else ())):
            stream.log("safety", rerun.TextLog(intervention, level="WARN"))
