"""Drives calvin_env through its own public calls, for comparison: `python official_calvin.py REQUEST.npz REPLY.npz`.

Runs under the interpreter that has calvin_env and knows nothing of rfedge. The request holds `robot_obs` (n, 15),
`scene_obs` (n, 24) and `actions` (n, k, 7); every start is reset to and stepped through in turn. The reply holds what the
environment returned after each reset and step, and which tasks its own oracle sees done between each two of the n ends.

With `tasks` (n,) every start but the first goes on where the one before ended, as in CALVIN's evaluation, and the reply
also holds `done` (n, k): whether the task of a row is done after each of its steps.
"""

import sys
from pathlib import Path

import numpy as np


def make_environment(scene: str, cameras: str):  # type: ignore[no-untyped-def]
    import calvin_env
    import hydra

    with hydra.initialize_config_dir(config_dir=str(Path(calvin_env.__file__).parents[1] / "conf")):
        overrides = [f"scene=calvin_scene_{scene}", f"cameras={cameras}", "use_vr=false"]
        config = hydra.compose("config_data_collection", overrides=overrides)
    environment = hydra.utils.instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True)
    return environment, hydra.utils.instantiate(config.tasks)


def main() -> None:
    request = np.load(sys.argv[1])
    environment, oracle = make_environment(str(request["scene"]), str(request["cameras"]))
    tasks = request.get("tasks")
    observations, infos, solved = [], [], []
    for row, (robot_obs, scene_obs, actions) in enumerate(
        zip(request["robot_obs"], request["scene_obs"], request["actions"])  # noqa: B905
    ):
        if row == 0 or tasks is None:
            observations.append(environment.reset(robot_obs, scene_obs))
        start = environment.get_info()
        solved.append([])
        for action in actions:
            observation, _, _, info = environment.step(action)
            observations.append(observation)
            if tasks is not None:
                task = str(tasks[row])
                solved[-1].append(task in oracle.get_task_info_for_set(start, info, {task}))
        infos.append(environment.get_info())
    names = list(oracle.tasks)
    verdicts = np.zeros((len(infos), len(infos), len(names)), dtype=bool)
    for i, start in enumerate(infos):
        for j, end in enumerate(infos):
            done = oracle.get_task_info(start, end)
            verdicts[i, j] = [name in done for name in names]
    images = {
        key: np.stack([observation["rgb_obs"][key] for observation in observations])
        for key in ("rgb_static", "rgb_gripper")
        if key in observations[0]["rgb_obs"]
    }
    states = {key: np.stack([observation[key] for observation in observations]) for key in ("robot_obs", "scene_obs")}
    np.savez(sys.argv[2], tasks=names, verdicts=verdicts, done=solved, **images, **states)


if __name__ == "__main__":
    main()
