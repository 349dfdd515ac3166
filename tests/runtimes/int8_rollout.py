"""A rollout of bundles to a file: `python -m tests.runtimes.int8_rollout FRAMES OUTPUT BUNDLE...`."""

import json
import sys
from pathlib import Path

import numpy as np

from rfedge.bundle.int8_kernels import int8_saturates
from rfedge.messages import Observation
from rfedge.runtimes import EdgePolicy

INSTRUCTION = "pull the drawer open"


def rollout(frames: Path, output: Path, bundles: list[Path]) -> None:
    """Write what each bundle answers to the frames with its carried state, and what its session says of int8 kernels."""
    given = np.load(frames)
    answers = {}
    for number, bundle in enumerate(bundles):
        with EdgePolicy.load(bundle) as policy:
            state = policy.initial_state()
            actions = []
            for static, gripper, robot in zip(given["static"], given["gripper"], given["state"], strict=True):
                result = policy.infer(Observation(static, gripper, robot), INSTRUCTION, state)
                state = result.state
                actions.append(result.actions)
            kernels = policy.parts.backbone.effective_settings()["int8_kernels"]
        answers[str(number)] = {"kernels": kernels, "actions": np.stack(actions).tolist()}
    output.write_text(json.dumps({"saturates": int8_saturates(), "answers": answers}))


if __name__ == "__main__":
    rollout(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
