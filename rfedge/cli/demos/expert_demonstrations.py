"""Demonstrations for the export of a shipped policy, which comes without the data that it was trained on.

Scripted experts do every task of PlayTable, from seeds that no training set of this project uses, into the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rfedge.jobs.progress import StageProgress

# The calibration takes frames of nearly as many episodes as it has frames (128); those left are for the proof.
_EPISODES_PER_TASK: Final = 5
_SEED: Final = 1000
_SCENE: Final = "D"
_ACTION_NOISE: Final = 0.3  # as in training


class Demonstrations(NamedTuple):
    """A dataset, and in one line what it is."""

    folder: Path
    description: str


def expert_demonstrations(
    progress: StageProgress, *, episodes_per_task: int = _EPISODES_PER_TASK, tasks: tuple[str, ...] | None = None
) -> Demonstrations:
    """Collect them, or find those of an earlier call of the same simulator; `tasks` None is all of them.

    Raises:
        BackendUnavailableError: the simulator or its renderer is not on this machine.
        ConfigError: another process collects them.
    """
    from rfedge import envs
    from rfedge.benchmarks.success.demonstrations import RecordingOptions
    from rfedge.cli.demos.recording import Recorder
    from rfedge.data.collection.collect import CollectionRequest, collect
    from rfedge.data.collection.dataset_records import COLLECTION_RECORD
    from rfedge.envs.action_noise import ActionNoise
    from rfedge.envs.experts import EXPERT_TASKS
    from rfedge.io.disk import cache_folder

    options = RecordingOptions(noise=ActionNoise(_ACTION_NOISE))
    recorder = Recorder("playtable", _SCENE, options)
    chosen = tasks or EXPERT_TASKS
    settings, versions = recorder.describe(chosen, keep_open=True)
    request = CollectionRequest(chosen, episodes_per_task, seed=_SEED, scene=_SCENE, recording=settings)
    code = hashlib.sha256(json.dumps([request.arguments, versions]).encode())
    for path in sorted(Path(str(envs.__file__)).parent.rglob("*.py")):  # another table or expert, other frames
        code.update(path.read_bytes())
    folder = cache_folder("demonstrations") / f"playtable-{_SCENE}-experts-{code.hexdigest()[:12]}"
    if not _is_complete(folder / COLLECTION_RECORD):
        collect(
            recorder,
            request,
            folder,
            versions=versions,
            on_progress=lambda done, total, _: progress("demonstrations", done, total),
        )
    return Demonstrations(
        folder,
        f"scripted experts in PlayTable {_SCENE}, {episodes_per_task} episodes of each of {len(chosen)} tasks, "
        f"action noise {_ACTION_NOISE:g}, seed {_SEED}",
    )


def _is_complete(record: Path) -> bool:
    try:
        return bool(json.loads(record.read_bytes())["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
