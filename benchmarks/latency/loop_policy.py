"""The policy of the loop's measurement: random weights through the real exporter, and a backbone that takes a given time.

    python -m rfedge.benchmarks.latency.loop_policy FOLDER

writes the bundle; in a process of its own, so that PyTorch is not in the memory that is measured.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from rfedge.config import PolicyConfig, preset
from rfedge.contract import GraphContract
from rfedge.errors import BackendUnavailableError
from rfedge.messages import STATE_SIZE, Observation
from rfedge.runtimes.backends.base import GraphRunner, RuntimeSettings
from rfedge.runtimes.backends.registry import DEFAULT_BACKEND, open_parts
from rfedge.runtimes.policy.edge_policy import EdgePolicy

__all__ = ["CHUNK_SIZE", "StillRobot", "TimedBackbone", "Work", "make_loop_bundle", "timed_policy", "write_loop_bundle"]

CHUNK_SIZE: Final = 16
# busy: one core computes and lets other threads of the interpreter run, as in onnxruntime. sleep: as on a GPU.
Work = Literal["busy", "sleep"]
_NUM_VALUES: Final = 10_000  # 0.1 ms or so, which is how exactly the duration is met


class TimedBackbone(GraphRunner):
    """Takes `duration_s` and returns the same random outputs every time.

    Args:
        contract: of the backbone it stands for.
        duration_s: of a call.
        work: how the time passes.
    """

    def __init__(self, contract: GraphContract, duration_s: float, work: Work) -> None:
        super().__init__("backbone", contract)
        self._duration_s = duration_s
        self._work = work
        rng = np.random.default_rng(0)
        self._outputs = {
            spec.name: rng.standard_normal([max(1, size) for size in spec.shape]).astype(spec.dtype)
            for spec in contract.outputs
        }
        self._values = rng.standard_normal(_NUM_VALUES)

    def _activate(self) -> None:
        """Nothing to load."""

    def _deactivate(self) -> None:
        """Nothing to free."""

    def _infer(self, inputs: Any) -> dict[str, npt.NDArray[Any]]:
        if self._work == "sleep":
            time.sleep(self._duration_s)
        else:
            ends_s = time.perf_counter() + self._duration_s
            while time.perf_counter() < ends_s:
                np.tanh(self._values)  # not a MatMul: those would take every core
        return {name: array.copy() for name, array in self._outputs.items()}


class StillRobot:
    """Random frames that were made before, a tool that never moves; taking and sending cost nothing.

    Args:
        frames: shown in turn.
    """

    def __init__(self, frames: list[Observation]) -> None:
        state = np.zeros(STATE_SIZE)
        self._frames = [dataclasses.replace(frame, state=state) for frame in frames]
        self._index = 0

    def observe(self) -> Observation:
        """Return the next frame."""
        self._index = (self._index + 1) % len(self._frames)
        return self._frames[self._index]

    def apply(self, action: npt.NDArray[np.float32]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def timed_policy(bundle: Path, duration_s: float, work: Work) -> EdgePolicy:
    """Load a bundle with its backbone replaced by one that takes `duration_s`.

    Raises:
        ArtifactError: the bundle cannot be loaded.
    """
    parts = open_parts(DEFAULT_BACKEND, bundle, RuntimeSettings(threads=1))
    return EdgePolicy(dataclasses.replace(parts, backbone=TimedBackbone(parts.contract.backbone, duration_s, work)))


def make_loop_bundle(folder: Path) -> Path:
    """Return the bundle in `folder`, exported in a process of its own if it is not there.

    Raises:
        BackendUnavailableError: the exporter is not installed, or it failed; the text has its last line.
    """
    bundle = folder / "bundle"
    if not bundle.exists():
        command = [sys.executable, "-m", __name__, str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no reason"]
            raise BackendUnavailableError(
                f"bundle {bundle}",
                got=lines[-1],
                expected="an export of random weights",
                remedy="pip install 'rfedge[export]', or pass --folder with a bundle in it.",
            )
    return bundle


def write_loop_bundle(folder: Path, *, seed: int = 0) -> None:
    """Export `tiny` with a chunk of `CHUNK_SIZE` and random weights to `folder`/bundle."""
    from rfedge.export.pipeline import ExportOptions, export_checkpoint
    from rfedge.language.tokenizer import InstructionTokenizer
    from rfedge.model import save_checkpoint
    from rfedge.model.meta import random_policy
    from rfedge.train.batches.vocabulary import TABLETOP_WORDS

    config = PolicyConfig.model_validate(preset("tiny").model_dump() | {"chunk_size": CHUNK_SIZE})
    tokenizer = InstructionTokenizer.from_corpus(
        TABLETOP_WORDS, vocab_size=config.decoder.vocab_size, text_length=config.decoder.text_length
    )
    checkpoint = folder / "checkpoint"
    save_checkpoint(checkpoint, random_policy(config, seed), tokenizer, {"weights": f"random, seed {seed}"})
    export_checkpoint(checkpoint, folder / "bundle", ExportOptions(precision="fp32", num_parity_steps=4, seed=seed))


if __name__ == "__main__":
    write_loop_bundle(Path(sys.argv[1]))
