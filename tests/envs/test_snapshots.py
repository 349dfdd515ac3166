"""Pictures of random states: what they show is what they are labelled with."""

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from rfedge.cli.app import app
from rfedge.data.calvin import CalvinDataset
from rfedge.data.scene.scenes import project_static
from rfedge.envs.playtable.environment import PlayTable
from rfedge.envs.playtable.layout import find_layout
from rfedge.envs.playtable.robot import tcp_pose
from rfedge.envs.snapshots import record_snapshots, sample_state


def test_states_are_within_the_scene_and_hands_are_where_their_joints_put_them() -> None:
    rng = np.random.default_rng(0)
    near = []
    for scene in "ABCD":
        layout = find_layout(scene)
        for _ in range(60):
            robot_obs, scene_obs = sample_state(layout, rng)
            np.testing.assert_allclose(robot_obs[:6], tcp_pose(robot_obs[7:14]), atol=1e-9)
            assert 0 <= scene_obs[0] <= layout.slide_max_m
            assert 0 <= robot_obs[6] <= 0.08
            assert robot_obs[14] in (-1, 1)
            blocks_m = scene_obs[6:].reshape(3, 6)[:, :3]
            near.append(np.linalg.norm(blocks_m - robot_obs[:3], axis=1).min())
    assert 0.5 < np.mean(np.array(near) < 0.17) < 0.95, "most hands are near a block, not all"


def test_the_label_is_the_state_that_the_picture_shows() -> None:
    with PlayTable("D") as environment:
        taken = record_snapshots(environment, 3, 12)
        for index in range(12):
            frame = {key: values[index] for key, values in taken.frames.items()}
            image = frame["rgb_static"].astype(int)
            red_m = frame["scene_obs"][6:9]  # scene D lists red first
            rows, columns = np.nonzero((image[..., 0] > 140) & (image[..., 1:].max(axis=-1) < 40))
            if len(rows) > 25:  # in sight
                centre = (np.array([columns.mean(), rows.mean()]) + 0.5) / 200
                assert np.linalg.norm(centre - project_static(red_m)) < 0.04
        again = record_snapshots(environment, 3, 12)
    assert all(np.array_equal(taken.frames[key], again.frames[key]) for key in taken.frames)


def test_a_collection_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    folders = []
    for workers in (1, 2):
        folders.append(tmp_path / str(workers))
        words = [
            "demos",
            "snapshots",
            "--output",
            str(folders[-1]),
            "--num",
            "20",
            "--workers",
            str(workers),
            "--looks",
            "random",
        ]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    one, two = (CalvinDataset.open(folder) for folder in folders)
    assert len(one.frame_numbers()) == 32
    for number in one.frame_numbers()[::7]:
        first, second = one.frame(number, ("rgb_static", "scene_obs")), two.frame(number, ("rgb_static", "scene_obs"))
        assert np.array_equal(first["rgb_static"], second["rgb_static"])
        assert np.array_equal(first["scene_obs"], second["scene_obs"])


def test_a_shelf_has_room_for_what_is_put_on_it() -> None:
    layout = find_layout("D")
    for seed in range(400):  # three blocks on one shelf came up once in some 90 states, and did not always fit
        sample_state(layout, np.random.default_rng(seed))
