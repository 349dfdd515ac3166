"""A set that lerobot itself writes: its own reader and this converter see the same frames, and a policy trains on it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.conversion import ConversionOptions, convert_dataset
from rfedge.data.inspection.report import inspect_dataset
from rfedge.robot.camera import fit_image
from rfedge.train import train_config, train_policy

PYTHON = os.environ.get("RFEDGE_LEROBOT_PYTHON")
SCRIPT = Path(__file__).with_name("real_lerobot.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PYTHON is None, reason="RFEDGE_LEROBOT_PYTHON names no interpreter that has lerobot"),
]


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_lerobots_own_set_converts_and_trains(tmp_path: Path, kind: str) -> None:
    source, seen = tmp_path / "source", tmp_path / "read.npz"
    assert PYTHON is not None
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, str(SCRIPT), str(source), str(seen), kind]
    subprocess.run(command, check=True, env={**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")})
    theirs = np.load(seen)
    result = convert_dataset(source, "lerobot", tmp_path / "out", ConversionOptions(resize="stretch"))
    dataset = CalvinDataset.open(tmp_path / "out")
    assert (result.num_frames, result.source_hz) == (len(theirs["action"]), 30.0)
    assert len(dataset.episodes) == 3
    for first, last in dataset.episodes:
        for number in range(first, last + 1):
            frame = dataset.frame(number)
            np.testing.assert_allclose(frame["rel_actions"], theirs["action"][number], atol=1e-6)
            np.testing.assert_allclose(frame["robot_obs"][:14], theirs["state"][number][:14], atol=1e-6)
            for name, key in (("rgb_static", "front"), ("rgb_gripper", "wrist")):
                image = frame[name]
                if kind == "images":
                    np.testing.assert_array_equal(image, fit_image(theirs[key][number], image.shape, "stretch"))
                else:  # 10 from frame to frame, and the codec changes less
                    assert abs(image[3 * len(image) // 4 :].mean() - (16 + 10 * (number - first))) < 4, (number, name)
    for segment in dataset.segments:
        assert set(theirs["sentence"][segment.start : segment.end + 1]) == {segment.instruction}
    assert {segment.task for segment in dataset.segments} == {"water_the_plant", "pull_the_drawer_open"}
    assert inspect_dataset(tmp_path / "out", num_frames=None).findings == ()
    train_policy(
        train_config(
            "tiny", data=tmp_path / "out", output=tmp_path / "run", policy_changes={"window": 4}, steps=2, batch_size=2
        )
    )
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()
